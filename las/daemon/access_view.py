"""The access table in words, and which peers have not heard of its newest version."""

from las.core.state import ClusterState
from las.daemon.term import Term
from peerd.core.ids import NodeName

# limit: names of peers in the line of the status
NAMES_LISTED_MAX = 5


def unheard(state: ClusterState, term: Term | None) -> list[NodeName]:
    """Peers that have not said, in this term, that they have the table as it is now on disk.

    One with a higher version has outlived what the LAS began from, and counts, too.
    """
    version = state.access.version
    if term is None or version == 0:
        return []
    return [
        name
        for name in sorted(state.nodes)
        if (heard := term.vitals.of(name)) is None or heard.access_version != version
    ]


def access_words(state: ClusterState, term: Term | None) -> str:
    """In one line; empty while nothing was ever said."""
    table = state.access
    if table.version == 0:
        return ""
    parts = [
        f"clients need {'' if table.required else 'no '}grants",
        f"{len(table.grants)} grants",
        f"{len(table.revoked)} revoked",
        f"version {table.version}",
    ]
    late = unheard(state, term)
    if late:
        more = f" and {len(late) - NAMES_LISTED_MAX} more" if len(late) > NAMES_LISTED_MAX else ""
        parts.append(f"not heard by {', '.join(late[:NAMES_LISTED_MAX])}{more}")
    return ", ".join(parts)
