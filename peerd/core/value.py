"""`value`: a dataclass that nobody changes, and that costs little to make.

What a core is given and what it answers are values: some forty are made for an append to three
copies. A frozen dataclass sets each of its fields through `object.__setattr__`; that was a third of
the time of the cores and a sixth of a simulated run. So whoever assigns to a field is found before
anything runs, by the type checker, which reads `value` as `dataclass`; at run time nothing looks.
Equality and hash are those of a frozen dataclass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:

    def value(*, frozen: bool, **options: bool) -> Callable[[type], type]:
        """`dataclass(frozen=True, ...)`, which is the one way to use it."""
        return dataclass(unsafe_hash=frozen, **options)


__all__ = ["value"]
