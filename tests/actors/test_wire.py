"""Values survive the way as bytes; anything else is Undecodable and nothing worse."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import wire
from actors.exchange import (
    Answered,
    Capability,
    Chunk,
    Ended,
    Lease,
    Load,
    RefusalReason,
    Refused,
    Request,
    RequestHead,
    Served,
)
from actors.wire import Codec, Undecodable, decode_verdict, encode_verdict
from actors.worker import Reuse
from isolates.outcome import Outcome

TEXT = st.text(max_size=20)
COUNT = st.integers(0, 1 << 53)
MS = st.floats(0, 1e9, allow_nan=False)
HEADERS = st.lists(st.tuples(TEXT, st.binary(max_size=20)), max_size=4).map(tuple)
LIMITS = st.dictionaries(TEXT, st.none() | COUNT, max_size=4)
CAPABILITIES = st.builds(Capability, TEXT, COUNT)
LOADS = st.builds(Load, COUNT, COUNT, MS, COUNT, COUNT)
REUSES = st.builds(Reuse, st.none() | st.integers(1, 1_000_000), st.none() | st.integers(1, 86_400), st.booleans())
LEASES = st.builds(Lease, TEXT, TEXT, TEXT, TEXT, LIMITS, TEXT, TEXT, REUSES)
HEADS = st.builds(RequestHead, TEXT, TEXT, TEXT, TEXT, HEADERS)
REQUESTS = st.builds(
    Request, TEXT, TEXT, HEADS, TEXT, TEXT, TEXT, TEXT, LIMITS, st.binary(max_size=100), st.booleans(), COUNT, TEXT,
    st.none() | CAPABILITIES, REUSES,
)  # fmt: skip
SERVED = st.builds(
    Served, st.integers(100, 599), HEADERS, TEXT, TEXT, MS, MS, TEXT, st.booleans(), TEXT, st.none() | LEASES
)
SPANS = st.lists(st.binary(max_size=20), max_size=3).map(tuple)
ENDINGS = st.builds(
    Ended, st.sampled_from(Outcome), TEXT, MS, MS, server=TEXT, start_type=TEXT, queue_ms=MS, spans=SPANS, load=LOADS
)
CHUNKS = st.builds(Chunk, st.binary(max_size=100), st.booleans(), st.booleans(), st.none() | ENDINGS)
VERDICTS = st.builds(Refused, st.sampled_from(RefusalReason), CAPABILITIES) | st.builds(
    Answered, st.none() | SERVED, CHUNKS, st.none() | CAPABILITIES
)

CODECS: list[tuple[Codec[Any], Any]] = [
    (wire.REQUEST, REQUESTS),
    (wire.SERVED, SERVED),
    (wire.ENDED, ENDINGS),
    (wire.CHUNK, CHUNKS),
    (wire.CAPABILITY, CAPABILITIES),
]


@pytest.mark.parametrize(("codec", "values"), CODECS)
def test_round_trip(codec: Codec[Any], values: st.SearchStrategy[object]) -> None:
    @given(values)
    def there_and_back(value: object) -> None:
        assert codec.decode(codec.encode(value)) == value
        assert codec.decode(memoryview(codec.encode(value))) == value

    there_and_back()


@pytest.mark.parametrize(("codec", "values"), CODECS)
def test_cut_bytes_are_undecodable(codec: Codec[Any], values: st.SearchStrategy[object]) -> None:
    @given(values, st.data())
    def cut(value: object, data: st.DataObject) -> None:
        whole = codec.encode(value)
        with pytest.raises(Undecodable):
            codec.decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(Undecodable):
            codec.decode(whole + b"\0")

    cut()


@given(st.binary(max_size=200))
def test_junk_is_undecodable_or_a_value(junk: bytes) -> None:
    for codec, _ in CODECS:
        with suppress(Undecodable):
            codec.decode(junk)
    with pytest.raises(Undecodable):
        decode_verdict(junk)


def test_deep_nesting_is_undecodable() -> None:
    with pytest.raises(Undecodable):
        wire.REQUEST.decode(b"\x91" * 100_000)
    with pytest.raises(Undecodable):
        decode_verdict(b"\x81\xa1x" + b"\x91" * 100_000)


def test_text_that_is_not_utf8_is_undecodable() -> None:
    honest = wire.CAPABILITY.encode(Capability("owner", 1))
    with pytest.raises(Undecodable):
        wire.CAPABILITY.decode(honest.replace(b"owner", b"\xff\xfe\xff\xfe\xff"))


def test_an_unknown_ending_is_undecodable() -> None:
    with pytest.raises(Undecodable):
        wire.ENDED.decode(msgspec.msgpack.encode({"outcome": "fine, thanks"}))


@given(VERDICTS)
def test_verdicts_both_ways(verdict: Refused | Answered) -> None:
    assert decode_verdict(encode_verdict(verdict)) == verdict


def test_a_verdict_of_another_version() -> None:
    with pytest.raises(Undecodable):
        decode_verdict(msgspec.msgpack.encode({"verdict": "perhaps"}))
    with pytest.raises(Undecodable):
        decode_verdict(msgspec.msgpack.encode({"verdict": "refused"}))
