"""The ONNX model: loaded whole or refused, run once for the whole fleet.

Invariants:
- What was loaded has passed its contract and its self-test on this machine
  (`las/forecast/contract.py`).
- The same windows give the same answer: one thread, no random operator, fixed kernels.
- An answer that is no probability raises `ModelRefused` rather than reach the policy; the caller
  then falls back to the rule and says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from las.forecast.answer import (
    REASONS_MAX,
    Forecast,
    Reason,
    Windows,
    check_windows,
)
from las.forecast.contract import ModelContract, ModelRefused
from las.forecast.graph import Graph, read_bounded
from las.forecast.past import as_before, in_words
from peerd.daemon.telemetry.schema import ALWAYS_PRESENT, TELEMETRY_SCHEMA, Kind

# limit: companions of the same machine taken along when a node's reasons are worked out; enough
# for their mean, and few enough that explaining stays a matter of milliseconds.
COMPANIONS_MAX = 8

# limit: nodes that are judged in one run of the graph, but for those of the machine that fills it:
# their windows' numbers fit the processor's cache, which saves a tenth of the time.
BATCH_NODES = 500
# limit: nodes whose inputs are picked out at once: where their windows are a slice of longer ones,
# numpy copies so much first, and that should stay in the processor's cache, too.
COPIED_NODES = 125

# A machine identity no real one can have: it has more than 24 bits.
_VARIANT_IDENTITY_MIN = 1 << 24
# Weights below this are noise of the model, not a reason.
_WEIGHT_MIN = 0.02


class ForecastModel:
    """A loaded model. Made by `load`; immutable; may be used from one thread at a time."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.contract = contract = graph.contract
        schema = TELEMETRY_SCHEMA
        self._columns = np.array([schema.positions[name] for name in contract.features])
        self._metrics = [schema.metric(name) for name in contract.features]
        kinds = [metric.kind for metric in self._metrics]
        self._identity = kinds.index(Kind.IDENTITY) if Kind.IDENTITY in kinds else None
        names = contract.features
        self._presence = names.index(ALWAYS_PRESENT) if ALWAYS_PRESENT in names else None

    @classmethod
    def load(cls, path: Path) -> ForecastModel:
        """Read, check and try a model file. Raises `ModelRefused`; `OSError` if unreadable."""
        try:
            return cls.from_bytes(read_bounded(path))
        except ModelRefused as error:
            raise ModelRefused(f"{path}: {error}") from error

    @classmethod
    def from_bytes(cls, content: bytes) -> ForecastModel:
        """The same from a file's bytes. Raises `ModelRefused`."""
        return cls(Graph(content, _check_schema))

    @property
    def model_id(self) -> str:
        """The id in the model's contract."""
        return self.contract.model_id

    @property
    def window(self) -> int:
        """Samples of a window, one a second, newest last."""
        return self.contract.window

    def predict(self, windows: Windows) -> Forecast:
        """Judge a fleet in one run.

        `windows`: float32 [nodes, window, metrics of the schema], raw values, NaN = missing,
        newest last. Raises `WindowsUnfit` for another shape and `ModelRefused` when the graph
        answers with something that is no probability.
        """
        check_windows(windows, self.window, len(TELEMETRY_SCHEMA))
        known = np.zeros(len(windows), dtype=np.bool_)
        answer = np.zeros((len(windows), len(self.contract.horizons_s)), dtype=np.float32)
        for rows, features in self._batches(windows):
            answer[rows] = self._graph.run(features)
            if self._presence is not None:
                known[rows] = self._known(features[:, :, self._presence])
        if self._presence is None:
            known = self._known(windows[:, :, TELEMETRY_SCHEMA.positions[ALWAYS_PRESENT]])
        answer[~known] = self.contract.base_rates
        return Forecast(model_id=self.model_id, calibrated=True, probabilities=answer, known=known)

    def reasons(self, windows: Windows, node: int, *, count: int = 3) -> tuple[Reason, ...]:
        """Why the probability of `node` (a row of `windows`) is what it is, strongest first.

        Each input is judged by what it does to the 10-minute probability (in log-odds) when it
        alone is put back to the node's own past, and when all the others are: two metrics that
        tell the same story would each look idle by the first measure only.
        """
        check_windows(windows, self.window, len(TELEMETRY_SCHEMA))
        features = np.take(windows, self._columns, axis=2)
        actual = features[node]
        calm = np.stack([as_before(series) for series in actual.T], axis=1)
        told = [k for k in range(actual.shape[1]) if k != self._identity]
        variants = [actual, calm]
        for feature in told:
            without, alone = actual.copy(), calm.copy()
            without[:, feature] = calm[:, feature]
            alone[:, feature] = actual[:, feature]
            variants += [without, alone]
        odds = self._odds_of_variants(np.stack(variants), self._companions(features, node))
        drops = odds[0] - odds[2::2]
        rises = odds[3::2] - odds[1]
        weights = np.maximum(drops, 0.0) + np.maximum(rises, 0.0)
        total = float(weights.sum())
        if odds[0] <= odds[1] or total <= 0.0:
            return ()
        strongest = np.argsort(-weights, kind="stable")[: min(count, REASONS_MAX)]
        return tuple(
            Reason(
                metric=self._metrics[told[k]].name,
                text=in_words(self._metrics[told[k]], actual[:, told[k]]),
                weight=float(weights[k]) / total,
            )
            for k in strongest.tolist()
            if weights[k] / total >= _WEIGHT_MIN
        )

    def _batches(
        self, windows: Windows
    ) -> Iterator[tuple[slice | npt.NDArray[np.intp], npt.NDArray[np.float32]]]:
        """Rows that are judged together, with their features: some hundred, by whole machines.

        Rows are taken in the order in which their machine comes first, so that where each node has
        a machine of its own they stay where they are. Features are overwritten by the next batch.
        """
        order, spans = self._order(windows)
        if order is None:
            largest = max((min(span.stop, len(windows)) - span.start for span in spans), default=0)
            room = np.empty((largest, self.window, len(self._columns)), dtype=np.float32)
            for span in spans:
                yield span, self._features(windows[span], room)
            return
        features = np.take(windows, self._columns, axis=2)
        for span in spans:
            yield order[span], features[order[span]]

    def _features(self, windows: Windows, room: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the model reads of these windows, in the first rows of `room`.

        To write into memory that was written before takes half as long as into new one; so does,
        where the windows are a slice of longer ones, to copy some at a time. The mode is the one
        in which numpy needs no copy of its own: the columns are always there.
        """
        for first in range(0, len(windows), COPIED_NODES):
            part = windows[first : first + COPIED_NODES]
            out = room[first : first + len(part)]
            np.take(part, self._columns, axis=2, out=out, mode="clip")
        return room[: len(windows)]

    def _order(self, windows: Windows) -> tuple[npt.NDArray[np.intp] | None, list[slice]]:
        """An order of the rows, None if they may stay, and the parts of it to judge together."""
        count = len(windows)
        if count <= BATCH_NODES or self._identity is None:
            return None, [slice(k, k + BATCH_NODES) for k in range(0, count, BATCH_NODES)]
        machine = np.fmax.reduce(windows[:, :, self._columns[self._identity]], axis=1)
        # A node that never said where it runs has no companions: it equals nobody.
        _, firsts, group = np.unique(
            machine, return_index=True, return_inverse=True, equal_nan=False
        )
        first_row = firsts[group.reshape(-1)]
        order = np.argsort(first_row, kind="stable")
        # Where another machine begins; of those, the first at or beyond each full batch.
        begins = np.flatnonzero(np.diff(first_row[order], prepend=-1))
        places = np.searchsorted(begins, np.arange(0, count, BATCH_NODES))
        cuts = np.unique(np.append(begins[places[places < len(begins)]], count)).tolist()
        spans = [slice(first, last) for first, last in itertools.pairwise(cuts)]
        return (None if (np.diff(order) == 1).all() else order), spans

    def _known(self, presence: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Of whom enough was seen, by a metric that each sample has: [nodes] of [nodes, window]."""
        seen: npt.NDArray[np.bool_] = (
            np.count_nonzero(~np.isnan(presence), axis=1) >= self.contract.samples_min
        )
        return seen

    def _companions(self, features: npt.NDArray[np.float32], node: int) -> npt.NDArray[np.float32]:
        """Up to `COMPANIONS_MAX` other nodes of the same machine: [nodes, window, features]."""
        if self._identity is None:
            return features[:0]
        seen = np.nan_to_num(features[:, :, self._identity], nan=-1.0).max(axis=1)
        same = np.flatnonzero((seen == seen[node]) & (seen >= 0.0))
        companions: npt.NDArray[np.float32] = features[same[same != node][:COMPANIONS_MAX]]
        return companions

    def _odds_of_variants(
        self, variants: npt.NDArray[np.float32], companions: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float64]:
        """Log-odds of the 10-minute probability of each variant, each beside the companions."""
        groups = np.stack([np.concatenate([v[None], companions]) for v in variants])
        if self._identity is not None:
            identities = _VARIANT_IDENTITY_MIN + 2.0 * np.arange(len(variants))
            groups[:, :, :, self._identity] = identities[:, None, None]
        flat = groups.reshape(-1, *variants.shape[1:])
        chosen = self._graph.run(flat)[:: groups.shape[1], 0].astype(np.float64)
        clipped = np.clip(chosen, 1e-6, 1.0 - 1e-6)
        odds: npt.NDArray[np.float64] = np.log(clipped / (1.0 - clipped))
        return odds


def _check_schema(contract: ModelContract) -> None:
    contract.check_schema(TELEMETRY_SCHEMA)
