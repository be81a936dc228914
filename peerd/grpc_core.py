"""What the processes of this project ask of gRPC's C core; it reads that when it is first imported.

The core has two ways to wait for sockets. The newer one, which it prefers since it can serve
programs without a completion queue, hands what arrives to threads of a pool of its own, and those
to the queue's thread, which wakes the event loop: two hand-overs more for each message than where
the queue's thread waits for the sockets itself, as it did before. With 64 clients on loopback the
older way took a fifth less CPU for a message of a stream and for a unary call, two fifths less for
an append through workers, primary and shadow on two busy cores.
A version of the core that does not know the names says so in its own log and goes on.
"""

EXPERIMENTS = "-event_engine_listener,-event_engine_client"
"""For the environment variable GRPC_EXPERIMENTS."""
