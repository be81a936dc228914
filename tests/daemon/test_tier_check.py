"""`peerd check` opens the tier, says what is wrong with it, and changes nothing."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peerd.cli.peerctl import app as peerctl_app
from peerd.cli.peerd import app
from peerd.daemon import tier_check
from peerd.storage.directory import StoreDirectory
from peerd.storage.errors import NotAStore
from peerd.tier.directory import DirectoryBackend
from peerd.tier.errors import NoCredentials
from peerd.tier.keys import NO_KEYS, ring_of
from peerd.tier.store import TierStore
from peerd.tier.writing import put_object
from tests.daemon.test_process import settings
from tests.tier.objects import LISTED, batches_of, object_of

KEY = b"k" * 32


def checked(tmp_path: Path, tier: dict[str, str]) -> tuple[int, str]:
    config = settings(tmp_path, "127.0.0.1:7500")
    lines = "".join(f"{key} = {value}\n" for key, value in tier.items())
    config.write_text(config.read_text() + f"\n[tier]\n{lines}")
    done = CliRunner().invoke(app, ["check", "-c", str(config)])
    return done.exit_code, done.output


async def filled(root: Path, keys) -> None:
    store = TierStore(DirectoryBackend(root), deadline_ms=60_000, attempts=1)
    await put_object(store, keys, LISTED, *object_of(batches_of([2_000] * 4), keys=keys))


def everything(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def of_the_shop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer's store is of the cluster whose objects the tests put there."""
    monkeypatch.setattr(tier_check, "_cluster_id", lambda _: "shop")


def test_a_tier_that_is_not_there_yet_is_not_made(tmp_path: Path):
    status, said = checked(tmp_path, {"url": f'"file://{tmp_path}/cold/deep"'})
    assert status == 0
    assert f"would be made in {tmp_path}" in said
    assert "before it has registered" in said
    assert not (tmp_path / "cold").exists()


def test_a_key_that_everybody_may_read_is_told(tmp_path: Path):
    key, tier = tmp_path / "key", {"url": f'"file://{tmp_path}/cold"'}
    key.write_bytes(KEY)
    for mode, is_told in ((0o640, False), (0o644, True)):
        key.chmod(mode)
        status, said = checked(tmp_path, tier | {"key_files": json.dumps([str(key)])})
        assert status == 0
        assert (f"everybody on this host may read {key}" in said) is is_told


async def test_what_its_cluster_has_there_is_opened(tmp_path: Path, of_the_shop: None):
    root = tmp_path / "cold"
    await filled(root, ring_of([KEY]))
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "other").write_bytes(b"o" * 32)
    before = everything(root)
    url = f'"file://{root}"'
    line = await checked_line(tmp_path, url, [tmp_path / "key"])
    assert "1 logs of its cluster are there, 1 objects tried and opened; it may write" in line
    for keys in ([], [tmp_path / "other"]):
        with pytest.raises(Exception, match=r"tier\.key_files") as error:
            await checked_line(tmp_path, url, keys)
        assert error.value.code == "WRONG_KEY"
    assert everything(root) == before


async def checked_line(tmp_path: Path, url: str, keys: list[Path]) -> str:
    from peerd.daemon.config import load_config

    config = settings(tmp_path, "127.0.0.1:7500")
    told = json.dumps([str(key) for key in keys])
    config.write_text(config.read_text() + f"\n[tier]\nurl = {url}\nkey_files = {told}\n")
    return await tier_check.check_tier(load_config(config))


async def test_a_spoilt_object_is_told(tmp_path: Path, of_the_shop: None):
    root = tmp_path / "cold"
    await filled(root, NO_KEYS)
    path = next(root.rglob("*.chunk"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Exception, match=path.name) as error:
        await checked_line(tmp_path, f'"file://{root}"', [])
    assert error.value.code == "DAMAGED_OBJECT"


def test_nobody_there_and_no_key_file_end_with_a_code_and_advice(tmp_path: Path):
    tier = {"url": '"s3://cold"', "endpoint": '"http://127.0.0.1:9"', "deadline_ms": "2000"}
    (tmp_path / "id").write_text("id")
    tier |= dict.fromkeys(("access_key_id_file", "secret_access_key_file"), f'"{tmp_path}/id"')
    status, said = checked(tmp_path, tier)
    assert status == 2
    assert "tier: TIER_UNAVAILABLE: s3://cold at http://127.0.0.1:9" in said
    status, said = checked(tmp_path, {"url": '"file:///cold"', "key_files": '["/nowhere/key"]'})
    assert status == 2
    assert "tier: TIER_NOT_CONFIGURED: the key file /nowhere/key cannot be read" in said


def test_no_credentials_end_with_a_code_and_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither files, nor the environment, nor a role of the machine."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    tier = {"url": '"s3://cold"', "endpoint": '"http://127.0.0.1:9"', "deadline_ms": "5000"}
    status, said = checked(tmp_path, tier | {"attempts": "1"})
    assert status == 2
    (told,) = [line for line in said.splitlines() if "tier" in line]
    assert "tier: NO_CREDENTIALS: nobody said who asks s3://cold at http://127.0.0.1:9" in told
    assert "set tier.access_key_id_file and tier.secret_access_key_file" in told
    lines = "".join(f"{key} = {value}\n" for key, value in tier.items())
    (tmp_path / "tier.toml").write_text(f"[tier]\nattempts = 1\n{lines}")
    done = CliRunner().invoke(
        peerctl_app, ["backup", "list", "--tier", str(tmp_path / "tier.toml")]
    )
    assert done.exit_code == 1
    assert "NO_CREDENTIALS: nobody said who asks" in done.output


def test_a_directory_that_this_user_may_not_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may everything
    with pytest.raises(NoCredentials, match="may not read and write"):
        tier_check._directory(f"file://{tmp_path}")


def test_the_cluster_is_that_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert tier_check._cluster_id(tmp_path) == ""

    class Manifest:
        cluster_id = "shop"

    monkeypatch.setattr(StoreDirectory, "read_manifest", lambda _: Manifest)
    assert tier_check._cluster_id(tmp_path) == "shop"
    with pytest.raises(NotAStore):
        raise NotAStore(tmp_path, "as above")
