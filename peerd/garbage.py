"""When a process of this project has the interpreter look for garbage that names itself.

Nearly all memory here is free as soon as nobody names it. What is left for the collector are
cycles, of which an append makes none, neither at a peer nor in a client. By its defaults the
collector looks for them each time that 700 more objects were made than freed: with 256 appends
under way several times a batch, among objects that are all in use.
"""

import gc

# limit: new objects, after which they are looked through for garbage: some 20 MB.
YOUNG_OBJECTS_MAX = 50_000


def settle_garbage() -> None:
    """Look for garbage more seldom, and never among what is there by now, which is here to stay.

    A map of 100,000 shards is two million values without a cycle. By the defaults half of a LAS
    leader's time went into looking for one among them when 20,000 shards had lost their primary.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, 20)
