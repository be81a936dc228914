"""What `make tutorial-test` would do is what the page says, read without doing it."""

import pytest

from tests.tutorial.run import HOSTS, PAGE, is_javascript, missing, steps

PAGE_OF_ONE = """## 1. A thing

`dir/file.toml`, of all:

```toml
key = 1
```

```console
every host# first thing
laptop# second | thing
shown …
…
host-2# third
```
"""


def test_commands_files_and_answers_are_read_in_order():
    file, first, second, third = steps(PAGE_OF_ONE)
    assert (file.path, file.command) == ("dir/file.toml", "key = 1\n")
    assert (first.where, first.command, first.shown) == (HOSTS, "first thing", [])
    assert (second.where, second.shown) == (("laptop",), ["shown …", "…"])
    assert (third.where, third.chapter) == (("host-2",), "1. A thing")


@pytest.mark.parametrize(
    ("shown", "lacking"),
    [
        (["a", "c"], ""),
        (["a", "…", "d …"], ""),
        (["c", "a"], "a"),
        (["b"], "b"),
        (["d …g"], ""),
        ([], ""),
    ],
)
def test_an_answer_has_what_the_page_shows_in_its_order(shown, lacking):
    assert missing(shown, "a\nc\nd e f g\n") == lacking


def test_the_page_is_whole():
    found = steps(PAGE.read_text("utf-8"))
    assert len([step for step in found if not step.path]) > 35
    assert [step.path for step in found if step.path] == [
        "host-1/las.toml",
        "host-1/peerd.toml",
        "peerctl.toml",
        "append.js",
        "prometheus.yml",
    ]


def test_what_needs_node_is_known_and_nothing_else():
    found = [step.path or step.command for step in steps(PAGE.read_text("utf-8"))]
    left_out = [
        step.path or step.command for step in steps(PAGE.read_text("utf-8")) if is_javascript(step)
    ]
    assert left_out == ["append.js", "node append.js", "peerctl read orders"]
    assert found.count("peerctl read orders") > 1, "the others stay"
