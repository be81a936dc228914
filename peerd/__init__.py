"""peerd: a replicated transaction log that moves its data before a machine dies."""

__version__ = "0.1.0"
