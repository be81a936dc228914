"""Memory that is used again and again is asked of the kernel once."""

import subprocess
import sys

from peerd.allocator import ARENAS_MAX

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


THREADS = """
import ctypes, sys, threading
from peerd.allocator import keep_freed_memory

if sys.argv[2] == "tuned":
    assert keep_freed_memory()
all_have_some = threading.Barrier(9)

def take():
    # From C, as messages are: large enough for an arena, too small for a mapping of its own.
    block = libc.malloc(100_000)
    all_have_some.wait()
    all_have_some.wait()

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads:
    thread.start()
all_have_some.wait()
libc.fopen.restype = ctypes.c_void_p
libc.fopen.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
libc.malloc_info.argtypes = (ctypes.c_int, ctypes.c_void_p)
libc.fclose.argtypes = (ctypes.c_void_p,)
file = libc.fopen(sys.argv[1].encode(), b"w")
assert libc.malloc_info(0, file) == 0
libc.fclose(file)
all_have_some.wait()
"""


def arenas(path, how):
    subprocess.run([sys.executable, "-c", THREADS, str(path), how], check=True, timeout=60)
    return path.read_text("utf-8").count("<heap nr=")


def test_threads_share_two_arenas(tmp_path):
    assert arenas(tmp_path / "untuned", "untuned") > ARENAS_MAX
    assert arenas(tmp_path / "tuned", "tuned") <= ARENAS_MAX
