"""The data directory of a LAS node: made once by `las init`, made anew by `las rejoin`, judged.

Must not: import what only a running node needs; these commands should answer at once.
"""

import uuid

from las.core import snapshot
from las.daemon.config import LasConfig, verify_identity
from las.daemon.exports import Export, ExportUnusable
from las.raft import Begin, Manifest, StoreError, init_directory, rejoin_directory
from peerd.daemon.errors import StoreUnusable


def init(config: LasConfig, cluster_id: str | None, export: Export | None = None) -> Manifest:
    """Make the data directory of a member of a new group.

    Args:
        config: Its settings.
        cluster_id: What `init` gave for another member; None draws a new one.
        export: What the group begins with, if it is not a new cluster's; the id is in it.

    Raises:
        ConfigError: the certificates do not fit the configuration.
        ExportUnusable: no group may begin with it.
        StoreUnusable: the directory is not empty, or cannot be written.
    """
    verify_identity(config)
    begin = None
    if export is not None:
        if not export.is_recovered:
            raise ExportUnusable(
                "an export may be older than what peers know: make a group's beginning of it with "
                "`las recover --from`"
            )
        begin = Begin(recovery=export.origin.recovery_id, state=snapshot.snapshot(export.state))
        cluster_id = export.state.cluster_id
    try:
        return init_directory(
            config.data_dir,
            config.cluster,
            config.name,
            config.members,
            cluster_id=cluster_id or str(uuid.uuid4()),
            begin=begin,
        )
    except StoreError as error:
        raise StoreUnusable(f"data_dir: {error}") from error


def rejoin(config: LasConfig, cluster_id: str) -> Manifest:
    """Make the data directory of a member whose old one was lost. Raises as `init` does."""
    verify_identity(config)
    try:
        return rejoin_directory(
            config.data_dir,
            config.cluster,
            config.name,
            config.members,
            cluster_id=cluster_id,
        )
    except StoreError as error:
        raise StoreUnusable(f"data_dir: {error}") from error


def check(config: LasConfig) -> str:
    """Judge what can be judged without starting; returns one line that says what was found fit.

    Raises:
        ConfigError: the certificates do not fit the configuration.
    """
    identity = verify_identity(config)
    how = "plaintext on loopback" if config.tls is None else "mutual TLS"
    group = f"{len(config.members)} members" if len(config.members) > 1 else "alone"
    return f"{identity.uri} at {config.listen}, {group}, {how}, data in {config.data_dir}: fit"
