"""Which keys differ between two settings, whatever section they stand in."""

from peerd.daemon.config import load_config
from peerd.settings import changed_keys


def loaded(**changes: object):
    values = {
        "cluster": "shop",
        "name": "peer-1",
        "listen": "127.0.0.1:0",
        "las": ("127.0.0.1:7500",),
        "data_dir": "data",
        "insecure_loopback": True,
    }
    return load_config(None, values | changes, environment={})


def test_nothing_differs_from_itself():
    assert changed_keys(loaded(), loaded()) == []


def test_keys_are_named_with_their_section():
    after = loaded(**{"workers": 3, "copier.bytes_per_s_max": 5_000_000})
    assert changed_keys(loaded(), after) == ["workers", "copier.bytes_per_s_max"]


def test_a_section_that_was_not_there_is_told_by_its_keys():
    with_labels = loaded(**{"failure_domain.rack": "r7"})
    assert changed_keys(loaded(), with_labels) == ["failure_domain.rack"]
