"""What holds for every test: reproducible examples; tests for root say when they are left out."""

import os

import pytest
from hypothesis import settings

# Examples are the same in every run; a failure is shrunk and printed, never hidden in a database.
settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rewrite`: tests/scripts are written anew from what is seen."""
    parser.addoption("--rewrite", action="store_true", help="write the traces of scripts anew")


_deselected: list[pytest.Item] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes tests marked `root` out of the run of any other user."""
    if os.geteuid() == 0:
        return
    _deselected[:] = [item for item in items if item.get_closest_marker("root")]
    if _deselected:
        items[:] = [item for item in items if not item.get_closest_marker("root")]
        config.hook.pytest_deselected(items=_deselected)


def pytest_report_collectionfinish() -> list[str]:
    """Says so, since a test that silently does not run is worth nothing."""
    if not _deselected:
        return []
    return [f"{len(_deselected)} tests need root and are left out: run them as root"]
