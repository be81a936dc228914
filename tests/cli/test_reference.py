"""docs/cli.md is what the commands say."""

from pathlib import Path

from deploy.cli_reference import page

ROOT = Path(__file__).parents[2]


def test_the_page_is_current_and_has_every_command():
    text = page()
    assert (ROOT / "docs/cli.md").read_text() == text, "run: make docs"
    for command in ("peerctl status", "peerctl cluster finalize", "peerd serve", "las init"):
        assert f"### `{command}`" in text
