"""The form of a script: remarks, commands, and after each command what is to be seen.

A line that begins with `# ` is a remark, one that begins with `> ` is a command; the lines after a
command, up to the next blank line, remark or command, are its whole expected trace. A command is a
verb, words, and options of the form `name=value`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Command:
    """One line that begins with `> `."""

    text: str

    @property
    def verb(self) -> str:
        return self.text.split()[0]

    @property
    def words(self) -> list[str]:
        return [word for word in self.text.split()[1:] if "=" not in word]

    @property
    def options(self) -> dict[str, str]:
        pairs = [word.split("=", 1) for word in self.text.split()[1:] if "=" in word]
        return dict(pairs)


@dataclass(slots=True)
class Passage:
    """A command with what is expected, or a remark."""

    remark: str = ""
    command: Command | None = None
    expected: list[str] = field(default_factory=list)


class Stage(Protocol):
    """What plays a script."""

    def play(self, command: Command) -> list[str]:
        """Do it; the trace in words."""


def read(path: Path) -> list[Passage]:
    """The passages of a script."""
    passages: list[Passage] = []
    for line in path.read_text().splitlines():
        if line.startswith("# "):
            passages.append(Passage(remark=line))
        elif line.startswith("> "):
            passages.append(Passage(command=Command(line[2:])))
        elif line.strip():
            assert passages, f"{path.name} begins with {line!r}"
            passages[-1].expected.append(line.strip())
    return passages


def play(passages: list[Passage], stage: Stage) -> str:
    """The script as it would have to read, from what is really seen."""
    lines: list[str] = []
    for passage in passages:
        if lines and not (lines[-1].startswith("# ") and passage.remark):
            lines.append("")
        if passage.command is None:
            lines.append(passage.remark)
            continue
        while lines and not lines[-1] and lines[-2].startswith("# "):
            lines.pop()
        lines.append(f"> {passage.command.text}")
        lines.extend(f"  {line}" for line in stage.play(passage.command))
    return "\n".join(lines) + "\n"
