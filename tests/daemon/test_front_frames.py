"""The frames between a sequencer and its front workers: inverses, and nothing else is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd.core.batch import BatchHeader
from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import ProcessId, ReplicaId
from peerd.daemon.front import frames
from peerd.daemon.front.frames import FrameMalformed, FrontAppend, Kind, Settings, Splitter
from peerd.transport.status import one_line

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
times = st.integers(-(2**63), 2**63 - 1)
names = st.text(st.characters(codec="utf-8"), max_size=40)
replicas = st.builds(ReplicaId, names, names)
processes = st.builds(ProcessId, names, names, names)
producers = st.one_of(st.just(b""), st.binary(min_size=16, max_size=16).filter(any))


@st.composite
def appends(draw):
    payload = draw(st.binary(max_size=300))
    header = draw(
        st.builds(
            BatchHeader,
            record_count=u32,
            payload_crc=u32,
            key_hash_low=u64,
            key_hash_high=u64,
            producer=producers,
            first_sequence=u64,
            timestamp_ms=times,
            payload_bytes=st.just(len(payload)),
            forget_before=u64,
        )
    )
    return FrontAppend(draw(u64), draw(u64), header, payload, draw(st.none() | u64))


accepted = st.builds(
    AppendAccepted,
    request=u64,
    shard=u64,
    epoch=u64,
    base=u64,
    record_count=u32,
    timestamp_ms=times,
    durable_on=st.lists(replicas, max_size=5).map(tuple),
    duplicate=st.booleans(),
)
refusals = st.builds(
    Refusal,
    reason=st.sampled_from(Reason),
    # On the wire every message is one printable line.
    message=names.map(one_line),
    taken=st.sampled_from(Taken),
    leader=st.none() | processes,
    epoch=u64,
    retry_after_ms=u32,
    first_offset=st.none() | u64,
    next_sequence=st.none() | u64,
    children=st.lists(u64, max_size=3).map(tuple),
)


def only(whole: bytes):
    """Kind and body of the one frame in `whole`."""
    ((kind, body),) = Splitter().feed(whole)
    return kind, body


@given(appends())
def test_an_append_comes_back(append):
    kind, body = only(frames.encode_append(append))
    assert kind is Kind.APPEND
    assert frames.decode_append(body) == append


@given(accepted)
def test_a_receipt_comes_back(receipt):
    kind, body = only(frames.encode_accepted(receipt.request, receipt))
    assert kind is Kind.ACCEPTED
    assert frames.decode_accepted(body) == receipt


@given(u64, refusals)
def test_a_refusal_comes_back_whole(request_number, refusal):
    kind, body = only(frames.encode_refused(request_number, refusal))
    assert kind is Kind.REFUSED
    assert frames.decode_refused(body) == (request_number, refusal)


@given(st.builds(Settings, worker=u32, listen=names, sequencer=processes, config=names))
def test_settings_come_back(settings):
    kind, body = only(frames.encode_settings(settings))
    assert kind is Kind.SETTINGS
    assert frames.decode_settings(body) == settings


@given(u64)
def test_a_number_comes_back(number):
    assert frames.decode_number(only(frames.encode_number(Kind.PULSE, number))[1]) == number


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=50))), st.data())
def test_frames_come_out_however_the_socket_cuts_them(sent, data):
    stream = b"".join(frames.frame(kind, body) for kind, body in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    splitter, got = Splitter(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += [(kind, bytes(body)) for kind, body in splitter.feed(stream[begin:end])]
    assert got == sent


@pytest.mark.parametrize(
    "decode",
    [
        frames.decode_append,
        frames.decode_accepted,
        frames.decode_refused,
        frames.decode_settings,
        frames.decode_number,
        lambda body: list(Splitter().feed(bytes(body))),
    ],
)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_taken_or_malformed(decode, data):
    try:
        decode(memoryview(data))
    except FrameMalformed:
        return


@given(appends(), st.integers(1, 20))
def test_an_append_that_was_cut_is_malformed(append, missing):
    body = only(frames.encode_append(append))[1]
    with pytest.raises(FrameMalformed):
        frames.decode_append(body[: max(0, len(body) - missing)])


def test_a_frame_of_an_unknown_kind_or_of_too_many_bytes_is_malformed():
    for prefix in (b"\x00\x00\x00\x00\x63", b"\xff\xff\xff\xff\x01"):
        with pytest.raises(FrameMalformed):
            list(Splitter().feed(prefix))
    with pytest.raises(FrameMalformed, match="limit"):
        frames.frame(Kind.MAP, bytes(frames.FRAME_BYTES_MAX + 1))
