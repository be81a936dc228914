"""Files past the page cache: all bytes and no others, also where there are no such files."""

import errno
import os

import pytest

from peerd.tier import direct
from peerd.tier.direct import BUFFER_BYTES, DirectFiles

SIZES = (0, 1, 4_095, 4_096, 4_097, BUFFER_BYTES, BUFFER_BYTES + 4_097)


def some(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(range(size % 251))


class Kernel:
    """`os.open`, which notes what was asked for, and refuses what it is told to."""

    def __init__(self, refuses: int = 0) -> None:
        self._open = os.open
        self._refuses = refuses
        self.opened: list[int] = []

    def __call__(self, path, flags, mode=0o777):
        self.opened.append(flags)
        if flags & self._refuses:
            raise OSError(errno.EINVAL, "no such files here")
        return self._open(path, flags, mode)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("data", [bytes, bytearray])
def test_what_was_written_is_what_is_there_and_each_other_byte_is_seen(tmp_path, size, data):
    files, path, wanted = DirectFiles(), tmp_path / "one", data(some(size))
    files.write(path, wanted)
    assert path.read_bytes() == wanted
    assert path.stat().st_mode & 0o777 & ~0o666 == 0
    assert files.holds(path, 0, size, wanted)
    assert files.holds(path, size // 3, size, wanted)
    assert not files.holds(path, 0, size + 1, wanted + b"\0")
    for at in {0, size // 2, size - 1} if size else ():
        spoilt = bytearray(wanted)
        spoilt[at] ^= 1
        assert not files.holds(path, 0, size, spoilt)
        assert not files.holds(path, at, at + 1, spoilt)
        assert files.holds(path, at + 1, size, spoilt)


def test_a_file_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "one").write_bytes(b"there")
    with pytest.raises(FileExistsError):
        DirectFiles().write(tmp_path / "one", b"other")
    assert (tmp_path / "one").read_bytes() == b"there"


def test_it_is_written_and_compared_past_the_cache(tmp_path, monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(direct.os, "open", kernel)
    files = DirectFiles()
    files.write(tmp_path / "one", b"first")
    assert files.holds(tmp_path / "one", 0, 5, b"first")
    assert len(kernel.opened) >= 2
    assert all(flags & os.O_DIRECT for flags in kernel.opened[:1] + kernel.opened[-1:])


def test_a_file_system_without_such_files_gets_it_through_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(direct.os, "open", Kernel(refuses=os.O_DIRECT))
    files, wanted = DirectFiles(), some(10_000)
    files.write(tmp_path / "one", wanted)
    assert (tmp_path / "one").read_bytes() == wanted
    assert files.holds(tmp_path / "one", 0, 10_000, wanted)
    assert not files.holds(tmp_path / "one", 0, 10_000, wanted[:-1] + b"?")


def test_one_that_refuses_half_way_is_begun_again_through_the_cache(tmp_path, monkeypatch):
    write, refused = os.write, []

    def short_then_refused(descriptor, data):
        if len(refused) < 2:
            refused.append(len(data))
            if len(refused) == 2:
                raise OSError(errno.EINVAL, "not there")
            return write(descriptor, data[:4_096])
        return write(descriptor, data)

    monkeypatch.setattr(direct.os, "write", short_then_refused)
    wanted = some(20_000)
    DirectFiles().write(tmp_path / "one", wanted)
    assert len(refused) == 2
    assert (tmp_path / "one").read_bytes() == wanted


def test_a_disk_that_fails_is_told(tmp_path, monkeypatch):
    def fails(descriptor, data):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(direct.os, "write", fails)
    with pytest.raises(OSError, match="full"):
        DirectFiles().write(tmp_path / "one", b"first")
