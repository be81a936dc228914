"""What holds for every test: reproducible examples; tests for root say when they are left out."""

import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings

from peerd.testing import slow_disk

# Examples are the same in every run; a failure is shrunk and printed, never hidden in a database.
settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")


def pytest_configure() -> None:
    """Ctrl-C works in what tests start, however this run was started.

    A shell lets what it starts in the background ignore it, and all processes under that would.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command line that a test runs in this process sends all logs to a stream of its own, which
    is closed when it has ended: what later tests log must not go there.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    if root.handlers != handlers:
        root.handlers[:] = handlers
        root.setLevel(level)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rewrite`: tests/scripts are written anew from what is seen."""
    parser.addoption("--rewrite", action="store_true", help="write the traces of scripts anew")


def _why_not(item: pytest.Item) -> str:
    """Why the machine, or the user, cannot run a test; empty if it can."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "need root: run them as root"
    if item.get_closest_marker("fuse") and (wrong := slow_disk.why_not()):
        return f"need FUSE: {wrong}"
    return ""


_deselected: Counter[str] = Counter()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes tests out of the run for which something is missing here."""
    missing = {item: _why_not(item) for item in items}
    if left_out := [item for item, why in missing.items() if why]:
        _deselected.update(missing[item] for item in left_out)
        items[:] = [item for item, why in missing.items() if not why]
        config.hook.pytest_deselected(items=left_out)


def pytest_report_collectionfinish() -> list[str]:
    """Says so, since a test that silently does not run is worth nothing."""
    return [f"{count} tests are left out, they {why}" for why, count in _deselected.items()]
