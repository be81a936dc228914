"""`peerd verify`: what it says, and with which status."""

from typer.testing import CliRunner

from peerd.cli.peerd import app
from peerd.core.ids import Offset
from peerd.storage import StorageOptions, examine
from peerd.storage.layout import batch_key
from tests.storage.driving import EPOCH, SHARD, Driven, adopt, append, placed
from tests.storage.test_damage import damage_row, flipped


def store_of(directory):
    driven = Driven(directory, StorageOptions())
    driven.stored(adopt(), append(*(placed(base, b"x" * 9_000) for base in range(20)), commit=20))
    assert driven.store.close()
    return directory


def verify(directory):
    done = CliRunner().invoke(app, ["verify", str(directory)])
    return done.exit_code, done.stdout, done.stderr


def test_a_sound_store(tmp_path):
    status, out, progress = verify(store_of(tmp_path / "store"))
    assert status == 0
    assert "20 batches, 20 records" in out
    assert out.endswith("sound\n")
    assert progress.startswith("peerd: 0 MiB of a file of ")


def test_damaged_batches_are_named_and_the_store_is_fit(tmp_path):
    directory = store_of(tmp_path / "store")
    for base in (3, 11):
        damage_row(directory, batch_key(SHARD, EPOCH, Offset(base), 1), flipped(7))
    status, out, _ = verify(directory)
    assert status == 1
    assert "offset 3 is damaged" in out
    assert "offset 11 is damaged" in out
    assert "2 batches must be fetched again" in out
    assert out.endswith("not sound\n")


def test_a_damaged_row_or_page_makes_it_unfit(tmp_path):
    directory = store_of(tmp_path / "store")
    damage_row(directory, batch_key(SHARD, EPOCH, Offset(0))[:16], flipped(3), "segments")
    assert verify(directory)[0] == 74
    page = store_of(tmp_path / "other") / "data.mdb"
    data = bytearray(page.read_bytes())
    data[2 * 4_096 + 12] ^= 0x40
    page.write_bytes(data)
    assert verify(tmp_path / "other")[0] == 74


def test_what_is_no_store_or_is_in_use_is_one_line(tmp_path):
    status, _, error = verify(tmp_path)
    assert status == 1
    assert len(error.splitlines()) == 1
    driven = Driven(tmp_path / "store", StorageOptions())
    status, _, error = verify(tmp_path / "store")
    assert status == 1
    assert len(error.splitlines()) == 1
    assert driven.store.close()


def test_progress_is_told_by_and_by(tmp_path, monkeypatch):
    monkeypatch.setattr(examine, "_READ_SLICE_BYTES", 10_000)
    told = []
    directory = store_of(tmp_path / "store")
    examine.examine(directory, examine.Depth.FULL, lambda report: told.append(report.payload_bytes))
    assert told == sorted(told)
    assert (told[0], len(set(told))) == (0, 10)
