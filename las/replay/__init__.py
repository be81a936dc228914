"""What anticipation would have done for a fleet whose outages are recorded."""
