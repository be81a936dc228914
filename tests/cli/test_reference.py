"""docs/cli.md is what the commands say, docs/api.md what the .proto files say."""

import re
import shutil
from pathlib import Path

import pytest

from deploy import cli_reference, proto_reference
from deploy.proto_reference import PROTO_DIRECTORY, NoComment

ROOT = Path(__file__).parents[2]


def test_the_page_is_current_and_has_every_command():
    text = cli_reference.page()
    assert (ROOT / "docs/cli.md").read_text() == text, "run: make docs"
    for command in ("peerctl status", "peerctl cluster finalize", "peerd serve", "las init"):
        assert f"### `{command}`" in text


@pytest.fixture(scope="module")
def api() -> str:
    return proto_reference.page()


def test_the_page_of_services_is_current_and_has_every_public_call(api: str):
    assert (ROOT / "docs/api.md").read_text() == api, "run: make docs"
    for proto in sorted(PROTO_DIRECTORY.rglob("*.proto")):
        source = proto.read_text()
        is_public = "internal" not in proto.parts
        for name in re.findall(r"^service (\w+)", source, re.MULTILINE):
            assert (f"\n### {name}\n" in api) is is_public
        for call in re.findall(r"^  rpc (\w+)\(", source, re.MULTILINE) if is_public else ():
            assert f"| `{call}` |" in api
    assert "| `expected_offset` | 7 | optional uint64 |" in api
    assert "| stream of [AppendStreamRequest](#appendstreamrequest) |" in api
    assert "map of uint64 to uint64" in api


def test_every_link_of_the_page_of_services_leads_somewhere(api: str):
    headings = re.findall(r"^#+ (.*)$", api, re.MULTILINE)
    anchors = [re.sub(r"[^a-z0-9_ -]", "", each.lower()).replace(" ", "-") for each in headings]
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([^)]*)\)", api)) <= set(anchors)


def test_what_has_no_comment_is_told(tmp_path: Path):
    shutil.copytree(PROTO_DIRECTORY, tmp_path / "proto")
    proto = tmp_path / "proto/peerd/v1/log.proto"
    source = proto.read_text()
    comment = "  // Where the batch is.\n"
    assert source.count(comment) == 1
    proto.write_text(source.replace(comment, ""))
    with pytest.raises(NoComment, match=r"log\.proto: AppendResponse\.receipt has no comment"):
        proto_reference.page(tmp_path / "proto")
