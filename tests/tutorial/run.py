"""Runs docs/tutorial.md: every command in order, on three hosts and a laptop made for it.

A host is this machine's own file system under an overlay that is thrown away, with a network
namespace of its own, all joined by a bridge; nothing of this machine changes. Needs root, `ip`,
and a package. `python -m tests.tutorial.run PACKAGE.deb` does it; the page's commands and what they
print are told as they run. What npm would get comes from `NODE_MODULES`, since hosts reach each
other alone; without Node, or it, what JavaScript needs is left out.

What the page shows of an answer must be in it, line by line; "…" stands for anything, and on a line
of its own for any lines. Files are made of the blocks behind their names.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.load import tell

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
HOSTS = ("host-1", "host-2", "host-3")
LAPTOP = "laptop"
# Whoever runs as pid 1 of the namespaces; set by `main` for itself.
INSIDE = "PEERD_TUTORIAL_INSIDE"
# Made by `make tutorial-test`, as a user's npm makes it.
NODE_MODULES = ROOT / "build" / "bench" / "node_modules"
COMMAND_TIMEOUT_S = 120.0
NO_OVERLAY = 77
PROMPT = re.compile(r"^(every host|laptop|host-\d)# (.*)$")


@dataclass
class Step:
    """A command with what the page shows of its answer, or a file (`path`) with its content."""

    where: tuple[str, ...]
    command: str = ""
    shown: list[str] = field(default_factory=list)
    path: str = ""
    chapter: str = ""


def steps(page: str) -> list[Step]:
    """The page as what is to be done."""
    found: list[Step] = []
    chapter, named, block = "", "", None
    for line in page.splitlines():
        if line.startswith("```"):
            if block is None:
                kind, block = line[3:], []
            elif kind == "console":
                found += [replace_chapter(step, chapter) for step in console(block)]
                block = None
            else:
                content = "\n".join(block) + "\n"
                found.append(Step((LAPTOP,), content, path=named, chapter=chapter))
                block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("## "):
            chapter = line[3:]
        elif match := re.match(r"^`([^`]+)`.*:$", line):
            named = match[1]
    return found


def replace_chapter(step: Step, chapter: str) -> Step:
    step.chapter = chapter
    return step


def console(lines: list[str]) -> list[Step]:
    """The commands of one block."""
    found: list[Step] = []
    for line in lines:
        match = PROMPT.match(line)
        if match:
            where = HOSTS if match[1] == "every host" else (match[1],)
            found.append(Step(where, match[2]))
        else:
            found[-1].shown.append(line)
    return found


def missing(shown: list[str], answer: str) -> str:
    """The first line of the page that the answer does not have, in its order; "" if it has all."""
    rest = answer.splitlines()
    for line in shown:
        if line == "…":
            continue
        pattern = re.compile(".*".join(map(re.escape, line.rstrip().split("…"))))
        at = next((at for at, got in enumerate(rest) if pattern.fullmatch(got.rstrip())), None)
        if at is None:
            return line
        rest = rest[at + 1 :]
    return ""


def sh(*command: str) -> None:
    subprocess.run(command, check=True)


class Rooms:
    """The hosts and the laptop, made inside namespaces that end with this process."""

    def __init__(self, scratch: Path, package: Path) -> None:
        self.scratch = scratch
        sh("mount", "--make-rprivate", "/")
        sh("mount", "-t", "tmpfs", "tmpfs", "/run")  # `ip netns` keeps its names there
        self.has_node = shutil.which("node") is not None and NODE_MODULES.exists()
        sh("ip", "link", "add", "br0", "type", "bridge")
        sh("ip", "link", "set", "br0", "up")
        names = "\n".join(f"10.77.0.{n} {name}" for n, name in enumerate((*HOSTS, LAPTOP), 1))
        for number, name in enumerate((*HOSTS, LAPTOP), 1):
            self._make(name, number, names, package)
        for name in HOSTS:
            shared = self.root(LAPTOP) / "hosts" / name
            shared.mkdir(parents=True)
            sh("mount", "--bind", str(self.root(name)), str(shared))
        if self.has_node:
            shutil.copytree(NODE_MODULES, self.root(LAPTOP) / "root" / "node_modules")

    def root(self, name: str) -> Path:
        return self.scratch / name / "root"

    def _make(self, name: str, number: int, names: str, package: Path) -> None:
        base = self.scratch / name
        for part in ("upper", "work", "root"):
            (base / part).mkdir(parents=True)
        layers = f"lowerdir=/,upperdir={base / 'upper'},workdir={base / 'work'}"
        made = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", layers, str(self.root(name))], check=False
        )
        if made.returncode != 0:
            sys.exit(NO_OVERLAY)
        sh("mount", "--rbind", "/dev", str(self.root(name) / "dev"))
        sh("mount", "-t", "proc", "proc", str(self.root(name) / "proc"))
        for place in ("run", "tmp", "root"):
            sh("mount", "-t", "tmpfs", "tmpfs", str(self.root(name) / place))
        home = self.root(name) / "root"
        shutil.copy(package, home)
        (self.root(name) / "etc/hosts").write_text(f"127.0.0.1 localhost\n{names}\n")
        tools = self.root(name) / "usr/local/bin"
        for tool in ("systemctl", "scp"):
            shutil.copy(ROOT / "tests/tutorial" / tool, tools / tool)
            (tools / tool).chmod(0o755)
        sh("ip", "netns", "add", name)
        pair = ("type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "link", "add", f"to{number}", *pair)
        sh("ip", "link", "set", f"to{number}", "master", "br0", "up")
        inside = ("ip", "-n", name)
        sh(*inside, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
        sh(*inside, "link", "set", "eth0", "up")
        sh(*inside, "link", "set", "lo", "up")

    def run(self, name: str, command: str) -> tuple[int, str]:
        """The exit status of a command in root's home there, and what it said."""
        inside = f'hostname {name}; exec chroot {self.root(name)} bash -c "$0"'
        entered = ["ip", "netns", "exec", name, "unshare", "--uts", "bash", "-c", inside]
        environment = {
            "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "DEBIAN_FRONTEND": "noninteractive",
            "LC_ALL": "C.UTF-8",
        }
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                [*entered, f"cd; {command}"],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
            said.seek(0)
            return done.returncode, said.read()


def is_javascript(step: Step) -> bool:
    """Whether a step needs Node, or what one that needs it did."""
    return "JavaScript" in "\n".join([step.command, *step.shown]) or step.command[:5] == "node "


def play(rooms: Rooms) -> int:
    """Do all of the page; how many commands were run."""
    count = 0
    for step in steps(PAGE.read_text("utf-8")):
        if "Prometheus" in step.chapter and shutil.which("prometheus") is None:
            continue
        if step.command.startswith("npm ") or (is_javascript(step) and not rooms.has_node):
            tell(f"left out  {step.path or step.command}")
            continue
        for name in step.where:
            if step.path:
                target = rooms.root(name) / "root" / step.path
                target.parent.mkdir(exist_ok=True)
                target.write_text(step.command)
                continue
            begin_s = time.monotonic()
            status, answer = rooms.run(name, step.command)
            tell(f"{time.monotonic() - begin_s:5.1f} s  {name}# {step.command}")
            lacking = missing(step.shown, answer)
            if status != 0 or lacking:
                why = f"exit status {status}" if status else f"it lacks the line {lacking!r}"
                tell(f"{answer}\n{why}")
                sys.exit(1)
            count += 1
    return count


def main() -> None:
    """As the module says."""
    package = Path(sys.argv[1]).resolve()
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        apart = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
        command = [*apart, sys.executable, "-m", "tests.tutorial.run", str(package)]
        with tempfile.TemporaryDirectory() as scratch:
            sys.exit(subprocess.run([*command, scratch], cwd=ROOT, check=False).returncode)
    rooms = Rooms(Path(sys.argv[2]), package)
    tell(f"{play(rooms)} commands of {PAGE.name}: all did as the page says")


if __name__ == "__main__":
    main()
