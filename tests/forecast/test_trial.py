"""A file is tried before the LAS takes it: each rule that it may break refuses it by name."""

import numpy as np
import pytest
from made_models import hardware_model, incident_model

from las.forecast import trial
from las.forecast.contract import ModelRefused, SelfTest
from las.forecast.heads import SHIPPED
from las.forecast.trial import tried

OTHER = SelfTest(
    windows=np.zeros((1, 120, 3), dtype=np.float32),
    expected=np.full((1, 2), 0.25, dtype=np.float32),
)


@pytest.mark.parametrize("head", ["incident", "hardware", "history"])
def test_what_is_shipped_passes_its_trial(head):
    passed = tried((SHIPPED / f"{head}.onnx").read_bytes(), head)
    assert passed.contract.head == head
    assert passed.took_s < trial.TRIAL_TIMEOUT_S


def test_a_made_model_of_either_kind_passes():
    assert tried(incident_model()).contract.model_id == "made-1"
    assert tried(hardware_model()).contract.head == "hardware"


@pytest.mark.parametrize(
    ("content", "head", "why"),
    [
        (b"", "", "no ONNX model"),
        (bytes(range(256)) * 64, "", "no ONNX model"),
        (incident_model()[:-100], "", "no ONNX model|metadata key"),
        (incident_model(), "hardware", "is for the incident head"),
        (hardware_model(), "incident", "is for the hardware head"),
        (incident_model(schema_version=7), "", "made for telemetry schema 7"),
        (incident_model(gaps=False), "", "answers with NaN"),
        (incident_model(self_test=OTHER), "", "fails its self-test"),
    ],
    ids=[
        "empty",
        "random bytes",
        "cut",
        "other head",
        "other head 2",
        "schema",
        "gaps",
        "self-test",
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(content, head, why):
    with pytest.raises(ModelRefused, match=why):
        tried(content, head)


def test_one_that_wants_more_samples_than_peers_keep_is_refused():
    with pytest.raises(ModelRefused, match="reads 121 samples, and peers keep 120"):
        tried(incident_model(window=121))


def test_a_slow_one_is_refused(monkeypatch):
    monkeypatch.setattr(trial, "TRIAL_TIMEOUT_S", -1.0)
    with pytest.raises(ModelRefused, match=r"takes .* s of CPU for 1000 nodes"):
        tried(incident_model())
