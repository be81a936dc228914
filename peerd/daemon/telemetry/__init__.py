"""What a peer knows of its own health: one table of metrics, their collector, their window."""
