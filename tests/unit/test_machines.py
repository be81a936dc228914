"""Links between namespaces lose what a cut says, and no more; who may not make them is told."""

import json
import os
import subprocess
import sys

import pytest

from peerd.bench import machines
from peerd.bench.workers import BenchFailed

# Runs in the namespaces: who is heard by whom, without a cut, with each, and afterwards.
SCRIPT = """
import ctypes, json, os, socket, sys
from peerd.bench.machines import ENTERED, Machines, enter

enter("tests.unit.test_machines", [])
made = Machines(["a", "b"])
libc = ctypes.CDLL(None, use_errno=True)

def socket_in(name, host):
    if name is None:
        made_there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    else:
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{name}", os.O_RDONLY)
        assert libc.setns(there, 0x40000000) == 0
        made_there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        assert libc.setns(home, 0x40000000) == 0
    made_there.bind((host, 0))
    return made_there

hosts = {name: made.host(name) for name in ("a", "b", "others")}
places = {name: socket_in(None if name == "others" else name, host) for name, host in hosts.items()}

def heard(wait_s):
    found = []
    for sender, out in places.items():
        for receiver, into in places.items():
            if sender == receiver:
                continue
            word = f"{sender} to {receiver}"
            out.sendto(word.encode(), into.getsockname())
            into.settimeout(wait_s)
            try:
                while into.recv(100).decode() != word:
                    pass
                found.append(word)
            except TimeoutError:
                pass
    return sorted(found)

told = {"whole": heard(5.0)}
for cut in (made.off, made.mute, made.deaf):
    with cut("a"):
        told[cut.__name__] = heard(0.2)
    told[f"after {cut.__name__}"] = heard(5.0)
# Both cut what b sends to a: the end of one is not the end of the other.
mute, deaf = made.mute("b"), made.deaf("a")
mute.__enter__()
deaf.__enter__()
mute.__exit__(None, None, None)
told["still deaf"] = heard(0.2)
deaf.__exit__(None, None, None)
told["after both"] = heard(5.0)
print(json.dumps(told))
"""

EVERY_WAY = sorted(
    f"{one} to {other}"
    for one in ("a", "b", "others")
    for other in ("a", "b", "others")
    if one != other
)


@pytest.mark.root
def test_a_cut_loses_what_it_says_and_is_mended_whole():
    separate = ("unshare", "--net", "--mount", "--propagation", "private", "--")
    done = subprocess.run(
        [*separate, sys.executable, "-c", SCRIPT],
        env=os.environ | {machines.ENTERED: "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for whole in ("whole", "after off", "after mute", "after deaf", "after both"):
        assert told[whole] == EVERY_WAY, whole
    assert told["off"] == ["b to others", "others to b"]
    assert told["mute"] == ["b to a", "b to others", "others to a", "others to b"]
    assert told["still deaf"] == told["deaf"]
    assert told["deaf"] == ["a to b", "a to others", "b to others", "others to b"]


def test_who_may_not_make_namespaces_is_told_what_it_takes(monkeypatch):
    monkeypatch.delenv(machines.ENTERED, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(BenchFailed, match="needs root"):
        machines.enter("peerd.cli.peerctl", [])
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(BenchFailed, match="util-linux"):
        machines.enter("peerd.cli.peerctl", [])
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(BenchFailed, match="Linux"):
        machines.enter("peerd.cli.peerctl", [])


def test_a_kernel_that_refuses_is_quoted(monkeypatch):
    monkeypatch.delenv(machines.ENTERED, raising=False)
    refused = subprocess.CompletedProcess([], 1, "", "unshare: Operation not permitted\n")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: refused)
    with pytest.raises(BenchFailed, match="Operation not permitted"):
        machines.enter("peerd.cli.peerctl", [])


def test_too_many_machines_are_refused_before_anything_is_made():
    with pytest.raises(BenchFailed, match="at most 200"):
        machines.Machines([f"peer-{each}" for each in range(201)])
