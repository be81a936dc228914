"""What the workload's inputs are worth to the incident head: trained with them, and without.

    python -m models.workload [--recordings DIR] [--seeds N]

Both are fitted as `models.unseen` fits: on two thirds of the training runs, calibrated on the rest,
same seed, same rows. Judged on held-out runs, paired by run; over several seeds the mean of the
differences, since two trainings with the same inputs differ, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.dataset import RECORDINGS, Run, read_runs
from models.features import INPUTS
from models.judge import Judged, figures, judge_run, leads
from models.network import WindowDescription
from models.train import Half, describe_run
from models.unseen import fit_on_two_thirds

# What peers are asked to do, among what the head reads; the rest is how they fare with it.
WORKLOAD = ("commits_per_s", "commit_bytes_per_s")
SEEDS = 3
_TOLD = ("average_precision", "shielded_share", "false_alarms_per_node_hour", "brier")
_PAIRED = ("average_precision", "shielded_share", "false_alarms_per_node_hour")


def reads_without(half: Half, left_out: Collection[str]) -> Tensor:
    """[numbers]: what the half reads, less all numbers that are made of these metrics alone."""
    description = WindowDescription()
    read = half.reads()
    rest = [name for name, _ in INPUTS if name not in left_out]
    every = description.numbers_of([name for name, _ in INPUTS])
    read[(every > 0) & (description.numbers_of(rest) == 0)] = 0.0
    return read


def compare(runs: Sequence[Run], seeds: int) -> str:
    """A table: figures with and without, and by how much those with it are ahead."""
    training = [run for run in runs if not run.truth.held_out]
    held_out = [run for run in runs if run.truth.held_out]
    judged: dict[str, list[list[Judged]]] = {"with": [], "without": []}
    for seed in range(1, seeds + 1):
        random = np.random.default_rng(seed)
        rows = [describe_run(run, WindowDescription(), random) for run in training]
        for name, left_out in (("with", ()), ("without", WORKLOAD)):
            reads = partial(reads_without, left_out=left_out)
            network = fit_on_two_thirds(training, rows, seed, reads)
            judged[name].append([judge_run(network, run) for run in held_out])
            print(f"seed {seed}, {name}: {figures(judged[name][-1])}", file=sys.stderr, flush=True)
    ahead = [leads(ours, theirs) for ours, theirs in zip(*judged.values(), strict=True)]
    lines = ["| figure | with | without | ahead (paired, 95 %) |", "| --- | --- | --- | --- |"]
    for figure in _TOLD:
        means = [np.mean([figures(each)[figure] for each in judged[name]]) for name in judged]
        cells = [f"{mean:.3g}" for mean in means]
        if figure in _PAIRED:
            point = np.mean([lead[figure][0] for lead in ahead])
            low, high = np.mean([lead[figure][1] for lead in ahead], axis=0)
            cells.append(f"{point:+.3f} ({low:+.3f} to {high:+.3f})")
        else:
            cells.append("")
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m models.workload", description=__doc__)
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(compare(read_runs(arguments.recordings), arguments.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
