"""Calls that were refused for who made them: counted, and told of at a bounded rate.

The first refusal of a caller for a reason is told at once; what follows within a minute is joined
and told as one at its end. Beyond `CALLERS_MAX` callers at a time the others are joined as one, so
that nobody fills a log or the audit by calling under ever new names.

Invariant: what is told adds up to what was counted, but for what waits for the end of its minute.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

# How long refusals of one caller are joined. Seconds.
JOIN_S = 60.0
# limit: callers told of one by one in a minute
CALLERS_MAX = 16
# limit: characters of the message that is told on
TEXT_CHARACTERS_MAX = 200
# The name under which all others are joined.
OTHERS = "others"

Caller = tuple[str, str, str]
"""Name, role, reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCall:
    """`count` calls of one caller, refused for one reason; `what` and `text` are of the last."""

    who: str
    role: str
    reason: str
    what: str
    text: str
    count: int = 1

    @property
    def facts(self) -> dict[str, object]:
        """As a line of the log tells it."""
        return {
            "who": self.who,
            "role": self.role,
            "reason": self.reason,
            "call": self.what,
            "count": self.count,
            "why": self.text,
        }


@dataclass(slots=True)
class _Joined:
    since_s: float
    call: RefusedCall
    count: int = 0


class RefusedCalls:
    """Used on one event loop."""

    def __init__(
        self,
        on_told: Callable[[RefusedCall], None] | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_told` gets each that is told of; `clock_s` is monotonic, in seconds."""
        self.counts: Counter[str] = Counter()
        self._on_told = on_told
        self._clock_s = clock_s
        self._joined: dict[Caller, _Joined] = {}

    def add(self, call: RefusedCall) -> None:
        """`call.count` calls were refused."""
        self.counts[call.reason] += call.count
        call = replace(call, text=call.text[:TEXT_CHARACTERS_MAX])
        key = (call.who, call.role, call.reason)
        if key not in self._joined and len(self._joined) >= CALLERS_MAX:
            self.look()
            if len(self._joined) >= CALLERS_MAX:
                key = (OTHERS, "", call.reason)
                call = replace(call, who=OTHERS, role="")
        known = self._joined.get(key)
        if known is None:
            self._joined[key] = _Joined(self._clock_s(), call)
            self._tell(call)
            return
        known.call = call
        known.count += call.count

    def look(self) -> None:
        """Tell what was joined for a minute. Called every second or so."""
        now_s = self._clock_s()
        for key, joined in tuple(self._joined.items()):
            if now_s - joined.since_s < JOIN_S:
                continue
            del self._joined[key]
            if joined.count:
                told = replace(joined.call, count=joined.count)
                self._joined[key] = _Joined(now_s, told)
                self._tell(told)

    def _tell(self, call: RefusedCall) -> None:
        if self._on_told is not None:
            self._on_told(call)
