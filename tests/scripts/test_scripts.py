"""Scripts: conversations with the cores, each with its whole expected trace.

`pytest tests/scripts --rewrite` writes the traces anew. Land such a change only if you understand
each line of its difference.
"""

import gc
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripts import script
from tests.scripts.fleet import Fleet
from tests.scripts.stage import Cast

HERE = Path(__file__).parent
SCRIPTS = sorted(HERE.glob("*.txt"))
SCRIPTS_MIN = 20
CPU_MS_MAX = 50
"""A script is read often and by people: what takes longer says too much at once."""
PLAYS = 3
"""The least of them is the script's own: a host that takes the core away counts as its time, too,
and only ever adds."""


def stage_of(path: Path) -> script.Stage:
    return Fleet() if path.name.startswith("las-") else Cast()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_trace_is_as_written(path, request):
    seen = script.play(script.read(path), stage_of(path))
    if request.config.getoption("--rewrite"):
        path.write_text(seen)
    assert path.read_text() == seen


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_says_in_its_first_line_what_it_shows(path):
    assert path.read_text().startswith("# ")


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Its walk over what all tests before have left may take longer than any script."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def cpu_ms(path: Path) -> float:
    """What playing it once takes of the processor: about 5 ms."""
    passages, stage = script.read(path), stage_of(path)
    began = time.thread_time()
    script.play(passages, stage)
    return (time.thread_time() - began) * 1_000


@pytest.mark.usefixtures("no_garbage_collection")
def test_there_are_enough_and_none_is_slow():
    assert len(SCRIPTS) >= SCRIPTS_MIN
    for path in SCRIPTS:
        took_ms = min(cpu_ms(path) for _ in range(PLAYS))
        assert took_ms < CPU_MS_MAX, f"{path.name} took {took_ms:.0f} ms"
