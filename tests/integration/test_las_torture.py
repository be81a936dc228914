"""LAS members killed, stopped, cut off and on failing disks; `make torture-las` is the long form.

As a process of its own, which enters network namespaces of its own.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MINUTES = 0.4

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(240),
    pytest.mark.root,
]


def test_nothing_acknowledged_is_lost_where_links_and_disks_fail_too():
    words = ["--minutes", str(MINUTES), "--members", "5", "--links", "--disks"]
    run = subprocess.run(
        [sys.executable, "-m", "tests.raft.raft_torture", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 lost, 0 applied twice, 0 diverged, 0 stale" in run.stdout
