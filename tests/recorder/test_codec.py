"""What is decoded is what was encoded, for every type that is recorded."""

from dataclasses import dataclass

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from peerd.core import events as ev
from peerd.core.batch import BatchHeader
from peerd.core.check import InvariantViolation
from peerd.recorder.codec import MALFORMED, Compiler, Names, blank
from peerd.recorder.flight import forms
from peerd.recorder.forms import HEAD
from tests.recorder.recorded import values

# Cases here are small; looking for smaller ones costs more than it tells.
PHASES = (Phase.explicit, Phase.generate)
FORMS = forms()
EVENTS = sorted(FORMS.events, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@settings(max_examples=12, deadline=None, phases=PHASES)
@given(data=st.data())
def test_every_event_comes_back(kind, data):
    event = data.draw(values(kind))
    names, texts = Names(), []
    number = FORMS.events[kind]
    packed = FORMS.encoders(names)[number](3, 5, 7, event)
    texts += list(names)
    assert HEAD.unpack_from(packed)[1:] == (3, 5, 7)
    again, end = FORMS.decoders(texts)[number](packed, 0)
    assert end == len(packed)
    assert again == event
    assert type(again) is type(event)


@pytest.mark.parametrize("kind", FORMS.values, ids=lambda kind: kind.__name__)
@settings(max_examples=6, deadline=None, phases=PHASES)
@given(data=st.data())
def test_every_value_of_the_core_comes_back(kind, data):
    value = data.draw(values(kind))
    names = Names()
    number = FORMS.values[kind]
    packed = FORMS.encoders(names)[number](value)
    assert FORMS.decoders(list(names))[number](packed, 0) == (value, len(packed))


@settings(max_examples=60, deadline=None, phases=PHASES)
@given(st.sampled_from(EVENTS), st.binary(max_size=200))
def test_bytes_that_nobody_encoded_are_an_error_or_a_value(kind, data):
    try:
        event, end = FORMS.decoders(["a", "b"])[FORMS.events[kind]](data, 0)
    except (InvariantViolation, *MALFORMED):
        return
    assert isinstance(event, kind)
    assert end <= len(data)


def test_a_payload_comes_back_as_its_length():
    header = BatchHeader(record_count=1, payload_crc=2, payload_bytes=3_000_000)
    event = ev.AppendRequested(
        request=1, header=header, payload=b"x" * 3_000_000, expected_offset=None, now_ms=1, now=2
    )
    number = FORMS.events[ev.AppendRequested]
    packed = FORMS.encoders(Names())[number](1, 2, 3, event)
    assert len(packed) < 150
    again, _ = FORMS.decoders([])[number](packed, 0)
    assert again.payload == blank(3_000_000) == bytes(3_000_000)


def test_a_number_that_does_not_fit_is_an_error_and_no_other_number():
    with pytest.raises(MALFORMED):
        FORMS.encoders(Names())[FORMS.events[ev.Ticked]](1, 2, 3, ev.Ticked(now=2**63))


def test_the_fingerprint_tells_types_apart():
    @dataclass
    class One:
        a: int

    @dataclass
    class Two:
        a: str

    prints = set()
    for kind in (One, Two):
        kind.__qualname__ = kind.__name__ = "Same"
        compiler = Compiler()
        compiler.of(kind)
        prints.add(compiler.fingerprint(""))
    assert len(prints) == 2
    assert forms().fingerprint == type(forms())().fingerprint


def test_a_type_without_a_rule_is_refused_when_the_codec_is_built():
    @dataclass
    class Odd:
        a: complex

    with pytest.raises(TypeError, match="no encoding for"):
        Compiler().of(Odd)
