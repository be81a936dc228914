"""Fixtures of the storage tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerd.storage import StorageOptions
from tests.storage.driving import Driven


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., Driven]]:
    """Opens stores, by default always in the same directory; closes what is left open."""
    opened: list[Driven] = []

    def opening(
        directory: Path = tmp_path / "store",
        options: StorageOptions = StorageOptions(),
        **hooks: object,
    ) -> Driven:
        driven = Driven(directory, options, **hooks)
        opened.append(driven)
        return driven

    yield opening
    for driven in opened:
        assert driven.store.close()
