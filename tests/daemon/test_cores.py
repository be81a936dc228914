"""Cores are scarce where a part of the time that the loop wanted one went by in wait for it."""

import pytest

from peerd.daemon.cores import SCARCE_SHARE, WINDOW_S, CoreWatch, ran_and_waited_ns


class Kernel:
    """A clock, and what the thread ran and waited."""

    def __init__(self):
        self.now_s = 0.0
        self.ran_ns = 5_000_000
        self.waited_ns = 7_000_000
        self.watch = CoreWatch(lambda: self.now_s, lambda: (self.ran_ns, self.waited_ns))

    def pass_by(self, *, ran, waited, windows=2):
        self.now_s += windows * WINDOW_S
        self.ran_ns += ran
        self.waited_ns += waited


@pytest.mark.parametrize(
    ("ran", "waited", "scarce"),
    [(1000, 0, False), (0, 0, False), (1000, 50, False), (1000, 300, True), (0, 1, True)],
)
def test_the_share_since_the_last_look_decides(ran, waited, scarce):
    kernel = Kernel()
    kernel.pass_by(ran=10, waited=10 * (not scarce))
    assert kernel.watch.are_scarce() is not scarce
    kernel.pass_by(ran=ran, waited=waited)
    assert kernel.watch.are_scarce() is scarce


def test_less_than_a_window_tells_nothing():
    kernel = Kernel()
    kernel.pass_by(ran=0, waited=1000, windows=0.5)
    assert not kernel.watch.are_scarce()
    kernel.pass_by(ran=int(1000 / SCARCE_SHARE) - 1001, waited=1, windows=0.75)
    assert kernel.watch.are_scarce()


def test_where_the_kernel_does_not_count_cores_are_not_scarce():
    def unknown():
        raise FileNotFoundError("/proc/self/schedstat")

    now_s = [0.0]
    watch = CoreWatch(lambda: now_s[0], unknown)
    now_s[0] += 2 * WINDOW_S
    assert not watch.are_scarce()


def test_the_kernel_counts_what_this_thread_ran():
    before_ns, _ = ran_and_waited_ns()
    sum(range(1_000_000))
    after_ns, _ = ran_and_waited_ns()
    assert after_ns > before_ns
