"""Packages for hosts: systemd units, settings to fill in, and what builds them."""
