"""The command bytes that the consensus library wants in memory, without pickle's dangers.

The library keeps a command as one type byte and, for a call of a replicated method, a pickle of
(method number, arguments), which it loads when the entry is applied. Such bytes are made and taken
apart here only, by a fixed layout around the text argument of the one method that exists:

    REGULAR | pickle opcodes of "(0, (" | length | UTF-8 text | pickle opcodes of "))"

Invariant: whatever reaches the library was made by `command_of` from text, so loading it gives
(0, (text,)) and nothing else. Bytes from a disk or a peer never get here as bytes: journal,
snapshot and frames hold the text. Must not import pickle.
"""

# One entry of the log as the library keeps it: command bytes, index, term.
Entry = tuple[bytes, int, int]

NO_OP = b"\x01"
# Regular command; pickle protocol 2; integer 0; a text with a length of four bytes.
_HEAD = b"\x00\x80\x02K\x00X"
# A tuple of the text; a tuple of the integer and that tuple; stop.
_TAIL = b"\x85\x86."
_LENGTH_BYTES = 4


def command_of(text: str | None) -> bytes:
    """Returns the library's bytes for a text command, or for a no-op if `text` is None.

    Raises:
        UnicodeEncodeError: `text` holds lone surrogates, which are no text on any wire.
    """
    if text is None:
        return NO_OP
    raw = text.encode("utf-8")
    return b"".join((_HEAD, len(raw).to_bytes(_LENGTH_BYTES, "little"), raw, _TAIL))


def text_of(command: bytes) -> str | None:
    """Returns the text of a command made by `command_of`; None for a no-op.

    Raises:
        ValueError: the bytes are nothing that `command_of` makes.
    """
    if command == NO_OP:
        return None
    begin = len(_HEAD) + _LENGTH_BYTES
    end = len(command) - len(_TAIL)
    length = int.from_bytes(command[len(_HEAD) : begin], "little")
    if not command.startswith(_HEAD) or not command.endswith(_TAIL) or length != end - begin:
        raise ValueError(f"not a command of this group: {command[:16]!r}")
    return command[begin:end].decode("utf-8")
