"""The asyncio and the blocking face are one library: same names, same arguments, same defaults."""

import inspect

import pytest

import peerd
import peerd.aio
from peerd.client import blocking
from peerd.client.las import LasCalls
from peerd.client.positions import Positions
from peerd.client.reading import RecordStream

PAIRS = [
    (peerd.aio.Client, peerd.Client),
    (peerd.aio.Producer, peerd.Producer),
    (RecordStream, blocking.RecordIterator),
    (Positions, blocking.BlockingPositions),
    (LasCalls, blocking.BlockingLas),
]
# What asyncio spells in its own way, or what only one side can have.
ASYNC_ONLY = {
    # Records are handed over in bulk by the blocking iterator itself.
    RecordStream: {"take", "aclose", "commit_is_due", "begin"},
    # `Client` has it, with the wait for the map.
    LasCalls: {
        "create_log",
        "list_logs",
        "describe_log",
        "split_shard",
        "set_copies",
        "set_retention",
        "set_tier",
        "set_compression",
        "trim_shard",
        "call",
    },
}
BLOCKING_ONLY = {blocking.RecordIterator: {"close"}}


def public(kind):
    return {
        name: member
        for name, member in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }


def parameters(function):
    return [
        (name, parameter.kind, parameter.default, parameter.annotation)
        for name, parameter in inspect.signature(function).parameters.items()
    ]


@pytest.mark.parametrize(("asynchronous", "plain"), PAIRS, ids=lambda kind: kind.__name__)
def test_both_faces_have_the_same_methods(asynchronous, plain):
    there = public(asynchronous).keys() - ASYNC_ONLY.get(asynchronous, set())
    here = public(plain).keys() - BLOCKING_ONLY.get(plain, set())
    assert there == here


@pytest.mark.parametrize(("asynchronous", "plain"), PAIRS, ids=lambda kind: kind.__name__)
def test_both_faces_take_the_same_arguments(asynchronous, plain):
    there, here = public(asynchronous), public(plain)
    for name in there.keys() & here.keys():
        if isinstance(there[name], property):
            assert isinstance(here[name], property), name
            continue
        assert parameters(there[name]) == parameters(here[name]), name
        if inspect.iscoroutinefunction(there[name]):
            returned = [inspect.signature(face[name]).return_annotation for face in (there, here)]
            assert returned[0] == returned[1], name


def test_both_doors_are_opened_in_the_same_way():
    assert parameters(peerd.connect) == parameters(peerd.aio.connect)
