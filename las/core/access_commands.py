"""The commands about who may do what; a part of `las.core.commands` (docs/security.md)."""

from collections.abc import Mapping
from dataclasses import dataclass

from peerd.core.access import Grant, Revocation


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAccess:
    """Clients need grants from now on, or no more."""

    required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AddGrant:
    """Rights are given; what the same callers have on the same logs stays."""

    grant: Grant


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveGrant:
    """Rights are taken back; none named: all that were given so."""

    grant: Grant


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """A certificate is refused everywhere from now on."""

    revocation: Revocation


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRevocation:
    """It is not any more. `why` of the revocation says nothing here."""

    revocation: Revocation


AccessCommand = SetAccess | AddGrant | RemoveGrant | Revoke | EndRevocation

ACCESS_COMMANDS: Mapping[str, type[AccessCommand]] = {
    "set_access": SetAccess,
    "add_grant": AddGrant,
    "remove_grant": RemoveGrant,
    "revoke": Revoke,
    "end_revocation": EndRevocation,
}
"""Their names in the consensus log."""
