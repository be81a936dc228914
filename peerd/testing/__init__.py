"""Tools for testing programs that run on peerd, and peerd itself. Public."""
