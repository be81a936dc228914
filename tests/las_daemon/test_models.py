"""Models over real calls: tried, in shadow, promoted, rolled back; broken ones move nothing."""

import numpy as np
import pytest

from las.core.model_registry import MODEL_BYTES_MAX
from las.daemon import model as daemon
from las.forecast.comparison import Comparison
from las.forecast.contract import ModelRefused
from las.forecast.heads import SHIPPED
from las.v1 import fleet_pb2, model_pb2_grpc
from las.v1 import model_pb2 as pb
from peerd.pki import Role
from tests.forecast.made_models import hardware_model, incident_model
from tests.las_daemon.stand_in import ADMIN, metadata, refused, until
from tests.las_daemon.test_fleet import status

OLIVE = metadata(Role.OPERATOR, "olive")
# Cries of whoever needed more than 1 ms for a commit 5 s ago; a peer says so of its last 10 s.
CRIES = incident_model("cries-1", weight=3.0, padding_bytes=100_000, ago=5)
CALM = incident_model("calm-1", weight=-3.0)


def stub(las):
    return model_pb2_grpc.ModelServiceStub(las.channel)


async def install(las, content, head=""):
    request = pb.InstallModelRequest(content=content, head=head)
    return await stub(las).InstallModel(request, metadata=OLIVE, timeout=10)


async def promote(las, version, head=""):
    request = pb.PromoteModelRequest(version=version, head=head)
    return await stub(las).PromoteModel(request, metadata=OLIVE, timeout=10)


async def roll_back(las, version, head=""):
    request = pb.RollBackModelRequest(version=version, head=head)
    return await stub(las).RollBackModel(request, metadata=OLIVE, timeout=10)


async def models(las, head="incident"):
    answer = await stub(las).ListModels(pb.ListModelsRequest(), metadata=OLIVE, timeout=30)
    return next(each for each in answer.heads if each.head == head)


async def states(las, head="incident"):
    return [(each.version, each.state) for each in (await models(las, head)).models]


async def slow_first(las):
    """Four peers, the first of which needs 3 ms for a commit."""
    peers = await las.add_peers(4)
    for number, peer in enumerate(peers):
        samples = peer.samples(60, commit_ms=0.0 if number else 3.0)
        await peer.heartbeats(peer.beat(samples=samples))
    return peers


async def compared(las, head="incident"):
    found = [each for each in (await models(las, head)).models if each.state == "shadow"]
    return found[0].comparison


async def test_in_shadow_it_is_compared_and_moves_nothing_until_it_is_promoted(las):
    await slow_first(las)
    answer = await install(las, CRIES, "incident")
    assert (answer.version, answer.head, answer.model_id, answer.known) == (
        1,
        "incident",
        "cries-1",
        False,
    )
    assert (await install(las, CRIES)).known  # a retry

    async def rounds():
        return (await compared(las)).rounds >= 3

    await until(rounds, "rounds in shadow")
    seen = await compared(las)
    assert (seen.alarms, seen.alarms_shadow) == (0, 1)
    assert seen.difference_max > 0.9
    assert not las.state.nodes["peer-1"].at_risk
    assert await states(las) == [(0, "live"), (1, "shadow")]
    assert las.term.forecaster.latest.model_id == "heuristic"

    assert (await promote(las, 1)).text == "version 1 answers, shipped before it"
    await until(lambda: las.state.nodes["peer-1"].at_risk, "what it says counts")
    assert las.term.forecaster.latest.model_id == "cries-1"
    assert await states(las) == [(0, "before"), (1, "live")]

    assert (await roll_back(las, 1)).version == 0
    await until(lambda: las.term.forecaster.latest.model_id == "heuristic", "the one before")
    assert await states(las) == [(0, "live"), (1, "kept")]
    assert (await refused(roll_back(las, 1)))[0] == "STATE_CHANGED"
    audit = await las.fleet.ListAudit(fleet_pb2.ListAuditRequest(), metadata=ADMIN, timeout=30)
    assert [(each.what, each.model, each.who, each.ok) for each in audit.records] == [
        ("model install", "incident", "olive", True),
        ("model install", "incident", "olive", True),
        ("model promote", "incident", "olive", True),
        ("model rollback", "incident", "olive", True),
        ("model rollback", "incident", "olive", False),
    ]


@pytest.mark.parametrize(
    ("content", "head", "reason", "words"),
    [
        (bytes(range(256)) * 64, "", "MODEL_REFUSED", "no ONNX model"),
        (incident_model(schema_version=7), "", "MODEL_REFUSED", "telemetry schema 7"),
        (incident_model(gaps=False), "", "MODEL_REFUSED", "NaN"),
        (CALM, "history", "MODEL_REFUSED", "is for the incident head"),
        (CALM, "weather", "INVALID_ARGUMENT", "no head is called 'weather'"),
        (bytes(MODEL_BYTES_MAX + 1), "", "LIMIT_REACHED", "at most 1 MiB"),
    ],
    ids=["no model", "schema", "not a number", "head", "no head", "too large"],
)
async def test_what_is_no_model_is_refused_and_changes_nothing(las, content, head, reason, words):
    before = las.state.models
    name, refusal = await refused(install(las, content, head))
    assert name == reason
    assert words in refusal.message
    assert las.state.models is before
    assert las.state.audit[1].reason == reason.lower()


async def test_refusals_of_promotions(las):
    await install(las, CALM)
    assert (await refused(promote(las, 7)))[0] == "UNKNOWN_MODEL"
    assert (await refused(promote(las, 1, "history")))[0] == "UNKNOWN_MODEL"
    assert (await refused(promote(las, 1, "weather")))[0] == "INVALID_ARGUMENT"
    name, refusal = await refused(roll_back(las, 0))
    assert (name, "none before it" in refusal.message) == ("STATE_CHANGED", True)


async def test_one_that_fails_in_shadow_is_given_up_and_not_promoted(las, monkeypatch):
    await slow_first(las)

    def broken(self, windows):
        raise ModelRefused("answers with NaN or infinity")

    monkeypatch.setattr(daemon.ForecastModel, "predict", broken)
    await install(las, CALM)

    async def given_up():
        return (await compared(las)).given_up == "answers with NaN or infinity"

    await until(given_up, "given up")
    name, refusal = await refused(promote(las, 1))
    assert (name, "failed in shadow" in refusal.message) == ("MODEL_REFUSED", True)
    assert las.term.forecaster.latest.model_id == "heuristic"


async def test_a_promoted_one_that_breaks_is_given_up_until_another_answers(las, monkeypatch):
    await slow_first(las)
    await install(las, CALM)
    await promote(las, 1)
    await until(lambda: las.term.forecaster.latest.model_id == "calm-1", "it answers")
    with monkeypatch.context() as patch:
        patch.setattr(
            daemon.ForecastModel, "predict", lambda *_: (_ for _ in ()).throw(ModelRefused("NaN"))
        )
        await until(lambda: las.term.forecaster.latest.model_id == "heuristic", "the rule")
    note = (await models(las)).note
    assert "given up (NaN)" in note
    assert "las model rollback" in note
    assert note in (await status(las)).warnings
    await install(las, CRIES)
    await promote(las, 2)
    await until(lambda: las.term.forecaster.latest.model_id == "cries-1", "the next one")
    assert (await models(las)).note == ""


async def test_one_that_this_node_cannot_use_leaves_the_one_it_has(las, monkeypatch):
    await slow_first(las)
    await install(las, CALM)

    def refuse(content):
        raise ModelRefused("made for telemetry schema 7")

    monkeypatch.setattr(daemon.ForecastModel, "from_bytes", refuse)
    monkeypatch.setattr("las.daemon.services.models.tried", lambda content, head: None)
    await promote(las, 1)

    async def told():
        return "version 1 of the incident model cannot be used here" in (await models(las)).note

    await until(told, "it is told")
    # The first round may be yet to come.
    await until(lambda: las.term.forecaster.latest.model_id != "", "it forecasts")
    assert las.term.forecaster.latest.model_id == "heuristic"
    assert (await models(las)).answering == "heuristic"


async def test_another_head_runs_in_shadow_is_promoted_and_rolled_back(las):
    await slow_first(las)
    answer = await install(las, hardware_model())
    assert answer.head == "hardware"
    shipped = (await models(las, "hardware")).answering

    async def in_shadow():
        return [each.version for each in (await models(las, "hardware")).models] == [0, 1]

    await until(in_shadow)
    assert await states(las, "hardware") == [(0, "live"), (1, "shadow")]
    await promote(las, 1)

    async def answers():
        return (await models(las, "hardware")).answering == "made-hardware-1"

    await until(answers, "it answers")
    await roll_back(las, 1, "hardware")

    async def back():
        return (await models(las, "hardware")).answering == shipped

    await until(back, "what is shipped answers")


async def test_a_restarted_node_has_the_models(start_las):
    las = await (await start_las()).leading()
    content = (SHIPPED / "incident.onnx").read_bytes()
    assert len(content) > 3 * 45 * 1024
    await install(las, content)
    await promote(las, 1)
    await las.stop()
    las = await (await start_las()).leading()
    assert las.state.models.version(1).content == content
    assert await states(las) == [(0, "before"), (1, "live")]

    async def answers():
        return (await models(las)).answering.startswith("incident-")

    await until(answers, "it answers after the restart")


async def test_what_becomes_of_nodes_is_told_to_the_comparison(las):
    peers = await slow_first(las)
    seen = Comparison(600)
    names = [peer.name for peer in peers]
    seen.add(0, names, np.full(4, 0.1), np.full(4, 0.9))
    request = fleet_pb2.DrainRequest(node="peer-2")
    await las.fleet.Drain(request, metadata=ADMIN, timeout=30)
    failed = fleet_pb2.StorageFailed(why="EIO")
    await peers[0].report(fleet_pb2.PeerReport(storage_failed=failed))
    daemon.settle(seen, las.state, 1)
    assert (seen.figures().scored, seen.figures().came_true) == (1, 1)
    seen.add(601, ["peer-3"], np.array([0.1]), np.array([0.1]))
    assert seen.figures().scored == 3  # peers 3 and 4; peer-2 is drained, and unknown
