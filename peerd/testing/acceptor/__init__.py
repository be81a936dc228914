"""An acceptor of runs: the formal model's guards without its bounds (docs/conformance.md).

`state` is what the model's state is, for any number of stores, epochs, offsets and records.
`actions` and `planning` have one function per action of the model; each says whether the action is
allowed where the state stands, and then takes it. `projection` reads the trace of real cores as
such actions, shard by shard: a run that the acceptor takes to its end is a run of the model, and
what the model proves holds for it.

`tests/conformance` compares the acceptor with the model on every transition of small bounds, in
both directions, and shows that spoilt traces are refused.
"""

from peerd.testing.acceptor.projection import Judge, Verdict, judge

__all__ = ["Judge", "Verdict", "judge"]
