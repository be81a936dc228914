"""What of the lock goes into a package for hosts."""

import re
from pathlib import Path

from deploy import build

LOCK = (Path(__file__).parents[2] / "requirements.lock").read_text("utf-8")


def packages(lock: str) -> set[str]:
    return set(re.findall(r"(?m)^([a-z0-9-]+)==", lock))


def test_a_package_has_what_a_tier_in_s3_needs_and_nothing_for_development(monkeypatch):
    wanted = packages(build.runtime_lock(LOCK))
    assert wanted <= packages(LOCK)
    assert {"grpcio", "lmdb", "obstore"} <= wanted
    assert not {"pytest", "mypy", "pyarrow", "opentelemetry-sdk"} & wanted
    monkeypatch.setattr(build, "EXTRAS", ("",))
    bare = packages(build.runtime_lock(LOCK))
    assert "obstore" not in bare
    assert bare < wanted
