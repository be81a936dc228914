"""The page of the fleet that every LAS node serves."""
