"""Retraining by operators: samples and outages of their own fleet, and a model fitted to them."""
