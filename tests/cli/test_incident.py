"""`peerctl incident save` against real daemons, and with what is no recording."""

import json
import subprocess
import sys
from pathlib import Path

from peerd.recorder.ring import FILE_NAME
from peerd.testing.dev_cluster import DevCluster
from peerd.testing.replay import main as replay


def peerctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "peerd.cli.peerctl", "incident", "save", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def one_line(result: subprocess.CompletedProcess[str], status: int) -> str:
    assert result.returncode == status, result.stdout + result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def test_it_collects_from_every_process(cluster: DevCluster, tmp_path: Path):
    out = tmp_path / "incident"
    saved = peerctl("--out", str(out), "-c", str(cluster.peerctl_toml), "-o", "json")
    assert saved.returncode == 0, saved.stderr
    rows = json.loads(saved.stdout)
    assert [row["source"] for row in rows] == [member.id for member in cluster.members]
    assert all(row["records"] > 0 and not row["note"] for row in rows)
    assert {path.stem for path in out.iterdir()} == {member.id for member in cluster.members}
    assert replay([str(out)]) == 0


def test_data_directories_need_no_cluster(cluster: DevCluster, tmp_path: Path):
    out = tmp_path / "incident"
    given = [f"--data-dir={peer.data_dir}" for peer in cluster.peers]
    saved = peerctl("--out", str(out), "--offline", *given)
    assert saved.returncode == 0, saved.stderr
    assert all(f"{peer.id}.ring" in saved.stdout for peer in cluster.peers)


def test_a_directory_that_is_in_use_is_left_alone(tmp_path: Path):
    (tmp_path / "kept").write_text("mine")
    assert "is not empty" in one_line(peerctl("--out", str(tmp_path), "--offline"), 2)


def test_what_is_no_recording_is_not_kept(tmp_path: Path):
    source = tmp_path / "peer-9" / "data"
    source.mkdir(parents=True)
    (source / FILE_NAME).write_bytes(b"no recording at all" * 100)
    out = tmp_path / "incident"
    saved = peerctl("--out", str(out), "--offline", "--data-dir", str(source))
    assert "nothing was saved" in one_line(saved, 1)
    assert "is no flight recording" in saved.stdout
    assert not list(out.iterdir())
    other = peerctl("--out", str(out), "--offline", "--data-dir", f"x={tmp_path / 'none'}")
    assert "No such file" in other.stdout
