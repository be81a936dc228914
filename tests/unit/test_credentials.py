"""Certificates that are replaced while both ends run."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from peerd.pki import (
    Authority,
    Role,
    TlsFiles,
    begin_rotation,
    create_authority,
    finish_rotation,
    load_authority,
    switch_rotation,
)
from peerd.transport.channels import Channels
from peerd.transport.credentials import LOOK_EVERY_S, Credentials
from peerd.transport.options import SERVER_OPTIONS

HOSTS = ["127.0.0.1", "localhost"]


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def pass_a_look(self) -> None:
        self.now_s += LOOK_EVERY_S


class Ends:
    """A peer that serves and an administrator that calls, of one authority."""

    def __init__(self, directory: Path):
        self.pki = directory / "pki"
        create_authority(self.pki, "shop")
        self.clock = Clock()
        self.refusals: list[str] = []
        self.renewals: list[str] = []
        self.files = {role: self.issue(role) for role in (Role.PEER, Role.ADMIN)}
        self.peer, self.admin = (
            Credentials(
                self.files[role],
                on_renewed=self.renewals.append,
                on_refused=self.refusals.append,
                clock=self.clock,
            )
            for role in (Role.PEER, Role.ADMIN)
        )

    def issue(self, role: Role, name: str = "", authority: Authority | None = None) -> TlsFiles:
        directory = self.pki.parent / role.value
        return (authority or load_authority(self.pki)).issue(
            role, name or f"{role.value}-1", HOSTS, directory, 7, overwrite=True
        )


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    return Ends(tmp_path)


@asynccontextmanager
async def serving(credentials: Credentials) -> AsyncIterator[str]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(health_aio.HealthServicer(), server)
    port = server.add_secure_port("127.0.0.1:0", credentials.server())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def call(channel: grpc.aio.Channel) -> None:
    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


async def fails(channel: grpc.aio.Channel) -> bool:
    try:
        await call(channel)
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


async def test_an_authority_is_replaced_while_both_ends_run(ends):
    async with serving(ends.peer) as address:
        channels = Channels(ends.admin)
        first = channels.to(address)
        await call(first)
        begin_rotation(ends.pki)
        for role in (Role.PEER, Role.ADMIN):
            ends.issue(role)  # of the old authority still, with both in ca.pem
        ends.clock.pass_a_look()
        await call(channels.to(address))
        switch_rotation(ends.pki)
        for role in (Role.PEER, Role.ADMIN):
            ends.issue(role)
        ends.clock.pass_a_look()
        await call(channels.to(address))
        finish_rotation(ends.pki)
        for role in (Role.PEER, Role.ADMIN):
            ends.issue(role)
        ends.clock.pass_a_look()
        last = channels.to(address)
        assert last is not first
        await call(last)
        # What is open stays open; who comes anew with what was replaced stays out.
        await call(first)
        assert ends.refusals == []
        await channels.close()


async def test_a_server_takes_a_new_authority_with_the_next_connection(ends, tmp_path):
    other = create_authority(tmp_path / "other", "shop")
    stranger = Credentials(other.issue(Role.ADMIN, "admin-1", HOSTS, tmp_path / "stranger", 7))
    async with serving(ends.peer) as address:
        early = Channels(stranger)
        assert await fails(early.to(address))
        await early.close()
        for file in ends.files[Role.PEER].ca.parent.iterdir():
            file.unlink()
        ends.issue(Role.PEER, authority=other)
        ends.clock.pass_a_look()
        late = Channels(stranger)
        await call(late.to(address))
        await late.close()
        old = Channels(ends.admin)
        assert await fails(old.to(address))
        await old.close()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda ends: ends.files[Role.PEER].key.write_bytes(b""), "holds no private key"),
        (lambda ends: ends.files[Role.PEER].ca.unlink(), "does not exist"),
        (
            lambda ends: ends.files[Role.PEER].certificate.write_bytes(
                ends.files[Role.ADMIN].certificate.read_bytes()
            ),
            "is not the key of",
        ),
        (
            lambda ends: [
                getattr(ends.files[Role.PEER], which).write_bytes(
                    getattr(ends.files[Role.ADMIN], which).read_bytes()
                )
                for which in ("key", "certificate")
            ],
            "not for spiffe://shop/peer/peer-1",
        ),
    ],
    ids=["empty key", "no authority", "half a renewal", "another's"],
)
async def test_what_is_not_sound_is_not_taken_and_told_once(ends, harm, words):
    async with serving(ends.peer) as address:
        harm(ends)
        for _ in range(3):
            ends.clock.pass_a_look()
            channels = Channels(ends.admin)
            await call(channels.to(address))
            await channels.close()
        (said,) = ends.refusals
        assert words in said
        assert "stays in use" in said
        assert ends.peer.generation == 1


async def test_a_renewal_that_is_completed_is_taken(ends):
    key = ends.files[Role.PEER].key
    before = key.read_bytes()
    ends.issue(Role.PEER)
    after = key.read_bytes()
    key.write_bytes(before)
    ends.clock.pass_a_look()
    assert ends.peer.channel()[0] == 1
    key.write_bytes(after)
    ends.clock.pass_a_look()
    assert ends.peer.channel()[0] == 2
    assert len(ends.refusals) == len(ends.renewals) == 1


def test_files_are_looked_at_once_a_second_at_most(ends):
    ends.issue(Role.PEER)
    ends.clock.now_s += LOOK_EVERY_S / 2
    assert ends.peer.channel()[0] == 1
    ends.clock.now_s += LOOK_EVERY_S / 2
    assert ends.peer.channel()[0] == 2


def test_what_is_left_of_a_certificate_follows_its_renewal(ends):
    day_s = 24 * 3_600.0
    assert 6 * day_s < ends.peer.expires_in_s() < 7 * day_s
    load_authority(ends.pki).issue(
        Role.PEER, "peer-1", HOSTS, ends.pki.parent / "peer", 30, overwrite=True
    )
    ends.clock.pass_a_look()
    assert 29 * day_s < ends.peer.expires_in_s() < 30 * day_s


async def test_retired_channels_end_with_the_pool(ends):
    async with serving(ends.peer) as address:
        channels = Channels(ends.admin)
        first = channels.to(address)
        await call(first)
        channels.retire(address)
        assert channels.to(address) is not first
        await call(first)
        await channels.close()
        with pytest.raises((grpc.aio.UsageError, asyncio.CancelledError)):
            await call(first)
