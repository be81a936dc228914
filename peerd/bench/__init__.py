"""Benchmarks of a running cluster: what `peerctl bench` and `make bench` do."""
