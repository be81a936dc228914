"""What cores note, as lines of the log."""

import logging

from peerd.core.effects import Note, NoteKind
from peerd.daemon.crowd import Crowd
from peerd.daemon.logging import get_logger

# A replica that lags a little is caught up many times a minute, and its lag is a metric.
_LEVELS = {
    NoteKind.CATCH_UP: logging.DEBUG,
    NoteKind.TABLE_INCOMPLETE: logging.WARNING,
    NoteKind.BATCHES_DAMAGED: logging.WARNING,
}
_crowd = Crowd(get_logger("host"))


def log_note(note: Note) -> None:
    """Write one line, or one for many that come at once. Called on the event loop."""
    level = _LEVELS.get(note.kind, logging.INFO)
    _crowd.tell(level, note.kind.value, shard=note.shard, epoch=note.epoch, detail=note.message)


def flush_notes() -> None:
    """Write what still waits to be joined."""
    _crowd.flush()
