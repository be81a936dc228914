"""What clients are served, at the peer port and at the client port of front workers alike."""

from collections.abc import Sequence

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from las.v1 import shard_map_pb2
from peerd.daemon.config import PeerdConfig
from peerd.transport.limits import EdgeLimits
from peerd.transport.log_service import LogService, add_log_service
from peerd.transport.map_cache import MapCache
from peerd.transport.map_service import add_map_service
from peerd.transport.registration import together
from peerd.v1 import log_pb2

# The services that clients may discover and ask the health of.
CLIENT_SERVICES = (
    log_pb2.DESCRIPTOR.services_by_name["LogService"].full_name,
    shard_map_pb2.DESCRIPTOR.services_by_name["ShardMapService"].full_name,
)


def add_client_services(
    server: grpc.aio.Server,
    log_service: LogService,
    map_cache: MapCache,
    health_servicer: health.HealthServicer,
    others: Sequence[str] = (),
) -> None:
    """Make `server` serve them, with health and reflection; `others` are reflected as well."""
    add_log_service(server, log_service)
    add_map_service(together(server), map_cache)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, together(server))
    # It looks at the type of the server that it is given.
    reflection.enable_server_reflection(
        (*CLIENT_SERVICES, *others, HEALTH_SERVICE, reflection.SERVICE_NAME), server
    )


def edge_limits(config: PeerdConfig, *, processes: int = 1) -> EdgeLimits:
    """The bounds of one of so many processes that share the peer's."""
    append = config.append
    return EdgeLimits(
        batch_bytes_max=append.batch_bytes_max,
        inflight_bytes_max=max(append.batch_bytes_max, append.inflight_bytes_max // processes),
    )
