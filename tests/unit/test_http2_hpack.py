"""Compressed fields, held against the examples of RFC 7541 and against the hpack package."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given
from hypothesis import strategies as st
from offramp_common.http2.hpack import HeaderDecoder, HpackError, HuffmanCodes, literal, table_size

# Appendix C.4 and C.6: blocks of one connection, with Huffman codes, and an eviction in the second group.
REQUESTS = (
    ("828684418cf1e3c2e5f23a6ba0ab90f4ff", [(b":authority", b"www.example.com")]),
    ("828684be5886a8eb10649cbf", [(b":authority", b"www.example.com"), (b"cache-control", b"no-cache")]),
    (
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        [(b":authority", b"www.example.com"), (b"custom-key", b"custom-value")],
    ),
)

TEXT = st.binary(max_size=40)
FIELDS = st.lists(st.tuples(TEXT, TEXT, st.booleans()), max_size=8)


def decoder(max_list_bytes: int = 100_000, max_table_bytes: int = 4096) -> HeaderDecoder:
    return HeaderDecoder(HuffmanCodes(), max_list_bytes, max_table_bytes)


def test_the_examples_of_the_rfc() -> None:
    ours = decoder()
    for block, last in REQUESTS:
        fields = ours.decode(bytes.fromhex(block))
        assert fields is not None
        assert fields[3:] == last
        assert fields[0] == (b":method", b"GET")


@given(st.lists(FIELDS, max_size=6), st.booleans(), st.sampled_from([0, 64, 200, 4096]))
def test_what_the_hpack_package_writes_is_read_as_it_reads_it(
    blocks: list[list[tuple[bytes, bytes, bool]]], huffman: bool, size: int
) -> None:
    encoder, ours = Encoder(), decoder()
    encoder.header_table_size = size
    for fields in blocks:
        block = encoder.encode(fields, huffman=huffman)
        assert ours.decode(block) == [(name, value) for name, value, _ in fields]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_as_the_hpack_package_reads_them_or_refused(block: bytes) -> None:
    ours, theirs = decoder(), Decoder()
    theirs.max_allowed_table_size = 4096
    try:
        expected = [(bytes(name), bytes(value)) for name, value in theirs.decode(block, raw=True)]
    except Exception:
        expected = None
    try:
        found = ours.decode(block)
    except HpackError:
        found = None
    assert found == expected


@given(st.lists(st.tuples(TEXT, TEXT), max_size=8))
def test_what_is_written_enters_no_table(fields: list[tuple[bytes, bytes]]) -> None:
    theirs = Decoder()
    block = b"".join(literal(name, value) for name, value in fields)
    assert [(bytes(n), bytes(v)) for n, v in theirs.decode(block, raw=True)] == fields
    assert len(theirs.header_table.dynamic_entries) == 0


def test_a_list_that_is_too_large_is_not_kept_and_the_table_goes_on() -> None:
    encoder, ours = Encoder(), decoder(max_list_bytes=200)
    large = encoder.encode([(b"a", b"x" * 150), (b"b", b"y" * 150)])
    assert ours.decode(large) is None
    # Both are in the table, and are named by it.
    assert ours.decode(encoder.encode([(b"b", b"y" * 150)])) == [(b"b", b"y" * 150)]


def test_a_bomb_of_references_is_not_read_to_its_end() -> None:
    encoder, ours = Encoder(), decoder(max_list_bytes=16_000)
    ours.decode(encoder.encode([(b"a", b"x" * 3000)]))
    # By mistake, perhaps.
    assert ours.decode(b"\xbe" * 40) is None
    with pytest.raises(HpackError, match="far too large"):
        ours.decode(b"\xbe" * 16_000)


def test_a_block_that_changes_the_table_is_told_apart() -> None:
    encoder, ours = Encoder(), decoder()
    before = ours.changes
    block = encoder.encode([(b"a", b"1")])
    ours.decode(block)
    assert ours.changes != before
    before = ours.changes
    ours.decode(encoder.encode([(b"a", b"1")]))
    assert ours.changes == before


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"\x80", "there is no field 0"),
        (b"\xbe", "there is no field 62"),
        (b"\x40\x01a", "ends within a field"),
        (b"\x00\x7f\xff\xff\xff\xff\xff\x01", "an integer without an end"),
        (b"\x00\x05abc", "longer than its block"),
        (b"\x82\x20", "within a block"),
        (table_size(5000), "a table of 5000 bytes"),
        (b"\x00\x84\xff\xff\xff\xff\x00", "Huffman"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_the_reason(block: bytes, reason: str) -> None:
    with pytest.raises(HpackError, match=reason):
        decoder().decode(block)


@given(st.binary(max_size=200))
def test_huffman_codes_mean_what_the_hpack_package_says(code: bytes) -> None:
    try:
        expected = decode_huffman(code)
    except HPACKDecodingError:
        with pytest.raises(HpackError):
            HuffmanCodes().decode(code)
    else:
        assert HuffmanCodes().decode(code) == expected


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_strings_come_back_from_their_huffman_codes(strings: list[bytes]) -> None:
    codes = HuffmanCodes()
    encoder = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
    assert [codes.decode(encoder.encode(string)) for string in strings] == strings
