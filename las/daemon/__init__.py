"""The LAS node as a process: settings, services, forecaster, lifecycle."""
