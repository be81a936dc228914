"""The page that ties the model, the acceptor and the code together names what is there."""

import importlib
import re
from pathlib import Path

from peerd.testing.acceptor import actions, planning

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/conformance.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and "`" in line
]


def functions_of(module) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if callable(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def test_every_action_of_the_model_is_listed():
    source = (ROOT / "spec/replication.cpp").read_text("utf-8")
    named = set()
    for text in re.findall(r"^// Actions? ([^.:]*)[.:]", source, re.MULTILINE):
        without_remarks = re.sub(r"\([^)]*\)", "", text).split(",")[0]
        named |= set(re.findall(r"\b[A-Z][A-Za-z]+\b", without_remarks))
    assert len(named) > 20
    assert named <= {row[0] for row in ROWS}


def test_every_function_of_the_acceptor_is_listed_and_every_listed_one_exists():
    listed = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[1])}
    assert listed == functions_of(actions) | functions_of(planning)


def test_every_listed_function_of_the_code_exists():
    for row in ROWS:
        for module, path in re.findall(r"`([\w.]+):([\w.]+)`", row[2]):
            found = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
            assert callable(found), row
