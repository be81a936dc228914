"""Builds packages for hosts: `python -m deploy.build deb|rpm [--out dist] [--python FILE]`.

A package carries peerd and every library it needs, in the locked versions and nowhere but in
`/usr/lib/peerd`, with systemd units, a system user and settings to fill in. It is built for the
Python of one distribution (`--python`), which it depends on.

The virtual environment is made in a staging tree, where no path of it may end up in a file: scripts
get the interpreter of the installed place, and byte code its file names.
"""

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HOME = Path("usr/lib/peerd")
PROGRAMS = ("peerd", "las", "peerctl")
EXTRAS = ("", "s3")
"""What of peerd's extras a package has: a host has no other place for a library of the tier."""
LICENSE = "Apache-2.0"
MAINTAINER = "The peerd authors <peerd@localhost>"
SUMMARY = "replicated transaction log that moves its data before a machine dies"


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("deb", "rpm"))
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--python", default="/usr/bin/python3", help="interpreter on the hosts")
    arguments = parser.parse_args()
    tool = {"deb": "dpkg-deb", "rpm": "rpmbuild"}[arguments.kind]
    if shutil.which(tool) is None:
        sys.exit(f"deploy: {tool} is not installed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="peerd-package-") as scratch:
        tree = Path(scratch) / "tree"
        python = interpreter(arguments.python)
        stage(tree, Path(scratch), python)
        build = {"deb": build_deb, "rpm": build_rpm}[arguments.kind]
        sys.stdout.write(f"{build(tree, arguments.out, python)}\n")
    return 0


# ---------------------------------------------------------------------------------- the tree
def interpreter(named: str) -> Path:
    """The versioned name of an interpreter beside `named`, as `/usr/bin/python3.11`."""
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = run(named, "-c", asked).strip()
    return Path(named).with_name(f"python{version}")


def stage(tree: Path, scratch: Path, python: Path) -> None:
    """Everything that a package installs, below `tree`."""
    home = tree / HOME
    run(str(python), "-m", "venv", "--without-pip", "--symlinks", str(home))
    wheels = scratch / "wheels"
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT)
    lock = scratch / "runtime.lock"
    lock.write_text(runtime_lock((ROOT / "requirements.lock").read_text("utf-8")), "utf-8")
    into = ("--python", home / "bin/python", "install", "--no-deps", "--no-compile")
    # pysyncobj is published as source alone.
    pip(*into, "--only-binary", ":all:", "--no-binary", "pysyncobj", "--require-hashes", "-r", lock)
    pip(*into, "--no-index", *wheels.glob("*.whl"))
    settle(tree)
    run(str(home / "bin/python"), "-m", "compileall", "-q", "-s", str(tree), "-p", "/", str(home))
    install(tree)


def settle(tree: Path) -> None:
    """Leave no path of the staging tree in what is installed."""
    home = tree / HOME
    for script in (home / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        if script.name in PROGRAMS:
            script.write_text(script.read_text("utf-8").replace(str(tree), ""), "utf-8")
        else:
            script.unlink()  # programs of libraries, and what activates the environment
    settings = home / "pyvenv.cfg"
    kept = [line for line in settings.read_text().splitlines() if not line.startswith("command")]
    settings.write_text("\n".join(kept) + "\n")


def install(tree: Path) -> None:
    """Programs on the path, units, user, settings, documents, the public contract."""
    home = tree / HOME
    for program in PROGRAMS:
        link = tree / "usr/bin" / program
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../lib/peerd/bin/{program}")
    for unit in (HERE / "systemd").iterdir():
        copy(unit, tree / "usr/lib/systemd/system" / unit.name)
    copy(HERE / "sysusers.conf", tree / "usr/lib/sysusers.d/peerd.conf")
    for settings in (HERE / "etc").iterdir():
        copy(settings, tree / "etc/peerd" / settings.name)
    for page in (*(ROOT / "docs").iterdir(), ROOT / "README.md"):
        copy(page, tree / "usr/share/doc/peerd" / page.name)
    copy(ROOT / "LICENSE", tree / "usr/share/doc/peerd/copyright")
    for contract in ("peerd/v1", "las/v1"):
        for proto in (ROOT / "proto" / contract).iterdir():
            copy(proto, tree / "usr/share/peerd/proto" / contract / proto.name)
    for path in sorted(tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent == home / "bin" else 0o644)


def copy(source: Path, target: Path) -> None:
    """Copy a file, and make its folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def runtime_lock(lock: str) -> str:
    """The part of the lock that peerd needs to run: with `EXTRAS`, nothing for development."""
    wanted, waiting = set[str](), ["peerd"]
    while waiting:
        package = waiting.pop()
        extras = EXTRAS if package == "peerd" else ("",)
        for requirement in importlib.metadata.requires(package) or ():
            name = re.match(r"[A-Za-z0-9._-]+", requirement)
            if name is None or not any(applies(requirement, extra) for extra in extras):
                continue
            key = re.sub(r"[-_.]+", "-", name[0]).lower()
            if key not in wanted:
                wanted.add(key)
                waiting.append(key)
    entries = re.split(r"(?m)^(?=[a-z0-9])", lock)
    return "".join(entry for entry in entries if entry.partition("==")[0] in wanted)


def applies(requirement: str, extra: str) -> bool:
    """Whether a requirement's marker holds here; the lock has only what is needed on Linux."""
    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"extra": extra})


# ---------------------------------------------------------------------------------- formats
def project_version() -> str:
    """As pyproject.toml has it."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def build_deb(tree: Path, out: Path, python: Path) -> Path:
    """A Debian package of `tree`; returns its file."""
    version, machine = project_version(), run("dpkg", "--print-architecture").strip()
    size_kib = sum(path.lstat().st_size for path in tree.rglob("*")) // 1024
    control = tree / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(
        f"Package: peerd\nVersion: {version}\nArchitecture: {machine}\n"
        f"Maintainer: {MAINTAINER}\nSection: database\nPriority: optional\n"
        f"Installed-Size: {size_kib}\nDepends: {python.name}, libc6 (>= 2.28), systemd\n"
        f"Suggests: smartmontools\nDescription: {SUMMARY}\n"
        " Every host runs peerd, which stores shards of the log and streams them to\n"
        " shadows; three run las, which foresees failures and moves shards in time.\n"
    )
    settings = sorted((tree / "etc").rglob("*.toml"))
    (control / "conffiles").write_text("".join(f"/{path.relative_to(tree)}\n" for path in settings))
    for script in (HERE / "debian").iterdir():
        shutil.copyfile(script, control / script.name)
        (control / script.name).chmod(0o755)
    package = out / f"peerd_{version}_{machine}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zzstd", "-z3", "--build", str(tree), str(package))
    return package


def build_rpm(tree: Path, out: Path, python: Path) -> Path:
    """An RPM package of `tree`; returns its file."""
    scratch = tree.parent
    spec = scratch / "peerd.spec"
    spec.write_text(
        (HERE / "peerd.spec.in")
        .read_text("utf-8")
        .format(version=project_version(), summary=SUMMARY, license=LICENSE, python=python)
    )
    defines = {"_topdir": scratch / "rpm", "stage": tree}
    options = [part for key, value in defines.items() for part in ("--define", f"{key} {value}")]
    run("rpmbuild", "--quiet", "-bb", *options, str(spec))
    (built,) = (scratch / "rpm/RPMS").rglob("*.rpm")
    return Path(shutil.copy(built, out))


# ---------------------------------------------------------------------------------- commands
def pip(*arguments: str | Path) -> None:
    """Run the development environment's pip."""
    quiet = ("-qq", "--disable-pip-version-check", "--no-input")
    run(sys.executable, "-m", "pip", *quiet, *map(str, arguments))


def run(*command: str) -> str:
    """What a command prints. Ends this program with its words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"deploy: {' '.join(command[:4])} …: {done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
