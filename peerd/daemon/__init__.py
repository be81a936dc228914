"""The peer daemon: wiring, configuration, lifecycle, telemetry."""
