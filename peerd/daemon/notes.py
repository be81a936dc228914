"""What cores note, as lines of the log."""

import logging

from peerd.core.effects import Note, NoteKind
from peerd.daemon.logging import get_logger

# A replica that lags a little is caught up many times a minute, and its lag is a metric.
_LEVELS = {
    NoteKind.CATCH_UP: logging.DEBUG,
    NoteKind.TABLE_INCOMPLETE: logging.WARNING,
    NoteKind.BATCHES_DAMAGED: logging.WARNING,
}
_log = get_logger("host")


def log_note(note: Note) -> None:
    """Write one line."""
    level = _LEVELS.get(note.kind, logging.INFO)
    facts = {"shard": note.shard, "epoch": note.epoch, "detail": note.message}
    _log.log(level, note.kind.value, **facts)
