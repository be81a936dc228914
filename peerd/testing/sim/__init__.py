"""The simulator: a whole cluster of real cores in one deterministic process (docs/simulator.md)."""

from peerd.testing.sim.checkers import BrokenPromise
from peerd.testing.sim.options import CALM, Options, drawn
from peerd.testing.sim.simulation import Simulation

__all__ = ["CALM", "BrokenPromise", "Options", "Simulation", "drawn"]
