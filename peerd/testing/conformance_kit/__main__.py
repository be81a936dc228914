"""`python -m peerd.testing.conformance_kit COMMAND…`: what a client does right, as a table.

Exit status: 0 all right, 1 something is not, 2 used wrongly.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from peerd.testing.conformance_kit import checks, real
from peerd.testing.conformance_kit.program import NotSupported, ProgramFailed


async def judge(name: str, check: Callable[[], Awaitable[str]]) -> bool:
    """Run one check, print its line; False if the client failed."""
    try:
        wrong = await check()
    except NotSupported as missing:
        _say(f"  -      {name:<28} it does not do {missing}")
        return True
    except ProgramFailed as failed:
        wrong = str(failed)
    _say(f"  {'wrong' if wrong else 'right':<6} {name:<28} {wrong}".rstrip())
    return not wrong


async def judge_all(command: list[str], only: str, *, with_real: bool) -> int:
    """All checks, one after the other; how many failed."""
    failed = 0
    for name, check in checks.CHECKS:
        if only in name:
            failed += not await judge(name, partial(checks.run, check, command))
    if with_real:
        with tempfile.TemporaryDirectory(prefix="peerd-kit-") as directory:
            at = Path(directory)
            failed += not await judge("real cluster, TLS, kill -9", partial(real.run, command, at))
    return failed


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="conformance_kit", description=__doc__)
    parser.add_argument("--only", default="", help="only checks whose name has this")
    parser.add_argument(
        "--no-real", action="store_true", help="leave out the cluster of real processes"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the client, and its arguments")
    options = parser.parse_args()
    command = [each for each in options.command if each != "--"]
    if not command:
        parser.error("name the program that speaks the line protocol of docs/client-protocol.md")
    failed = asyncio.run(judge_all(command, options.only, with_real=not options.no_real))
    _say("" if failed else "  all right")
    sys.exit(1 if failed else 0)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
