"""Suspicions: of whom, when, how often, and never because this process slept."""

import asyncio
import socket

import pytest

from peerd.core.ids import BootId, NodeName, ProcessId, StoreId
from peerd.daemon.neighbours import Neighbours, refuses_connections
from peerd.daemon.supervisor import Supervisor
from tests.daemon.fleet import until

PERIOD_MS = 250
OTHER = ProcessId(NodeName("peer-2"), StoreId("2" * 32), BootId("b" * 32))


class Bench:
    def __init__(self) -> None:
        self.now_ms = 0
        self.told: list[tuple[str, str, bool, int]] = []
        self.neighbours = Neighbours(
            frame_period_ms=PERIOD_MS,
            now_ms=lambda: self.now_ms,
            supervisor=Supervisor(),
            report=lambda *fact: self.told.append(fact),
        )
        # Nothing listens there: a port that was free a moment ago, on an address of our own.
        self.neighbours.expect({OTHER.peer: "not an address"})

    def pass_ms(self, duration_ms: int) -> None:
        for _ in range(duration_ms // self.neighbours.look_period_ms):
            self.now_ms += self.neighbours.look_period_ms
            self.neighbours.look()


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_four_missing_frames_make_a_suspect_of_the_process_that_was_heard(bench) -> None:
    bench.neighbours.heard(OTHER)
    bench.pass_ms(750)
    assert bench.told == []
    bench.pass_ms(250)
    assert bench.told == [(OTHER.peer, OTHER.boot, False, 1000)]


async def test_a_suspicion_is_told_again_only_while_it_lasts(bench) -> None:
    bench.neighbours.heard(OTHER)
    bench.pass_ms(3000)
    assert [silent_ms for _, _, _, silent_ms in bench.told] == [1000, 2000, 3000]
    bench.neighbours.heard(OTHER)
    bench.pass_ms(750)
    assert len(bench.told) == 3
    assert bench.neighbours.silent_ms(OTHER.peer) == 750


async def test_who_answers_pings_is_judged_by_answers_alone(bench) -> None:
    """What a peer sends while nothing reaches it any more does not count."""
    bench.neighbours.answered(OTHER, a_ping=True)
    for _ in range(4):
        bench.pass_ms(250)
        bench.neighbours.heard(OTHER)
    assert [silent_ms for _, _, _, silent_ms in bench.told] == [1000]
    bench.neighbours.answered(OTHER, a_ping=False)
    bench.pass_ms(750)
    assert len(bench.told) == 1


async def test_who_answers_no_pings_is_judged_by_what_comes(bench) -> None:
    """An earlier version knows none; acknowledgements alone stop when nothing is appended."""
    bench.neighbours.answered(OTHER, a_ping=False)
    for _ in range(8):
        bench.pass_ms(250)
        bench.neighbours.heard(OTHER)
    assert bench.told == []


async def test_without_a_stream_to_it_what_comes_counts_again(bench) -> None:
    bench.neighbours.answered(OTHER, a_ping=True)
    bench.neighbours.stream_broke(OTHER)
    for _ in range(8):
        bench.pass_ms(250)
        bench.neighbours.heard(OTHER)
    assert bench.told == []


async def test_another_process_of_the_same_name_begins_anew(bench) -> None:
    bench.neighbours.answered(OTHER, a_ping=True)
    after = ProcessId(OTHER.peer, OTHER.replica.store, BootId("c" * 32))
    bench.pass_ms(500)
    bench.neighbours.heard(after)
    bench.pass_ms(750)
    assert bench.told == []


async def test_a_silence_is_told_soon_after_it_has_lasted_long_enough(bench) -> None:
    """Wherever between two looks the last frame came."""
    bench.pass_ms(500)
    bench.now_ms += 1
    bench.neighbours.heard(OTHER)
    bench.now_ms -= 1
    bench.pass_ms(1_000)
    assert bench.told == []
    bench.pass_ms(50)
    assert [silent_ms for _, _, _, silent_ms in bench.told] == [1_049]


async def test_who_was_never_heard_or_is_no_neighbour_is_no_suspect(bench) -> None:
    bench.pass_ms(5000)
    assert bench.told == []
    bench.neighbours.heard(ProcessId(NodeName("stranger"), OTHER.store, OTHER.boot))
    assert bench.neighbours.silent_ms(NodeName("stranger")) is None
    bench.neighbours.heard(OTHER)
    bench.neighbours.expect({})
    bench.pass_ms(5000)
    assert bench.told == []


async def test_a_hang_of_the_own_loop_is_no_silence_of_others(bench) -> None:
    bench.neighbours.heard(OTHER)
    bench.now_ms += 5000
    bench.neighbours.look()
    assert bench.told == []
    bench.pass_ms(950)
    assert bench.told == []
    bench.pass_ms(50)
    assert len(bench.told) == 1


async def test_a_refused_connection_is_told_at_once_and_not_in_a_flood(bench) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses, and stays ours
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        bench.neighbours.expect({OTHER.peer: address})
        bench.neighbours.heard(OTHER)
        bench.now_ms += 10
        for _ in range(5):
            bench.neighbours.stream_broke(OTHER)
        await until(lambda: bench.told, "it is told")
    assert bench.told == [(OTHER.peer, OTHER.boot, True, 10)]
    # A later break of a stream with an older process says nothing about the one heard now.
    bench.neighbours.stream_broke(ProcessId(OTHER.peer, OTHER.store, BootId("a" * 32)))
    assert not bench.neighbours._probing


async def test_only_a_refusal_counts_as_one() -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert not await refuses_connections(address)
    server.close()
    await server.wait_closed()
    assert await refuses_connections(address)
    assert not await refuses_connections("no.such.host.invalid:1")
    assert not await refuses_connections("")
