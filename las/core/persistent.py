"""A map that is never changed, only succeeded: what makes a snapshot of the cluster state O(1).

Keys are spread over `BUCKETS` small dicts. A successor copies one bucket and the row of buckets and
shares everything else, so replacing one of 100,000 entries copies some 200 of them.

Invariants: a `PersistentMap` that exists never changes; equal keys and values make equal maps. The
order of iteration depends on the history of a map and is therefore **not** part of its value:
whatever must come out the same on every LAS node sorts first.
"""

import zlib
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from functools import lru_cache
from itertools import chain
from typing import TypeVar

Key = TypeVar("Key", bound=int | str)
Value = TypeVar("Value")

BUCKETS = 512
"""Entries per bucket and buckets per map are both a few hundred at 100,000 entries."""


def _bucket_of(key: int | str) -> int:
    # Not hash(): str hashes differ between processes, which would make two LAS nodes' costs differ.
    return (key if isinstance(key, int) else _number_of(key)) % BUCKETS


@lru_cache(maxsize=32_768)
def _number_of(key: str) -> int:
    return zlib.crc32(key.encode())


class PersistentMap(Mapping[Key, Value]):
    """An immutable mapping with int or str keys; `with_items` and `without` give successors."""

    __slots__ = ("_buckets", "_size")

    def __init__(self, items: Iterable[tuple[Key, Value]] = ()) -> None:
        buckets: list[dict[Key, Value]] = [{} for _ in range(BUCKETS)]
        for key, value in items:
            buckets[_bucket_of(key)][key] = value
        self._buckets = tuple(buckets)
        self._size = sum(map(len, buckets))

    @classmethod
    def _of(cls, buckets: tuple[dict[Key, Value], ...], size: int) -> "PersistentMap[Key, Value]":
        made: PersistentMap[Key, Value] = cls.__new__(cls)
        made._buckets = buckets
        made._size = size
        return made

    def with_items(self, items: Iterable[tuple[Key, Value]]) -> "PersistentMap[Key, Value]":
        """The successor in which each key of `items` has its value."""
        buckets, size = list(self._buckets), self._size
        copied: set[int] = set()
        for key, value in items:
            at = _bucket_of(key)
            if at not in copied:
                buckets[at] = dict(buckets[at])
                copied.add(at)
            size += key not in buckets[at]
            buckets[at][key] = value
        return self._of(tuple(buckets), size)

    def with_item(self, key: Key, value: Value) -> "PersistentMap[Key, Value]":
        """The successor in which `key` has `value`."""
        return self.with_items(((key, value),))

    def without(self, key: Key) -> "PersistentMap[Key, Value]":
        """The successor without `key`; the same map if it has none."""
        at = _bucket_of(key)
        if key not in self._buckets[at]:
            return self
        bucket = {other: value for other, value in self._buckets[at].items() if other != key}
        return self._of((*self._buckets[:at], bucket, *self._buckets[at + 1 :]), self._size - 1)

    def without_keys(self, keys: Iterable[Key]) -> "PersistentMap[Key, Value]":
        """The successor without any of `keys`."""
        buckets, size = list(self._buckets), self._size
        copied: set[int] = set()
        for key in keys:
            at = _bucket_of(key)
            if at not in copied:
                buckets[at] = dict(buckets[at])
                copied.add(at)
            size -= buckets[at].pop(key, None) is not None
        return self._of(tuple(buckets), size)

    def __getitem__(self, key: Key) -> Value:
        return self._buckets[_bucket_of(key)][key]

    def __iter__(self) -> Iterator[Key]:
        # A small map has hundreds of empty buckets: without a step of Python code for each.
        return chain.from_iterable(filter(None, self._buckets))

    def items(self) -> "_Items[Key, Value]":
        """As of every mapping, without a look-up for each key."""
        return _Items(self)

    def values(self) -> "_Values[Value]":
        """As of every mapping, without a look-up for each key."""
        return _Values(self)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"PersistentMap({dict(sorted(self.items()))!r})"


class _Items(ItemsView[Key, Value]):
    _mapping: PersistentMap[Key, Value]

    def __iter__(self) -> Iterator[tuple[Key, Value]]:
        return chain.from_iterable(bucket.items() for bucket in self._mapping._buckets if bucket)


class _Values(ValuesView[Value]):
    _mapping: PersistentMap[int | str, Value]

    def __iter__(self) -> Iterator[Value]:
        return chain.from_iterable(bucket.values() for bucket in self._mapping._buckets if bucket)
