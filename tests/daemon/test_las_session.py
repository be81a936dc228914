"""The line to the LAS: finds the leader, repeats reports until answered, ends on what is final."""

import asyncio

import pytest
import structlog.testing

from las.v1 import fleet_pb2, shard_map_pb2
from peerd.core.errors import Reason
from peerd.daemon.errors import EXIT_FAILED, RegistrationRefused, Superseded
from peerd.daemon.las_session import LasSession
from peerd.daemon.reports import REPORTS_MAX, report_key
from peerd.pki import Identity, Role
from peerd.transport.channels import Channels
from peerd.transport.status import Refused, refusal
from peerd.transport.tls import plaintext_metadata
from tests.daemon.fleet import CLUSTER, StandInLas, until


class Client:
    def __init__(self) -> None:
        self.versions: list[int] = []
        self.windows: list[bool] = []
        self.current = 0

    def registration(self) -> fleet_pb2.RegisterRequest:
        return fleet_pb2.RegisterRequest(store_id="s", boot_id="b", address="127.0.0.1:1")

    async def registered(self, cluster_id: str) -> None:
        assert cluster_id

    def map_updated(self, update: shard_map_pb2.MapUpdate) -> None:
        self.versions.append(update.version)

    def map_current(self) -> None:
        self.current += 1

    def heartbeat(self, *, whole_window: bool) -> fleet_pb2.HeartbeatRequest:
        self.windows.append(whole_window)
        return fleet_pb2.HeartbeatRequest(boot_id="b", map_version=self.versions[-1])


@pytest.fixture
async def channels():
    channels = Channels(
        None, plaintext_metadata(Identity(cluster=CLUSTER, role=Role.PEER, name="peer-1"))
    )
    yield channels
    await channels.close()


def session_of(addresses: list[str], channels: Channels, client: Client) -> LasSession:
    return LasSession(addresses, channels, client, boot_id="b", explain=lambda _: "the test knows")


async def running(session: LasSession):
    task = asyncio.ensure_future(session.run())
    await asyncio.sleep(0)
    return task


async def cancelled(task: asyncio.Future) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def holder_added(epoch: int) -> fleet_pb2.PeerReport:
    return fleet_pb2.PeerReport(holder_added=fleet_pb2.HolderAdded(shard=1, epoch=epoch))


async def test_it_follows_the_hint_to_the_leader(las: StandInLas, channels: Channels) -> None:
    follower = StandInLas()
    await follower.start()
    follower.refuse_with = Refused(
        refusal(Reason.NOT_LAS_LEADER, "las-2 leads", leader=las.address)
    )
    client = Client()
    session = session_of([follower.address], channels, client)
    task = await running(session)
    await until(lambda: len(client.windows) > 2, "heartbeats")
    assert client.windows[0]
    assert not any(client.windows[1:])
    assert session.statistics().connected
    await cancelled(task)
    await follower.stop()


async def test_a_new_session_gets_the_whole_window(las: StandInLas, channels: Channels) -> None:
    client = Client()
    task = await running(session_of([las.address], channels, client))
    await until(lambda: len(client.windows) > 1, "heartbeats")
    address = las.address
    await las.stop()
    await las.start(address)
    await until(lambda: client.windows.count(True) == 2, "a second session")
    await cancelled(task)


async def test_a_report_is_repeated_until_it_is_answered_and_kept_once(
    las: StandInLas, channels: Channels
) -> None:
    address = las.address
    await las.stop()
    session = session_of([address], channels, Client())
    for _ in range(3):
        session.report(holder_added(1))
    session.report(holder_added(2))
    assert session.statistics().reports_waiting == 2
    assert not await session.flush(timeout_s=0.01)
    task = await running(session)
    await las.start(address)
    assert await session.flush(timeout_s=20)
    assert [report.epoch for _, report in las.reported("holder_added")] == [1, 2]
    await cancelled(task)


async def test_evidence_does_not_wait_for_facts_that_are_being_committed(
    las: StandInLas, channels: Channels
) -> None:
    session = session_of([las.address], channels, Client())
    las.facts_may_commit.clear()
    session.report(holder_added(1))
    task = await running(session)
    await until(lambda: las.committing, "the fact is on its way")
    session.report(fleet_pb2.PeerReport(suspect=fleet_pb2.Suspect(peer="peer-2")))
    await until(lambda: las.reported("suspect"), "the suspicion arrives")
    assert not las.reported("holder_added")
    las.facts_may_commit.set()
    assert await session.flush(timeout_s=20)
    await cancelled(task)


async def test_reports_that_the_las_does_not_understand_are_dropped_and_nothing_else(
    las: StandInLas, channels: Channels
) -> None:
    las.refuse_reports_with = Refused(refusal(Reason.INVALID_ARGUMENT, "what is that?"))
    client = Client()
    session = session_of([las.address], channels, client)
    session.report(holder_added(1))
    task = await running(session)
    assert await session.flush(timeout_s=20)
    heartbeats = len(client.windows)
    await until(lambda: len(client.windows) > heartbeats + 1, "the session goes on")
    assert len(las.registrations) == 1
    await cancelled(task)


async def test_too_many_reports_are_dropped_and_counted(channels: Channels) -> None:
    session = session_of(["127.0.0.1:1"], channels, Client())
    for epoch in range(REPORTS_MAX + 3):
        session.report(holder_added(epoch))
    assert session.statistics().reports_waiting == REPORTS_MAX
    assert session.statistics().reports_dropped == 3


@pytest.mark.parametrize("reason", [Reason.WRONG_CLUSTER, Reason.STORE_ID_CHANGED])
async def test_what_trying_again_cannot_mend_is_final(
    las: StandInLas, channels: Channels, reason: Reason
) -> None:
    las.refuse_with = Refused(refusal(reason, "another directory"))
    session = session_of([las.address], channels, Client())
    with pytest.raises(RegistrationRefused, match="another directory"):
        await asyncio.wait_for(session.run(), 20)


async def test_a_process_that_another_one_has_displaced_ends_and_may_be_started_again(
    las: StandInLas, channels: Channels
) -> None:
    client = Client()
    task = await running(session_of([las.address], channels, client))
    await until(lambda: client.windows, "heartbeats")
    # The registration of a process that died before comes late.
    las.refuse_with = Refused(refusal(Reason.PROCESS_SUPERSEDED, "a newer process has registered"))
    address = las.address
    await las.stop()
    await las.start(address)
    with pytest.raises(Superseded, match="start it again") as ended:
        await asyncio.wait_for(task, 20)
    assert ended.value.exit_status == EXIT_FAILED


async def test_an_las_that_lost_its_past_is_told_once_a_minute_and_asked_again(
    las: StandInLas, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    las.refuse_with = Refused(refusal(Reason.LAS_LOST_ITS_PAST, "the store has shard 9"))
    client, asked = Client(), []
    registration = client.registration
    monkeypatch.setattr(client, "registration", lambda: asked.append(1) or registration())
    with structlog.testing.capture_logs() as logs:
        task = await running(session_of([las.address], channels, client))
        await until(lambda: len(asked) >= 3, "it asks again")
        las.refuse_with = None
        await until(lambda: client.current, "a session")
        await cancelled(task)
    told = [line for line in logs if line["log_level"] == "critical"]
    assert [line["why"] for line in told] == ["the store has shard 9"]


async def test_anything_else_is_tried_again(
    las: StandInLas, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    las.refuse_with = Refused(refusal(Reason.LAS_UNAVAILABLE, "no leader"))
    client, asked = Client(), []
    registration = client.registration
    monkeypatch.setattr(client, "registration", lambda: asked.append(1) or registration())
    task = await running(session_of([las.address], channels, client))
    await until(lambda: len(asked) >= 2, "it was refused, and asks again")
    las.refuse_with = None
    await until(lambda: client.current, "a session")
    await cancelled(task)


async def test_a_leader_that_hangs_is_left(
    las: StandInLas, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerd.daemon.las_session.SILENCE_S_MIN", 0.1)
    client = Client()
    las.answers_heartbeats = False
    task = await running(session_of([las.address], channels, client))
    await until(lambda: len(las.registrations) > 1, "it registers again")
    await cancelled(task)


def test_reports_are_told_apart_by_what_they_are_about() -> None:
    keys = {
        report_key(report)
        for report in (
            holder_added(1),
            holder_added(2),
            fleet_pb2.PeerReport(stall=fleet_pb2.Stall(shard=1, epoch=1)),
            fleet_pb2.PeerReport(suspect=fleet_pb2.Suspect(peer="p", connection_refused=True)),
            fleet_pb2.PeerReport(suspect=fleet_pb2.Suspect(peer="p")),
            fleet_pb2.PeerReport(storage_failed=fleet_pb2.StorageFailed(why="x")),
        )
    }
    assert len(keys) == 6
    one = fleet_pb2.PeerReport(stall=fleet_pb2.Stall(shard=1, epoch=1, stalled_ms=500))
    two = fleet_pb2.PeerReport(stall=fleet_pb2.Stall(shard=1, epoch=1, stalled_ms=900))
    assert report_key(one) == report_key(two)
