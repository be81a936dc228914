"""Invariants: what must hold whatever the outside does.

Not `assert`, which `python -O` removes. The daemon stops the process on an `InvariantViolation`, by
design: going on with a broken invariant could lose an acknowledged record.
"""


class InvariantViolation(Exception):
    """A bug of ours, or a store that contradicts itself. The process must stop."""


def invariant(condition: bool, message: str, **facts: object) -> None:
    """Raise `InvariantViolation` with `message` and `facts` unless `condition` holds."""
    if not condition:
        told = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        raise InvariantViolation(f"{message} ({told})" if told else message)
