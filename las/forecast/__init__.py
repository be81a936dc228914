"""How probable it is that a node stops soon: windows in, probabilities with reasons out."""
