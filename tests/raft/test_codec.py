"""Command bytes: what the library loads is what was given, and nothing else gets that far."""

import ast
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import las.raft
from las.raft.codec import NO_OP, command_of, text_of


@given(st.text())
def test_the_library_sees_the_text_as_the_one_argument(text):
    command = command_of(text)
    assert command[:1] == b"\x00"
    assert pickle.loads(command[1:]) == (0, (text,))
    assert text_of(command) == text


def test_a_no_op_has_no_text():
    assert command_of(None) == NO_OP
    assert text_of(NO_OP) is None


@given(st.binary())
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match="not a command"):
        text_of(b"\x00" + data)


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"\x00",
        b"\x02" + pickle.dumps(["add", "x"], 2),
        b"\x03" + pickle.dumps(1, 2),
        b"\x00" + pickle.dumps((0, ("x",)), 2),
        b"\x00" + pickle.dumps((1, ("x",)), 2),
        command_of("abc")[:-1],
        command_of("abc") + b".",
    ],
)
def test_what_the_library_itself_would_make_is_refused(command):
    with pytest.raises(ValueError, match="not a command"):
        text_of(command)


def test_no_module_of_the_package_can_unpickle():
    """Nothing from a peer or a disk is ever loaded as objects."""
    for path in Path(las.raft.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *[alias.name for alias in node.names]]
            assert not {"pickle", "marshal", "shelve", "dill"} & set(names), path
