"""Small models that keep the contract, or break one rule of it."""

import numpy as np

from las.forecast.contract import (
    HARDWARE,
    HEAD_HORIZONS_S,
    HORIZONS_S,
    ModelContract,
    SelfTest,
    to_metadata,
)
from las.forecast.hardware_inputs import DAYS_BEFORE, HARDWARE_NAMES, HARDWARE_SCHEMA_VERSION
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from tests.forecast.onnx_bytes import newest_sample_model

FEATURES = ("commit_latency_ms_p99", "commit_stalls_per_s", "machine_identity")
WINDOW = 120


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def incident_model(model_id="made-1", *, weight=0.1, padding_bytes=0, **changes):
    """p(10 min) = sigmoid(weight * commit latency in ms `ago` s ago), p(1 h) the same."""
    weights = ((weight, weight), (0.0, 0.0), (0.0, 0.0))
    shape = {"window": WINDOW, "ago": 20} | changes
    return model(model_id, FEATURES, weights, HORIZONS_S, padding_bytes, **shape)


def hardware_model(model_id="made-hardware-1"):
    """A week's probability that rises with reallocated sectors."""
    weights = np.zeros((len(HARDWARE_NAMES), 3))
    weights[HARDWARE_NAMES.index("smart_5")] = (0.001, 0.002, 0.003)
    return model(
        model_id,
        HARDWARE_NAMES,
        weights,
        HEAD_HORIZONS_S[HARDWARE],
        0,
        window=len(DAYS_BEFORE),
        head=HARDWARE,
        schema_version=HARDWARE_SCHEMA_VERSION,
    )


def model(
    model_id, features, weights, horizons_s, padding_bytes, *, window, gaps=True, ago=0, **changes
):
    windows = np.zeros((2, window, len(features)), dtype=np.float32)
    windows[1, -1 - ago, 0] = 10.0
    expected = sigmoid(windows[:, -1 - ago] @ np.array(weights)).astype(np.float32)
    contract = ModelContract(
        **{
            "model_id": model_id,
            "schema_version": TELEMETRY_SCHEMA.version,
            "features": tuple(features),
            "window": window,
            "period_ms": 1000,
            "samples_min": 5,
            "horizons_s": horizons_s,
            "base_rates": tuple(0.01 * (n + 1) for n in range(len(horizons_s))),
            "training_data": "0" * 64,
            "figures": {},
            "self_test": SelfTest(windows=windows, expected=expected),
        }
        | changes
    )
    metadata = to_metadata(contract)
    if padding_bytes:
        metadata["padding"] = "x" * padding_bytes
    return newest_sample_model(window, weights, metadata, gaps=gaps, ago=ago)
