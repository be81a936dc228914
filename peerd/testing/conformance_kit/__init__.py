"""What a client in another language does right: checks that drive it against scripted servers.

`python -m peerd.testing.conformance_kit COMMAND…` starts COMMAND, which speaks the line protocol of
docs/client-protocol.md on its stdin and stdout, and prints a table. Public: for authors of clients.
"""
