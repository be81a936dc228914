"""When the thread of a member wakes its event loop."""

import asyncio
from dataclasses import replace

from las.raft.driver import RaftThread
from las.raft.member import RaftStatus, Step

IDLE = RaftStatus(
    name="las-1", term=1, leader=None, is_leader=False, commit_index=1, applied_index=1,
    members_up=("las-1",),
)  # fmt: skip


class Member:
    """Gives the steps that it was made with; then it stands still."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps
        self._last = steps[-1]
        self.stood_still = 0

    def step(self) -> Step:
        if self._steps:
            return self._steps.pop(0)
        self.stood_still += 1
        return Step(frames=[], outcomes=[], status=self._last.status)

    def close(self) -> list[tuple[int, None]]:
        return []


def step(frames=(), outcomes=(), **changes) -> Step:
    return Step(frames=list(frames), outcomes=list(outcomes), status=replace(IDLE, **changes))


async def test_the_loop_hears_of_all_that_is_set_free_and_of_nothing_else() -> None:
    frame = ("las-2", object())
    # What sets nothing free and says nothing new is left out; all else comes in its order.
    steps = [
        step(),
        step(),
        step(frames=[frame]),
        step(),
        step(outcomes=[(7, None)]),
        step(commit_index=2),
        step(commit_index=2),
        step(),
    ]
    member = Member(list(steps))
    heard: list[Step] = []
    thread = RaftThread(lambda: member, tick_s=0.001, on_step=heard.append, fatal=print)
    await thread.start()
    stood_still = asyncio.Event()

    def look(member: Member) -> None:
        if member.stood_still >= 3:
            thread.after_step(stood_still.set)
        else:
            thread.post(look)

    thread.post(look)
    async with asyncio.timeout(10):
        await stood_still.wait()
    await thread.stop()
    told = [steps[at] for at in (0, 2, 4, 5, 7)]
    assert heard[:5] == told
    # The last one came with the action that was to be run after it.
    assert [each.status for each in heard[5:]] == [IDLE]
