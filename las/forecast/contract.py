"""What a model file must say of itself, and be, before the LAS believes it.

A model is an ONNX file that takes one input, `windows`: float32 of shape [nodes, window, features]
with raw values and NaN for what is missing, newest sample last; and gives one output,
`probabilities`: float32 of shape [nodes, horizons]. Scaling, missing values, calibration and the
order of the horizons are inside the graph. Its metadata hold the keys of `ModelContract`.

Invariants:
- A file that does not match this program's telemetry, does not load, does not answer its own
  self-test as written, or answers with anything but probabilities that never fall with the
  horizon, is refused with `ModelRefused`. Nothing of it is used.
- Nothing is executed or fetched on the way: the file is read as a whole, within a bound, and
  external data files are not looked up.

The metadata are written by `models/export.py` through `to_metadata`, so both ends are this page.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from peerd.daemon.telemetry.schema import TelemetrySchema

FORMAT = 1
INPUT_NAME = "windows"
OUTPUT_NAME = "probabilities"
# The horizons that the policy asks for: ten minutes decide, the hour informs. Seconds.
HORIZONS_S = (600, 3600)
# What each kind of head foresees. Seconds: ten minutes, an hour, a day, a week, thirty days.
INCIDENT, HARDWARE, HISTORY = "incident", "hardware", "history"
HEAD_HORIZONS_S: Mapping[str, tuple[int, ...]] = {
    INCIDENT: HORIZONS_S,
    HARDWARE: (86_400, 604_800, 2_592_000),
    HISTORY: (3600, 86_400, 604_800, 2_592_000),
}

# limit: bytes of a model file; a hundred times the shipped one.
MODEL_BYTES_MAX = 16 << 20
# limit: samples of a window that a model may ask for: an hour at one a second.
MODEL_WINDOW_MAX = 3600
# limit: bytes of a self-test's input once unpacked.
SELF_TEST_BYTES_MAX = 4 << 20
# How far an answer may be from the expected one: float32 kernels differ between processors.
SELF_TEST_TOLERANCE = 1e-4
# How far a probability may fall with the horizon before it counts as falling: rounding.
ORDER_TOLERANCE = 1e-6

# limit: seconds for one answer of a model for the whole fleet; 10,000 nodes take 0.2.
MODEL_TIMEOUT_S = 8.0

_PREFIX = "peerd."

Item = TypeVar("Item", str, int, float)


class ModelRefused(Exception):
    """The file is no model for this program; the message says which rule it breaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """`windows` of shape [nodes, window, features], `expected` of shape [nodes, horizons]."""

    windows: npt.NDArray[np.float32]
    expected: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelContract:
    """A model's own description.

    `head` is the kind of it, a key of `HEAD_HORIZONS_S`. `features` are metrics of the telemetry
    schema, or of the head's own table, in the order of the input's last axis; `window` counts
    samples, `period_ms` apart; `base_rates` answer, by horizon, for a node of which too
    little was seen (`samples_min` samples); `training_data` is the SHA-256 of the recordings, and
    `figures` what was measured on held-out runs (name to value, see the model's card).
    """

    model_id: str
    schema_version: int
    features: tuple[str, ...]
    window: int
    period_ms: int
    samples_min: int
    horizons_s: tuple[int, ...]
    base_rates: tuple[float, ...]
    training_data: str
    figures: Mapping[str, float]
    self_test: SelfTest
    head: str = INCIDENT

    def __post_init__(self) -> None:
        if not self.model_id:
            raise ModelRefused("the model has no id")
        if self.head not in HEAD_HORIZONS_S:
            raise ModelRefused(f"a head {self.head!r} is not known to this program")
        if not 1 <= self.samples_min <= self.window <= MODEL_WINDOW_MAX:
            raise ModelRefused(f"window of {self.window} samples, at least {self.samples_min}")
        horizons_s = HEAD_HORIZONS_S[self.head]
        if self.horizons_s != horizons_s:
            raise ModelRefused(f"horizons {self.horizons_s} s, wanted {horizons_s} s")
        if len(self.base_rates) != len(horizons_s):
            raise ModelRefused("one base rate per horizon is wanted")
        check_probabilities(np.array([self.base_rates]))
        test = self.self_test
        if test.windows.shape != (len(test.expected), self.window, len(self.features)):
            raise ModelRefused(f"self-test input has shape {test.windows.shape}")
        if test.expected.shape[1] != len(self.horizons_s) or not len(test.expected):
            raise ModelRefused(f"self-test answer has shape {test.expected.shape}")

    def check_schema(self, schema: TelemetrySchema) -> None:
        """Raise `ModelRefused` unless the model was made for this telemetry, or its beginning.

        A table grows at its end alone, so metrics of an earlier one mean today what they meant.
        """
        self.check_head(INCIDENT)
        known = schema.metrics_of(self.schema_version)
        if known is None:
            raise ModelRefused(
                f"made for telemetry schema {self.schema_version}, this program has"
                f" {schema.version}; train the model anew or use the release it came with"
            )
        collected = frozenset(schema.names[:known])
        unknown = [name for name in self.features if name not in collected]
        if unknown:
            raise ModelRefused(f"reads metrics that are not collected: {', '.join(unknown)}")

    def check_table(self, head: str, names: tuple[str, ...], version: int) -> None:
        """Raise `ModelRefused` unless made for that head, with exactly these features in order."""
        self.check_head(head)
        if self.schema_version != version:
            raise ModelRefused(
                f"made for {head} inputs {self.schema_version}, this program has {version};"
                " train the model anew or use the release it came with"
            )
        if self.features != names:
            raise ModelRefused(f"reads other {head} inputs, or in another order")

    def check_head(self, head: str) -> None:
        """Raise `ModelRefused` unless it is of that kind."""
        if self.head != head:
            raise ModelRefused(f"is for the {self.head} head, wanted is one for the {head} head")


def check_probabilities(answer: npt.NDArray[np.floating]) -> None:
    """Raise `ModelRefused` unless [nodes, horizons] are probabilities rising with the horizon."""
    if not np.isfinite(answer).all():
        raise ModelRefused("answers with NaN or infinity")
    if (answer < 0.0).any() or (answer > 1.0).any():
        raise ModelRefused("answers outside 0 to 1")
    if (np.diff(answer, axis=1) < -ORDER_TOLERANCE).any():
        raise ModelRefused("a longer horizon has a lower probability")


def to_metadata(contract: ModelContract) -> dict[str, str]:
    """The contract as an ONNX file's metadata properties."""
    test = contract.self_test
    packed = zlib.compress(np.ascontiguousarray(test.windows, dtype="<f4").tobytes(), 9)
    content: dict[str, object] = {
        "format": FORMAT,
        "model_id": contract.model_id,
        "head": contract.head,
        "schema_version": contract.schema_version,
        "features": contract.features,
        "window": contract.window,
        "period_ms": contract.period_ms,
        "samples_min": contract.samples_min,
        "horizons_s": contract.horizons_s,
        "base_rates": contract.base_rates,
        "training_data": contract.training_data,
        "figures": dict(contract.figures),
        "self_test_windows": base64.b64encode(packed).decode(),
        "self_test_expected": [[float(p) for p in row] for row in test.expected],
    }
    return {_PREFIX + key: json.dumps(value) for key, value in content.items()}


def from_metadata(metadata: Mapping[str, str]) -> ModelContract:
    """Read what `to_metadata` wrote. Raises `ModelRefused` naming the key that is wrong."""
    reader = _Reader(metadata)
    if reader.one("format", int) != FORMAT:
        raise ModelRefused(f"format {reader.one('format', int)}, this program reads {FORMAT}")
    features = reader.many("features", str)
    window = reader.one("window", int)
    figures = reader.value("figures")
    if not isinstance(figures, dict):
        raise ModelRefused("metadata key peerd.figures is no table")
    if not 0 < window <= MODEL_WINDOW_MAX:
        raise ModelRefused(f"window of {window} samples")
    return ModelContract(
        model_id=reader.one("model_id", str),
        head=reader.one("head", str),
        schema_version=reader.one("schema_version", int),
        features=features,
        window=window,
        period_ms=reader.one("period_ms", int),
        samples_min=reader.one("samples_min", int),
        horizons_s=reader.many("horizons_s", int),
        base_rates=reader.many("base_rates", float),
        training_data=reader.one("training_data", str),
        figures={str(name): float(value) for name, value in figures.items()},
        self_test=_self_test(reader, window, len(features)),
    )


def _self_test(reader: _Reader, window: int, feature_count: int) -> SelfTest:
    try:
        packed = base64.b64decode(reader.one("self_test_windows", str), validate=True)
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(packed, SELF_TEST_BYTES_MAX)
        windows = np.frombuffer(raw, dtype="<f4").reshape(-1, window, feature_count)
        expected = np.array(reader.value("self_test_expected"), dtype=np.float32)
        expected = expected.reshape(len(windows), -1)
    except (ValueError, TypeError, zlib.error) as error:
        raise ModelRefused(f"the self-test cannot be read: {error}") from error
    return SelfTest(windows=windows, expected=expected)


class _Reader:
    """Typed access to JSON values of a metadata table."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._metadata = metadata

    def value(self, key: str) -> object:
        name = _PREFIX + key
        if name not in self._metadata:
            raise ModelRefused(f"metadata key {name} is missing; this is no model of peerd")
        try:
            value: object = json.loads(self._metadata[name])
        except ValueError as error:
            raise ModelRefused(f"metadata key {name} is not JSON") from error
        return value

    def one(self, key: str, kind: type[Item]) -> Item:
        return _typed(key, self.value(key), kind)

    def many(self, key: str, kind: type[Item]) -> tuple[Item, ...]:
        values = self.value(key)
        if not isinstance(values, list):
            raise ModelRefused(f"metadata key {_PREFIX}{key} is no list")
        return tuple(_typed(key, value, kind) for value in values)


def _typed(key: str, value: object, kind: type[Item]) -> Item:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ModelRefused(f"metadata key {_PREFIX}{key} is no {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ModelRefused(f"metadata key {_PREFIX}{key} is not finite")
    return value
