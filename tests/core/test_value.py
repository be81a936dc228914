"""Values are equal by their fields, may be keys, and the type checker lets nobody change one."""

import ast
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

from peerd.core.ids import Epoch, NodeName, Offset, ReplicaId, ShardId, StoreId
from peerd.core.messages import Ack

CORE = Path(__file__).parents[2] / "peerd" / "core"
SPOILING = """
from peerd.core.messages import Ack
def spoil(ack: Ack) -> None:
    ack.end = ack.end
"""


def acked(end: int) -> Ack:
    return Ack(shard=ShardId(1), epoch=Epoch(2), end=Offset(end))


def test_values_are_equal_and_hashed_by_their_fields():
    assert acked(3) == acked(3) != acked(4)
    assert hash(acked(3)) == hash(acked(3))
    one, other = (ReplicaId(NodeName(name), StoreId("store")) for name in "ab")
    assert one < other
    assert {one: 1}[ReplicaId(NodeName("a"), StoreId("store"))] == 1
    assert is_dataclass(Ack)
    assert [each.name for each in fields(Ack)] == ["shard", "epoch", "end"]
    assert not hasattr(acked(3), "__dict__")


def test_the_type_checker_refuses_to_change_a_value():
    command = [sys.executable, "-m", "mypy", "--config-file=", "-c", SPOILING]
    told = subprocess.run(command, cwd=CORE.parents[1], capture_output=True, text=True, check=False)
    assert 'Property "end" defined in "Ack" is read-only' in told.stdout


def test_each_use_says_frozen_since_the_type_checker_reads_that():
    uses = [
        decorator
        for path in CORE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "value"
    ]
    assert len(uses) > 50
    for use in uses:
        options = {each.arg: ast.unparse(each.value) for each in use.keywords}
        assert options.get("frozen") == "True"
        assert options.get("slots") == "True"
