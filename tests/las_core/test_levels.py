"""What of an upgrade may be used, from what LAS nodes and peers know."""

from las.core.apply import apply
from las.core.commands import Audited, RaiseCommandLevel
from las.core.levels import COMMAND_LEVEL, FIRST_LEVEL, features_of, level_known, older_nodes
from las.core.state import ClusterState
from tests.las_core.builders import done, register
from tests.las_core.test_values import ANN

NEWEST = features_of(COMMAND_LEVEL)


def fleet(*feature_levels: int) -> ClusterState:
    nodes = enumerate(feature_levels, 1)
    return done(
        ClusterState(cluster_id="cluster-1"),
        *(register(number, feature_level=level) for number, level in nodes),
    )


def test_the_level_that_is_known_is_that_of_whoever_knows_least():
    assert level_known(fleet(NEWEST, NEWEST), COMMAND_LEVEL) == COMMAND_LEVEL
    assert level_known(fleet(NEWEST, NEWEST), COMMAND_LEVEL - 1) == COMMAND_LEVEL - 1
    assert level_known(fleet(NEWEST, NEWEST - 1), COMMAND_LEVEL) == COMMAND_LEVEL - 1
    assert level_known(fleet(1), COMMAND_LEVEL) == FIRST_LEVEL
    assert level_known(fleet(), COMMAND_LEVEL) == COMMAND_LEVEL


def test_who_does_not_know_a_level_is_named():
    assert older_nodes(fleet(NEWEST, NEWEST - 1, 1), COMMAND_LEVEL) == ("peer-2", "peer-3")
    assert older_nodes(fleet(NEWEST), COMMAND_LEVEL) == ()


def test_each_level_has_its_feature_level_and_none_takes_one_back():
    needed = [features_of(level) for level in range(FIRST_LEVEL, COMMAND_LEVEL + 1)]
    assert needed == sorted(needed)


def test_who_finalised_an_upgrade_stands_in_the_audit():
    state, _ = apply(fleet(), Audited(caller=ANN, command=RaiseCommandLevel(level=2)))
    assert state.command_level == 2
    record = state.audit[state.audited]
    assert (record.before, record.after, record.ok) == ("level 1", "level 2", True)
