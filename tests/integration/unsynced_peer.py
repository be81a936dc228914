"""`peerd` whose store does not sync: `python -m tests.integration.unsynced_peer serve …`.

What such a peer acknowledges is lost in a power cut, so the tests of that must find it out.
"""

import lmdb

from peerd.cli.peerd import main

OPEN = lmdb.open


def open_unsynced(*arguments, **options):
    """`lmdb.open`, leaving it to the kernel when anything reaches the disk."""
    return OPEN(*arguments, **(options | {"sync": False, "metasync": False}))


if __name__ == "__main__":
    lmdb.open = open_unsynced
    main()
