"""Memory that is used again and again is asked of the kernel once."""

import subprocess
import sys

PROGRAM = """
import resource
from peerd.allocator import keep_freed_memory

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def rounds():
    before = page_faults()
    for _ in range(100):
        blocks = [bytearray(b"x") * (256 * 1024) for _ in range(4)]
        del blocks
    return page_faults() - before

untuned = rounds()
assert keep_freed_memory()
rounds()
print(untuned, rounds())
"""


def test_kept_memory_is_not_fetched_again():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    untuned, tuned = map(int, done.stdout.split())
    # 100 rounds of 256 pages each.
    assert untuned > 10_000
    assert tuned < 1_000
