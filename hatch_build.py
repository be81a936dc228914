"""Makes the protobuf code from proto/, for every kind of build.

hatchling calls it for wheels, sdists and editable installs; `make stubs` runs it as a program.
The code goes into the tree beside the hand-written packages (`peerd/v1`, `peerd/internal/v1`,
`las/v1`, `las/internal/v1`), is git-ignored, and is shipped in the wheel.

It generates into a temporary folder and then brings the tree in line: files that did not change
keep their place and time, files whose .proto is gone are removed, so a half-done run never leaves
a mixture.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
PROTO_DIRECTORY = ROOT / "proto"
# Where generated code lives; nothing else lives there.
GENERATED = ("peerd/v1", "peerd/internal", "las/v1", "las/internal")
PACKAGE_TEXT = '"""Generated from proto/ by hatch_build.py; do not edit."""\n'


class GenerateStubs(BuildHookInterface):  # type: ignore[type-arg]
    """The hatchling build hook."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Runs before the files of a build are collected."""
        generate(PROTO_DIRECTORY, ROOT)


def generate(proto_directory: Path, target: Path) -> list[Path]:
    """Generates all stubs below `target` and returns the files that changed.

    Raises:
        SystemExit: protoc refused a .proto; its own message has been printed.
    """
    with tempfile.TemporaryDirectory(prefix="peerd-stubs-") as temporary:
        staging = Path(temporary)
        _run_protoc(proto_directory, staging)
        _write_packages(staging)
        return _bring_in_line(staging, target)


def _run_protoc(proto_directory: Path, staging: Path) -> None:
    protos = sorted(str(path) for path in proto_directory.rglob("*.proto"))
    if not protos:
        sys.exit(f"hatch_build.py: no .proto below {proto_directory}")
    # The mypy plugins are programs beside the interpreter that runs the build.
    search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{proto_directory}",
        f"--python_out={staging}",
        f"--grpc_python_out={staging}",
        f"--mypy_out=quiet:{staging}",
        f"--mypy_grpc_out=quiet:{staging}",
        *protos,
    ]
    result = subprocess.run(command, env={**os.environ, "PATH": search_path}, check=False)
    if result.returncode != 0:
        sys.exit(f"hatch_build.py: protoc failed with status {result.returncode}")


def _write_packages(staging: Path) -> None:
    """Makes each generated folder a package; `peerd` and `las` themselves are hand-written."""
    for directory in [path for path in staging.rglob("*") if path.is_dir()]:
        if directory.parent != staging:
            (directory / "__init__.py").write_text(PACKAGE_TEXT)


def _bring_in_line(staging: Path, target: Path) -> list[Path]:
    wanted = {path.relative_to(staging) for path in staging.rglob("*") if path.is_file()}
    changed = []
    for relative in sorted(wanted):
        destination = target / relative
        content = (staging / relative).read_bytes()
        if destination.exists() and destination.read_bytes() == content:
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        draft = destination.with_name(f"{destination.name}.{os.getpid()}.draft")
        draft.write_bytes(content)
        draft.replace(destination)
        changed.append(destination)
    for folder in GENERATED:
        for path in (target / folder).rglob("*.py*"):
            if path.suffix in {".py", ".pyi"} and path.relative_to(target) not in wanted:
                path.unlink()
                changed.append(path)
    return changed


def remove(target: Path) -> None:
    """Removes everything generated, for `make clean`."""
    for folder in GENERATED:
        shutil.rmtree(target / folder, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--remove"]:
        remove(ROOT)
    else:
        generate(PROTO_DIRECTORY, ROOT)
