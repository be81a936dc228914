"""The recorded histories that the history head is trained on: `las.replay.histories`."""

from las.replay.histories import (
    DATA,
    HISTORIES,
    DataMissing,
    History,
    data_file,
    down_or_fails,
    held_out,
    read_grid5000,
    read_lanl,
    stamp,
)

__all__ = [
    "DATA",
    "HISTORIES",
    "DataMissing",
    "History",
    "data_file",
    "down_or_fails",
    "held_out",
    "read_grid5000",
    "read_lanl",
    "stamp",
]
