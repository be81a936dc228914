"""Child process of test_damage.py: reads damaged copies of a store and says what came out.

    bitflips.py STORE SCRATCH FIRST COUNT

For each number from FIRST on: copy the store, flip the bit that the number draws, open it, read
all of it. Prints one line each: the number and `clean`, `told` (a typed error), or `WRONG …`. A
damaged file may kill this process; then the line of that number is missing, and whoever started us
goes on behind it.
"""

import random
import shutil
import sys
from pathlib import Path

from peerd.core.ids import Epoch, Offset, ShardId
from peerd.storage import Corrupt, CorruptRow, StorageError, StorageOptions, Store

SHARDS = 3
BATCHES = 40
SIZES = (10, 300, 3_000, 9_000)


# Every other bit is drawn from where LMDB keeps its own structure: the page's header, its pointers,
# and the meta pages' numbers.
STRUCTURE_BYTES = 200
_PAGE_BYTES = 4_096
_BRANCH_LEAF_OR_META = 0x01 | 0x02 | 0x08


def structure_pages(data: bytearray) -> list[int]:
    """Where the pages begin that are not just payload."""
    return [
        page for page in range(0, len(data), _PAGE_BYTES) if data[page + 10] & _BRANCH_LEAF_OR_META
    ]


def payload_of(shard: int, base: int) -> bytes:
    """What the store holds at (shard, base)."""
    return random.Random(shard * 1_000 + base).randbytes(SIZES[base % len(SIZES)])


def read_everything(store: Store) -> str:
    """`clean`, `told` or what was wrong."""
    told = False
    for shard in range(SHARDS):
        state = store.shards.get(ShardId(shard))
        if state is None or state.promised != 5 or state.segments[Epoch(5)].end != BATCHES:
            return f"WRONG state {state}"
        base = 0
        while base < BATCHES:
            try:
                batches = store.read_batches(
                    ShardId(shard), Epoch(5), Offset(base), Offset(BATCHES), 1
                )
            except Corrupt:
                told = True
                base += 1
                continue
            if not batches or batches[0].base != base:
                return f"WRONG batches at {shard}/{base}: {batches}"
            if batches[0].payload != payload_of(shard, base):
                return f"WRONG payload at {shard}/{base}"
            base += 1
        try:
            table = store.read_table(ShardId(shard))
        except CorruptRow:
            told = True
            continue
        bases = [row[0].base for row in table.producers.values()]
        if table.as_of != BATCHES or sorted(bases) != list(range(BATCHES)):
            return f"WRONG table of {shard}: {sorted(bases)}"
    return "told" if told else "clean"


def examine(original: Path, scratch: Path, number: int) -> str:
    """Damage a copy with the bit that `number` draws, and read it."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(original, scratch)
    data = bytearray((scratch / "data.mdb").read_bytes())
    draw = random.Random(number)
    at = draw.randrange(len(data))
    if number % 2:
        at = draw.choice(structure_pages(data)) + draw.randrange(STRUCTURE_BYTES)
    data[at] ^= 1 << draw.randrange(8)
    (scratch / "data.mdb").write_bytes(data)
    try:
        store = Store.open(
            scratch, StorageOptions(), deliver=lambda _: None, on_failure=lambda _: None
        )
    except StorageError:
        return "told"
    try:
        return read_everything(store)
    finally:
        store.close()


def main() -> None:
    """Examine COUNT damaged copies."""
    original, scratch, first, count = sys.argv[1:]
    for number in range(int(first), int(first) + int(count)):
        result = examine(Path(original), Path(scratch), number)
        sys.stdout.write(f"{number} {result}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
