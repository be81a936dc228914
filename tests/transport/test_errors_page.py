"""docs/errors.md says of every reason what the code says."""

import re
from pathlib import Path

import peerd
from peerd.client.errors import CLASSES
from peerd.core.errors import Reason
from peerd.transport.status import CODES

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
ROW = re.compile(r"^\| `([A-Z_]+)`(?: ↻)? \| ([A-Z_]+) \| (no|unknown|–) \|", re.MULTILINE)
CLASS = re.compile(r"^\| `([A-Z_]+)`.* \| `(\w+)` \|$", re.MULTILINE)


def rows():
    return {name: code for name, code, _ in ROW.findall(PAGE.read_text("utf-8"))}


def test_the_page_lists_every_reason_once_and_no_other():
    listed = [name for name, _, _ in ROW.findall(PAGE.read_text("utf-8"))]
    assert sorted(listed) == sorted(reason.name for reason in Reason)


def test_the_page_gives_the_codes_that_are_sent():
    assert rows() == {reason.name: code.name for reason, code in CODES.items()}


def test_the_page_gives_the_classes_that_the_client_raises():
    given = dict(CLASS.findall(PAGE.read_text("utf-8")))
    assert given == {reason: kind.__name__ for reason, kind in CLASSES.items()}


def test_every_class_of_the_client_is_on_the_page():
    page = PAGE.read_text("utf-8")
    named = set(re.findall(r"`(\w+)`", page))
    bases = {"PeerdError", "AppendError", "ReadError"}
    assert {name for name in peerd.__all__ if _is_error(name)} - bases <= named


def _is_error(name):
    value = getattr(peerd, name)
    return isinstance(value, type) and issubclass(value, peerd.PeerdError)
