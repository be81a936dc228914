"""LMDB's data file as bytes: what its two meta pages say, read without mapping the file.

The layout is that of LMDB 0.9 on a 64-bit machine in its own byte order. Nothing here trusts the
file, and nothing here can be killed by it.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC = 0xBEEFC0DE
_DATA_VERSION = 1
_META_FLAG = 0x08
_PAGE_BYTES_MIN, _PAGE_BYTES_MAX = 256, 0x8000

# Page header: page number, padding, flags, bounds. Then the meta: magic, version, address, map
# size, two database records (page size in the first four bytes of the first), last page,
# transaction.
_META = struct.Struct("=QHH4xIIQQI44x48xQQ")


class DataFileDamaged(Exception):
    """The file must not be mapped; the message says why, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """What the newer meta page says, and the file's length."""

    page_bytes: int
    last_page: int
    transaction: int
    file_bytes: int

    @property
    def needed_bytes(self) -> int:
        """Length that holds every page up to the last one in use."""
        return (self.last_page + 1) * self.page_bytes


@dataclass(frozen=True, slots=True)
class _MetaPage:
    page_bytes: int
    last_page: int
    transaction: int


def read_data_file(path: Path) -> DataFile:
    """Check both meta pages and tell what the newer one says. Raises `DataFileDamaged`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataFileDamaged(f"{path.name} cannot be opened ({error.strerror})") from error
    try:
        first = _read_meta_page(descriptor, path, number=0, at=0)
        second = _read_meta_page(descriptor, path, number=1, at=first.page_bytes)
        file_bytes = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if second.page_bytes != first.page_bytes:
        raise DataFileDamaged(f"the meta pages of {path.name} name different page sizes")
    newer = max(first, second, key=lambda meta: meta.transaction)
    return DataFile(
        page_bytes=newer.page_bytes,
        last_page=newer.last_page,
        transaction=newer.transaction,
        file_bytes=file_bytes,
    )


def _read_meta_page(descriptor: int, path: Path, *, number: int, at: int) -> _MetaPage:
    try:
        data = os.pread(descriptor, _META.size, at)
    except OSError as error:
        raise DataFileDamaged(f"{path.name} cannot be read ({error.strerror})") from error
    if len(data) < _META.size:
        raise DataFileDamaged(f"{path.name} ends before its meta page {number}")
    page, _, flags, magic, version, _, _, page_bytes, last_page, transaction = _META.unpack(data)
    sound = (
        page == number
        and flags & _META_FLAG
        and magic == _MAGIC
        and version == _DATA_VERSION
        and _PAGE_BYTES_MIN <= page_bytes <= _PAGE_BYTES_MAX
        and page_bytes.bit_count() == 1
        # Transaction n is written to meta page n mod 2; a new file has 0 in both.
        and (transaction == 0 or transaction % 2 == number)
    )
    if not sound:
        raise DataFileDamaged(f"meta page {number} of {path.name} is not one of LMDB 0.9's")
    return _MetaPage(page_bytes, last_page, transaction)
