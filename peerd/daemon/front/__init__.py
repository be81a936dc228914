"""Front workers: processes that take clients' calls for one sequencer (docs/architecture.md)."""
