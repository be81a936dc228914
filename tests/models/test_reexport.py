"""What a shipped file has learnt can be read back, so that its code may change without training."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is installed by `make train` alone")

import onnx
import torch

from las.forecast.load import SHIPPED_MODEL
from las.forecast.model import ForecastModel
from models.dataset import RECORDINGS, read_runs
from models.export import SAMPLES_MIN
from models.features import FEATURES, WINDOW
from models.graph_export import to_graph
from models.reexport import NotOurs, read_network, renamed_card
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

COLUMNS = [TELEMETRY_SCHEMA.positions[name] for name in FEATURES]


def test_the_network_read_from_the_shipped_file_answers_like_it():
    model, network = ForecastModel.load(SHIPPED_MODEL), read_network(SHIPPED_MODEL)
    random = np.random.default_rng(1)
    apart = []
    for run in read_runs(RECORDINGS)[::9]:
        for second in (SAMPLES_MIN + 2, run.values.shape[1] // 2, run.values.shape[1] - 5):
            windows = run.windows(second, WINDOW)
            gaps = np.where(random.random(windows.shape) < 0.3, np.nan, windows)
            for case in (windows, gaps.astype(np.float32)):
                told = model.predict(case)
                with torch.no_grad():
                    wanted = network(torch.from_numpy(case[:, :, COLUMNS])).numpy()
                apart.append(np.abs(told.probabilities - wanted)[told.known].max(initial=0.0))
    assert len(apart) >= 40
    # Numbers on the edge of the trees' grid may be rounded the other way, and move p a little.
    assert np.median(apart) < 1e-6
    assert max(apart) < 0.05


def test_the_graph_of_today_is_the_shipped_one():
    """Whoever changes the description exports the head anew (`python -m models.reexport`)."""
    graph = to_graph(read_network(SHIPPED_MODEL), torch.zeros(3, WINDOW, len(FEATURES)))
    ours, shipped = (
        [(node.op_type, node.name) for node in onnx.load_from_string(content).graph.node]
        for content in (graph, SHIPPED_MODEL.read_bytes())
    )
    assert ours == shipped


def test_another_graph_is_no_incident_head():
    with pytest.raises(NotOurs):
        read_network(SHIPPED_MODEL.with_name("hardware.onnx"))


def test_a_card_gets_another_name_and_size_and_nothing_else():
    card = SHIPPED_MODEL.with_suffix(".md").read_text()
    model_id, size = ForecastModel.load(SHIPPED_MODEL).model_id, SHIPPED_MODEL.stat().st_size
    other = renamed_card(card, (model_id, size), ("incident-0", 12_345))
    assert "# Model card: incident-0\n" in other
    assert "\nONNX, 12 kB. " in other
    assert len(card.splitlines()) == len(other.splitlines())
    changed = [a for a, b in zip(card.splitlines(), other.splitlines(), strict=True) if a != b]
    assert len(changed) == 2
    with pytest.raises(NotOurs):
        renamed_card(other, (model_id, size), ("incident-1", 1))
