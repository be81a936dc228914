"""`las` that looks for hot shards each second: `python -m tests.integration.hasty_las serve …`."""

from las.daemon import splitter, writes
from las.daemon.cli import main

if __name__ == "__main__":
    writes.PERIOD_MS = 1_000
    splitter.LOOK_S = 1.0
    main()
