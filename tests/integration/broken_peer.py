"""`peerd` with one rule broken: started as `python -m tests.integration.broken_peer serve …`.

The primary acknowledges what is durable on one voter, whatever the plan's `acks` say.
"""

from peerd.cli.peerd import main
from peerd.core.primary import Primary


def advance_with_one(self: Primary, out) -> None:
    """`Primary._advance`, counting one durable copy as enough."""
    acks = self.plan.acks
    object.__setattr__(self.plan, "acks", 1)
    try:
        ADVANCE(self, out)
    finally:
        object.__setattr__(self.plan, "acks", acks)


ADVANCE = Primary._advance

if __name__ == "__main__":
    Primary._advance = advance_with_one
    main()
