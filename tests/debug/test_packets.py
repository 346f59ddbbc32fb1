"""Framing of the GDB Remote Serial Protocol: whole, in pieces, damaged, and never out of bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from avmm.debug.packets import PACKET_LIMIT, Decoder, Mark, encode, escape, unescape


def decoded(data: bytes, *, checked: bool = True, piece: int = 1 << 20) -> list[bytes | Mark]:
    decoder = Decoder()
    decoder.checked = checked
    return [found for at in range(0, len(data), piece) for found in decoder.feed(data[at : at + piece])]


def test_a_packet_is_what_the_manual_says() -> None:
    assert encode(b"OK") == b"$OK#9a"
    assert decoded(b"$OK#9a") == [b"OK"]
    assert decoded(b"+$qC#b4-\x03") == [Mark.ACK, b"qC", Mark.NAK, Mark.INTERRUPT]
    assert escape(b"a$b#c}d*") == b"a}\x04b}\x03c}]d}\n"


@given(st.binary(max_size=200), st.integers(1, 7))
def test_any_data_comes_through_in_any_pieces(data: bytes, piece: int) -> None:
    assert unescape(escape(data)) == data
    assert decoded(encode(data), piece=piece) == [data]


@given(st.binary(max_size=400), st.integers(1, 50))
def test_garbage_is_survived_and_a_packet_behind_it_is_found(garbage: bytes, piece: int) -> None:
    assert decoded(garbage + b"#00$?#3f", piece=piece)[-1] in (b"?", Mark.BROKEN)
    assert decoded(garbage + b"#00$?#3f$?#3f", piece=piece)[-1] == b"?"


def test_a_damaged_packet_is_asked_for_again_unless_nobody_looks() -> None:
    assert decoded(b"$OK#00") == [Mark.BROKEN]
    assert decoded(b"$OK#zz") == [Mark.BROKEN]
    assert decoded(b"$OK#00", checked=False) == [b"OK"]


def test_a_packet_whose_end_was_lost_makes_room_for_the_next() -> None:
    assert decoded(b"$m1000,$OK#9a") == [b"OK"]


def test_a_giant_packet_costs_its_limit_and_no_more() -> None:
    decoder = Decoder()
    assert list(decoder.feed(b"$" + b"a" * (PACKET_LIMIT * 4))) == []
    assert len(decoder._buffer) == PACKET_LIMIT
    assert list(decoder.feed(b"#00$?#3f")) == [Mark.BROKEN, b"?"]
