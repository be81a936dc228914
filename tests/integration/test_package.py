"""The Debian package, on a host that has never seen peerd: installed, filled in, run, removed.

The host is this machine's own file system under an overlay that is thrown away, with processes and
a loopback of its own.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

NO_OVERLAY = 77

STORY = r"""
set -euo pipefail
package=$1 scratch=$2
mkdir "$scratch/upper" "$scratch/work" "$scratch/host"
layers="lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work"
mount -t overlay overlay -o "$layers" "$scratch/host" || exit 77
mount --rbind /dev "$scratch/host/dev"
mount -t proc proc "$scratch/host/proc"
ip link set lo up
exec chroot "$scratch/host" bash -euo pipefail -c '
cd /
told() { echo "== $1"; }
dpkg --install "$0" >/dev/null
told "the user and the settings"
id -nu peerd
stat -c "%U:%G %a" /etc/peerd
told "units"
systemd-analyze verify /usr/lib/systemd/system/peerd.service \
	/usr/lib/systemd/system/peerd-las.service
for unit in peerd peerd-las; do
	systemd-analyze security --offline=true --threshold=25 "$unit.service" | tail -n 1
done
told "settings that are not filled in"
peerd check -c /etc/peerd/peerd.toml && exit 9 || echo "status $?"
told "a tier in S3"
mkdir /srv/s3
cat >/srv/s3/tier.toml <<END
[tier]
url = "s3://cold"
endpoint = "http://127.0.0.1:9"
attempts = 1
access_key_id_file = "/srv/s3/id"
secret_access_key_file = "/srv/s3/id"
END
echo id >/srv/s3/id
peerctl backup list --tier /srv/s3/tier.toml 2>&1 | cut -d " " -f 1-5 | cut -d : -f 1-6 || true
told "a cluster of one"
peerctl pki init shop --dir /srv/pki >/dev/null
for who in "las las-1" "peer peer-1" "admin alice"; do
	set -- $who
	peerctl pki issue "$1" "$2" --host 127.0.0.1 --dir /srv/pki --to "/srv/$2" >/dev/null
done
cp /srv/las-1/*.pem /etc/peerd/
cp /srv/peer-1/*.pem /etc/peerd/
chgrp peerd /etc/peerd/*.pem
chmod 0640 /etc/peerd/*.pem
cat >/etc/peerd/las.toml <<END
cluster = "shop"
name = "las-1"
members = { las-1 = "127.0.0.1:7500" }
data_dir = "/var/lib/peerd-las/las"
tls.ca = "/etc/peerd/ca.pem"
tls.certificate = "/etc/peerd/las-1.cert.pem"
tls.key = "/etc/peerd/las-1.key.pem"
END
cat >/etc/peerd/peerd.toml <<END
cluster = "shop"
name = "peer-1"
listen = "127.0.0.1:7400"
las = ["127.0.0.1:7500"]
data_dir = "/var/lib/peerd/peer"
tls.ca = "/etc/peerd/ca.pem"
tls.certificate = "/etc/peerd/peer-1.cert.pem"
tls.key = "/etc/peerd/peer-1.key.pem"
END
cat >/srv/alice/peerctl.toml <<END
cluster = "shop"
peers = ["127.0.0.1:7400"]
las = ["127.0.0.1:7500"]
[tls]
ca = "ca.pem"
certificate = "alice.cert.pem"
key = "alice.key.pem"
END
as="setpriv --reuid=peerd --regid=peerd --clear-groups --no-new-privs"
$as peerd check -c /etc/peerd/peerd.toml
$as las check -c /etc/peerd/las.toml
$as las init -c /etc/peerd/las.toml >/dev/null
$as las serve -c /etc/peerd/las.toml --ready-file /var/lib/peerd-las/ready 2>/srv/las.log &
las=$!
$as peerd serve -c /etc/peerd/peerd.toml --ready-file /var/lib/peerd/ready 2>/srv/peer.log &
peer=$!
while ! [ -e /var/lib/peerd/ready ]; do kill -0 $las $peer; sleep 0.05; done
export PEERCTL_CONFIG=/srv/alice/peerctl.toml
peerctl log create orders --shards 1 --copies 1
peerctl append orders hello
peerctl read orders
told "its end"
kill $peer
wait $peer
kill $las
wait $las
echo "both stopped with status 0"
dpkg --purge peerd 2>&1 | grep "^peerd:"
ls -d /var/lib/peerd/peer /var/lib/peerd-las/las
ls /usr/lib/peerd 2>/dev/null || echo "nothing else stays"
' "$package"
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb here")
    out = tmp_path_factory.mktemp("package")
    done = subprocess.run(
        [sys.executable, "-m", "deploy.build", "deb", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def said(output: str) -> dict[str, list[str]]:
    """The lines of each chapter of the story."""
    chapters: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith("== "):
            chapters[line[3:]] = []
        elif chapters:
            chapters[list(chapters)[-1]].append(line)
    return chapters


@pytest.mark.root
@pytest.mark.timeout(600)
def test_a_host_gets_the_package_and_runs_a_cluster(package, tmp_path):
    apart = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
    done = subprocess.run(
        [*apart, "bash", "-c", STORY, "bash", str(package), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == NO_OVERLAY:
        pytest.skip(f"this root cannot lie under an overlay: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    story = said(done.stdout)
    assert story["the user and the settings"] == ["peerd", "root:peerd 750"]
    assert [line.split(":")[0] for line in story["units"]] == [
        "→ Overall exposure level for peerd.service",
        "→ Overall exposure level for peerd-las.service",
    ]
    assert story["settings that are not filled in"][-1] == "status 2"
    # The library is there: it has looked for the store.
    assert story["a tier in S3"] == ["peerctl: TIER_UNAVAILABLE: s3://cold at http://127.0.0.1:9"]
    assert story["a cluster of one"][-1].endswith("hello")
    stopped, *left, last = story["its end"]
    assert stopped == "both stopped with status 0"
    assert left[-2:] == ["/var/lib/peerd-las/las", "/var/lib/peerd/peer"]
    assert last == "nothing else stays"
