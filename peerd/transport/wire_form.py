"""Protobuf's wire form in pieces: for messages that are put together around bytes that stay as they
are. A message object copies what is put into it, once more when it is put into another one, and
again when it is serialized.
"""


def varint(number: int) -> bytes:
    """A number that is not negative: seven bits a byte, the lowest first."""
    if number < 0x80:
        return _ONE_BYTE[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_ONE_BYTE = tuple(bytes((number,)) for number in range(0x80))


def sized_tag(field_number: int) -> bytes:
    """What stands before the length of a field of bytes, text or a message; of fields up to 15."""
    return bytes((field_number << 3 | 2,))
