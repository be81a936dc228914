"""gRPC options of every server and channel of the project, each with its reason.

grpcio's defaults differ between versions and sides, so what matters is set on both. Must not hold
anything that a deployment would want to change: that belongs into the configuration.
"""

# limit: bytes of one gRPC message; the largest is a full replication frame (2 MiB) beside its
# envelope, and gRPC's own limit (4 MiB, receiving only) would leave too little above it
MESSAGE_BYTES_MAX = 8 * 1024 * 1024
# limit: calls open at once on one connection; a peer needs some ten streams, a busy client a few
# hundred calls, and more than this is a client that does not wait for answers
STREAMS_PER_CONNECTION_MAX = 1024

# A host that dies sends nothing. A connection without an answer for 10 + 5 s is given up; what
# must be noticed sooner is noticed by application frames.
KEEPALIVE_INTERVAL_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000
# Half the interval, so that a client's pings never look like an attack to the server.
PING_INTERVAL_MS_MIN = KEEPALIVE_INTERVAL_MS // 2

# After a failed dial the next follows soon.
RECONNECT_BACKOFF_MS_INITIAL = 100
# limit: milliseconds between two dials; a hand-over or a restart is over within a second, while
# gRPC's default, growing to 120 s, would keep a healthy cluster apart for minutes
RECONNECT_BACKOFF_MS_MAX = 1_000
# How long one dial may take; a host without power answers nothing at all.
CONNECT_TIMEOUT_MS = 2_000

# Initial metadata of a stream of appends that was let in: what is written from then on is judged by
# itself, and what was written before into one that is refused nobody could speak for.
STREAM_TAKEN = ("peerd-stream", "taken")

Options = tuple[tuple[str, int], ...]

_BOTH: Options = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # Also between calls: an idle replication stream must notice a dead host, too.
    ("grpc.keepalive_permit_without_calls", 1),
    # Any number of pings without data, for the same reason.
    ("grpc.http2.max_pings_without_data", 0),
)

_SERVER: Options = (
    *_BOTH,
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
)

SERVER_OPTIONS: Options = (
    *_SERVER,
    # Two processes on one port would share its connections at random; the second must fail.
    ("grpc.so_reuseport", 0),
)

# For front workers that is the point; a port that others hold was refused before.
FRONT_SERVER_OPTIONS: Options = (*_SERVER, ("grpc.so_reuseport", 1))


def guarded(
    options: Options, *, metadata_bytes_max: int, handshake_timeout_ms: int, idle_timeout_s: int
) -> Options:
    """Options of a server with what is set about connections: the one thing that a deployment may
    want to change, since strangers are met by it.
    """
    return (
        *options,
        # Two bounds in gRPC: between them it refuses at random, so there is one.
        ("grpc.max_metadata_size", metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", metadata_bytes_max),
        ("grpc.server_handshake_timeout_ms", handshake_timeout_ms),
        ("grpc.max_connection_idle_ms", idle_timeout_s * 1000),
    )


CHANNEL_OPTIONS: Options = (
    *_BOTH,
    # A retry below our own would send an append again without its caller knowing.
    ("grpc.enable_retries", 0),
    # Channels to one address would else share a connection and with it identity and bounds.
    ("grpc.use_local_subchannel_pool", 1),
    # Peers and LAS nodes are dialled directly; a proxy of the environment is meant for the web.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MS_INITIAL),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MS_MAX),
)
