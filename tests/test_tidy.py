"""The habits of this repository, kept by a test instead of by reviewers.

`python tests/test_tidy.py --limits` prints docs/limits.md.
"""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 700

# In a core, time is a tick that is passed in and randomness an argument; nothing waits or writes.
IMPURE_MODULES = frozenset(
    {
        *("asyncio", "concurrent", "http", "io", "logging", "multiprocessing", "os", "pathlib"),
        *("queue", "random", "secrets", "select", "selectors", "shutil", "signal", "socket"),
        *("sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "uuid"),
    }
)
IMPURE_CALLS = frozenset({"print", "open", "input", "exec", "eval", "__import__"})
CORES = {"peerd/core/": ("peerd.core",), "las/core/": ("peerd.core", "las.core")}

LEFTOVERS = re.compile(r"\b(?:TO|FIX|XX)(?:DO|ME|X)\b")
# Directories that only one machine has, unlike /etc, /var or /usr.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:root|home|Users|work|mnt|opt)/\w")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def tracked(*patterns: str) -> list[Path]:
    """Tracked files that are there, by git's patterns."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, capture_output=True, check=True
    )
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    """Every tracked file that is text."""
    for path in tracked():
        try:
            yield path.relative_to(ROOT), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a recording, a model: not written by hand


PYTHON = tracked("*.py")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_modules_and_functions_fit(path):
    assert len(path.read_text("utf-8").splitlines()) <= MODULE_LINES_MAX
    long = [
        f"{path.name}:{node.lineno} {node.name}"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not long, f"functions over {FUNCTION_LINES_MAX} lines: {long}"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_no_exception_is_caught_unnamed(path):
    bare = [
        node.lineno
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not bare


def test_nothing_is_left_over():
    found = [
        f"{path}:{number}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if LEFTOVERS.search(line)
    ]
    assert not found, f"finish it or write an issue: {found}"


def test_no_path_of_one_machine_is_named():
    found = [
        f"{path}:{number}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if MACHINE_PATHS.search(line)
    ]
    assert not found


def test_local_links_lead_somewhere():
    broken = [
        f"{path}: {link}"
        for path, text in texts()
        if path.suffix == ".md"
        for link in LINK.findall(text)
        if not (ROOT / path.parent / link).exists()
    ]
    assert not broken


# ------------------------------------------------------------------------------ the cores


CORE_MODULES = [path for path in PYTHON if name_of(path).startswith(tuple(CORES))]


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield node.module or ""


def is_allowed_in_core(module: str, packages: tuple[str, ...]) -> bool:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return top not in IMPURE_MODULES
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", CORE_MODULES, ids=name_of)
def test_cores_are_pure(path):
    tree = parsed(path)
    packages = next(CORES[core] for core in CORES if name_of(path).startswith(core))
    foreign = [name for name in imported_modules(tree) if not is_allowed_in_core(name, packages)]
    assert not foreign
    calls = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in IMPURE_CALLS
    ]
    assert not calls


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("dataclasses", True),
        ("collections.abc", True),
        ("peerd.core.ids", True),
        ("time", False),
        ("asyncio.queues", False),
        ("grpc", False),
        ("peerd.corelike", False),
        ("peerd.storage.writer", False),
        ("las.core.plan", False),
    ],
)
def test_the_rule_of_purity_tells_apart(module, allowed):
    assert is_allowed_in_core(module, CORES["peerd/core/"]) == allowed


# ------------------------------------------------------------------------------ the protos


def test_every_part_of_the_contract_is_commented():
    buf = Path(sys.executable).with_name("buf")
    assert "    - COMMENTS\n" in (ROOT / "buf.yaml").read_text()
    result = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


# ------------------------------------------------------------------------------ limits


@dataclass(frozen=True, slots=True)
class Limit:
    """A named bound: where it stands, its value as written, and its reason."""

    module: str
    name: str
    value: str
    reason: str

    @property
    def row(self) -> str:
        """A line of the table."""
        return f"| `{self.name}` | `{self.value}` | {self.reason} |"


def limits_of(path: Path) -> Iterator[Limit]:
    """The bounds of a module.

    A module's bound is a constant below a comment `# limit: reason`, or one named `…_MAX` with a
    docstring below it; a class's bound is a field named `…_max` with a default and a docstring.
    """
    text = path.read_text("utf-8")
    lines = text.splitlines()
    tree = ast.parse(text, str(path))
    bodies = [("", tree.body)]
    bodies += [(f"{node.name}.", node.body) for node in tree.body if isinstance(node, ast.ClassDef)]
    for owner, body in bodies:
        for node, below in itertools.zip_longest(body, body[1:]):
            named = _named_value(node)
            if named is None:
                continue
            name, value = named
            reason = _limit_comment(lines, node.lineno)
            if reason is None and name.upper().endswith("_MAX"):
                reason = _docstring(below)
            if reason is not None:
                module = name_of(path).removesuffix(".py").replace("/", ".")
                yield Limit(module, owner + name, ast.unparse(value), " ".join(reason.split()))


def _named_value(node: ast.stmt) -> tuple[str, ast.expr] | None:
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target, value = node.targets[0], node.value
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        target, value = node.target, node.value
    else:
        return None
    return (target.id, value) if isinstance(target, ast.Name) else None


def _limit_comment(lines: list[str], line_number: int) -> str | None:
    """The comment block directly above a line, from its `limit:` on."""
    block: list[str] = []
    for line in reversed(lines[: line_number - 1]):
        if not line.strip().startswith("#"):
            break
        block.insert(0, line.strip().lstrip("# "))
    words = " ".join(block)
    return words.partition("limit: ")[2] if "limit: " in words else None


def _docstring(node: ast.stmt | None) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return node.value.value if isinstance(node.value.value, str) else None
    return None


def unexplained_limits(path: Path) -> list[str]:
    """Public constants named `…_MAX` that say no reason."""
    explained = {limit.name for limit in limits_of(path)}
    names = [named[0] for node in parsed(path).body if (named := _named_value(node)) is not None]
    return [
        f"{name_of(path)}: {name}"
        for name in names
        if name.endswith("_MAX") and not name.startswith("_") and name not in explained
    ]


def test_limits_are_found_with_their_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "sample.py"
    path.write_text(
        "# limit: bytes; more\n# gains nothing\nONE_BYTES_MAX = 2 * 3\n"
        'TWO_MAX = 4\n"""Why two."""\n'
        "# no reason\nTHREE_MAX = 5\n_FOUR_MAX = 6\n"
        'class Limits:\n    five_max: int = 7\n    """Why five."""\n    six: int = 8\n'
    )
    assert list(limits_of(path)) == [
        Limit("sample", "ONE_BYTES_MAX", "2 * 3", "bytes; more gains nothing"),
        Limit("sample", "TWO_MAX", "4", "Why two."),
        Limit("sample", "Limits.five_max", "7", "Why five."),
    ]
    assert unexplained_limits(path) == ["sample.py: THREE_MAX"]


PRODUCT = [path for path in PYTHON if name_of(path).startswith(("peerd/", "las/"))]

LIMITS_HEAD = """\
# Limits

Printed from the code by `make docs`; do not edit.

Each queue, batch, retry and window has a bound with a name and a reason. Reaching one is a typed
error with advice, never growth and never silence. What an operator may tune is in
[configuration.md](configuration.md); these are the constants. Units are the end of a name.
"""


def limits_page() -> str:
    """docs/limits.md as it has to be now."""
    page = LIMITS_HEAD
    for path in PRODUCT:
        limits = list(limits_of(path))
        if limits:
            page += (
                f"\n## `{limits[0].module}`\n\n| limit | value | what and why |\n| - | - | - |\n"
            )
            page += "\n".join(limit.row for limit in limits) + "\n"
    return page


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_every_limit_has_a_reason(path):
    assert not unexplained_limits(path), "write `# limit: unit and reason` above it"


def test_the_page_of_limits_is_current():
    assert (ROOT / "docs" / "limits.md").read_text("utf-8") == limits_page(), "run `make docs`"


if __name__ == "__main__":
    if sys.argv[1:] != ["--limits"]:
        sys.exit("usage: python tests/test_tidy.py --limits")
    sys.stdout.write(limits_page())
