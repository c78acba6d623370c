"""What everybody who packs or unpacks a tensor relies on."""

from __future__ import annotations

import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from open_inference.tensor import (
    DATATYPES,
    NUMPY_TYPES,
    Tensor,
    byte_size,
    datatype_of,
    decode_bytes,
    encode_bytes,
    skip_bytes,
)

PLAIN_DATATYPES = sorted(set(NUMPY_TYPES) - {"BF16"})
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ELEMENTS = st.lists(st.binary(max_size=12))


def bf16(value: Any) -> np.ndarray:
    return Tensor.from_numpy("x", np.asarray(value), "BF16").numpy()


@pytest.mark.parametrize("datatype", PLAIN_DATATYPES)
@settings(max_examples=30)
@given(data=st.data())
def test_every_datatype_comes_back_bit_for_bit_in_its_shape(datatype: str, data: st.DataObject) -> None:
    array = data.draw(hnp.arrays(NUMPY_TYPES[datatype], SHAPES))

    tensor = Tensor.from_numpy("x", array)
    back = tensor.numpy()

    assert (tensor.datatype, tensor.shape, back.dtype) == (datatype, array.shape, array.dtype)
    assert len(tensor.data) == byte_size(datatype, array.shape)
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("datatype", PLAIN_DATATYPES)
@pytest.mark.parametrize("copy", [True, False])
def test_strided_and_foreign_endian_arrays_travel_row_major_and_little_endian(datatype: str, copy: bool) -> None:
    plain = np.arange(12).reshape(3, 4).astype(NUMPY_TYPES[datatype])
    big_endian = plain.astype(plain.dtype.newbyteorder(">"))

    for array in (plain.T, plain[::2, 1:], plain[:, ::-1], big_endian, np.asfortranarray(plain)):
        tensor = Tensor.from_numpy("x", array, copy=copy)
        assert bytes(tensor.data) == np.ascontiguousarray(array, NUMPY_TYPES[datatype]).tobytes()
        np.testing.assert_array_equal(tensor.numpy(), array)


@given(elements=ELEMENTS)
def test_bytes_elements_come_back_whatever_they_hold(elements: list[bytes]) -> None:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements

    tensor = Tensor.from_numpy("x", array)

    assert tensor.datatype == "BYTES"
    assert tensor.numpy().tolist() == elements
    assert list(decode_bytes(encode_bytes(elements))) == elements


@given(elements=st.lists(st.binary(max_size=12), min_size=1), cut=st.integers(min_value=1, max_value=12))
def test_bytes_data_that_ends_too_early_is_refused_or_is_a_shorter_list(elements: list[bytes], cut: int) -> None:
    whole = encode_bytes(elements)
    short = whole[: max(0, len(whole) - cut)]

    ends = {len(encode_bytes(elements[:count])): count for count in range(len(elements))}
    if len(short) in ends:
        assert list(decode_bytes(short)) == elements[: ends[len(short)]]
    else:
        with pytest.raises(ValueError, match=r"^BYTES (data ends inside|element at offset)"):
            list(decode_bytes(short))


@given(elements=ELEMENTS, data=st.data())
def test_skipping_lands_where_the_next_element_begins(elements: list[bytes], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(elements)))
    whole = encode_bytes(elements)

    position = skip_bytes(whole, 0, count)

    assert list(decode_bytes(whole[position:])) == elements[count:]


def test_skipping_more_elements_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="ends inside a length prefix at offset 5 of 5"):
        skip_bytes(encode_bytes([b"a"]), 0, 2)


def test_a_length_prefix_that_is_cut_off_names_its_offset() -> None:
    with pytest.raises(ValueError, match="ends inside a length prefix at offset 5 of 7"):
        list(decode_bytes(encode_bytes([b"a"]) + b"\x01\x00"))


def test_an_element_longer_than_the_data_says_how_much_is_left() -> None:
    with pytest.raises(ValueError, match=r"says 4294967295 bytes, only 3 are left"):
        list(decode_bytes(struct.pack("<I", 0xFFFFFFFF) + b"abc"))


def test_text_travels_as_utf8() -> None:
    for array in (np.array(["grün", "x"]), np.array(["grün", "x"], dtype=object)):
        assert Tensor.from_numpy("x", array).numpy().tolist() == ["grün".encode(), b"x"]


def test_fixed_width_byte_strings_travel_as_bytes() -> None:
    assert Tensor.from_numpy("x", np.array([[b"ab"], [b"c"]])).numpy().tolist() == [[b"ab"], [b"c"]]


def test_an_object_that_is_neither_text_nor_bytes_is_named() -> None:
    with pytest.raises(TypeError, match='"words": a BYTES tensor holds bytes or str, got int'):
        Tensor.from_numpy("words", np.array(["a", 1], dtype=object))


@pytest.mark.parametrize(("shape", "count"), [((3,), 1), ((1,), 3), ((2, 0), 1), ((-1, -1), 1)])
def test_bytes_data_of_another_count_than_the_shape_says_is_refused(shape: tuple[int, ...], count: int) -> None:
    with pytest.raises(ValueError, match=rf'"x": BYTES.* elements, got {count}'):
        Tensor("x", "BYTES", shape, encode_bytes([b"a"] * count)).numpy()


@pytest.mark.parametrize("shape", [(2,), (4,), (-1, -3), (0,)])
def test_data_of_another_size_than_the_shape_says_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r'"x": FP32.* takes .* bytes, got 12'):
        Tensor("x", "FP32", shape, bytes(12)).numpy()


def test_a_datatype_that_does_not_exist_is_refused_with_the_ones_that_do() -> None:
    with pytest.raises(ValueError, match=r'"x": no datatype FP8; one of BOOL, .*BYTES'):
        Tensor("x", "FP8", (1,), b"0").numpy()


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "longdouble", ml_dtypes.float8_e5m2])
def test_a_numpy_type_that_does_not_travel_is_refused_with_the_ones_that_do(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r'"x": numpy type .* does not travel; one of BOOL, .*BYTES'):
        Tensor.from_numpy("x", np.zeros(1, dtype))


def test_every_integer_alias_of_numpy_has_a_datatype() -> None:
    assert {datatype_of(np.dtype(alias)) for alias in "bhilq"} == {"INT8", "INT16", "INT32", "INT64"}
    assert {datatype_of(np.dtype(alias)) for alias in "BHILQ"} == {"UINT8", "UINT16", "UINT32", "UINT64"}


def test_a_view_is_handed_out_instead_of_a_copy() -> None:
    data = np.arange(6, dtype=np.float32)

    assert np.shares_memory(np.frombuffer(Tensor.from_numpy("x", data, copy=False).data, np.float32), data)
    assert not np.shares_memory(np.frombuffer(Tensor.from_numpy("x", data).data, np.float32), data)
    assert not Tensor.from_numpy("x", data).numpy().flags.writeable


def test_sizes_are_known_for_every_datatype_but_bytes() -> None:
    assert {name: byte_size(name, (2, 3)) for name in DATATYPES} == {
        "BOOL": 6,
        **{f"{sign}INT{bits}": 6 * bits // 8 for sign in ("", "U") for bits in (8, 16, 32, 64)},
        **{"FP16": 12, "BF16": 12, "FP32": 24, "FP64": 48, "BYTES": None},
    }


class TestBf16:
    @given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**127), 2.0**127, width=32)))
    def test_rounds_as_the_reference_implementation_does(self, array: np.ndarray) -> None:
        np.testing.assert_array_equal(bf16(array), array.astype(ml_dtypes.bfloat16).astype(np.float32))

    def test_a_tie_goes_to_the_even_neighbour(self) -> None:
        # 7 bits of mantissa: neighbours of 1.0 are 2**-7 apart.
        ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], np.float32)
        assert bf16(ties).tolist() == [1.0, 1 + 2**-6, -1.0]

    def test_nan_stays_nan_whatever_its_payload(self) -> None:
        payloads = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000], np.uint32)
        assert np.isnan(bf16(payloads.view(np.float32))).all()

    def test_infinities_and_signed_zeros_stay_themselves(self) -> None:
        back = bf16(np.array([np.inf, -np.inf, 0.0, -0.0], np.float32))
        assert back.tolist() == [np.inf, -np.inf, 0.0, 0.0]
        assert np.signbit(back).tolist() == [False, True, False, True]

    @pytest.mark.parametrize("value", [np.float32(3.4e38), np.float64(1e300), np.float64(-1e39)])
    def test_a_finite_value_never_becomes_infinite(self, value: np.floating[Any]) -> None:
        with pytest.raises(ValueError, match=r'"x": expected BF16, some values .* are too large'):
            bf16(value)

    def test_uint16_given_as_bf16_is_taken_as_its_bits(self) -> None:
        assert bf16(np.array([0x3F80, 0x4000], np.uint16)).tolist() == [1.0, 2.0]

    def test_an_array_of_the_bfloat16_type_travels_by_itself(self) -> None:
        tensor = Tensor.from_numpy("x", np.array([[1.5, -2.0]], ml_dtypes.bfloat16))
        assert (tensor.datatype, tensor.numpy().tolist()) == ("BF16", [[1.5, -2.0]])
        widened = Tensor.from_numpy("x", np.array([1.5], ml_dtypes.bfloat16), "FP32")
        assert (widened.datatype, widened.numpy().tolist()) == ("FP32", [1.5])

    def test_a_scalar_keeps_its_empty_shape(self) -> None:
        assert bf16(np.float32(2.0)).shape == ()


class TestAskingForAnotherDatatype:
    @pytest.mark.parametrize(
        ("values", "datatype"),
        [
            ([0, 1, 255], "UINT8"),
            ([-128, 127], "INT8"),
            ([1, 0], "BOOL"),
            ([2048, -2048], "FP16"),
            ([2**24, -(2**24)], "FP32"),
            ([2**53], "FP64"),
            ([256, -256], "BF16"),
            ([True, False], "FP32"),
            ([2**63 - 1], "UINT64"),
            ([], "INT8"),
        ],
    )
    def test_integers_keep_their_value(self, values: list[int], datatype: str) -> None:
        array = np.array(values) if values else np.zeros(0, np.int64)
        tensor = Tensor.from_numpy("x", array, datatype)
        assert tensor.datatype == datatype
        assert tensor.numpy().tolist() == values

    @pytest.mark.parametrize(
        ("value", "datatype"),
        [
            (256, "UINT8"),
            (-1, "UINT64"),
            (128, "INT8"),
            (2, "BOOL"),
            (2**24 + 1, "FP32"),
            (257, "BF16"),
            (2**64 - 1, "FP64"),
            (2**64 - 1, "INT64"),
        ],
    )
    def test_an_integer_that_does_not_fit_is_refused_with_the_range_that_does(self, value: int, datatype: str) -> None:
        with pytest.raises(ValueError, match=rf'"x": {datatype} holds integers from -?\d+ to \d+, got {value} to'):
            Tensor.from_numpy("x", np.array([value]), datatype)

    def test_floating_point_is_rounded_to_the_narrower_type(self) -> None:
        back = Tensor.from_numpy("x", np.array([0.1, 1e-60, np.inf, np.nan]), "FP32").numpy()
        np.testing.assert_array_equal(back, np.array([0.1, 0.0, np.inf, np.nan], np.float32))

    def test_floating_point_that_would_overflow_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r'"x": expected FP16, some values .*float64 are too large'):
            Tensor.from_numpy("x", np.array([70000.0]), "FP16")

    @pytest.mark.parametrize("datatype", ["INT32", "BOOL"])
    def test_fractions_are_not_dropped(self, datatype: str) -> None:
        with pytest.raises(TypeError, match=rf'"x": expected {datatype}, an array of float64 would lose its fractions'):
            Tensor.from_numpy("x", np.array([1.0]), datatype)

    @pytest.mark.parametrize(
        ("array", "datatype"),
        [
            (np.array(["1.0"]), "FP32"),
            (np.array(["1.0"]), "BF16"),
            (np.array([1.0]), "BYTES"),
            (np.array([1.0]), "FLOAT"),
        ],
    )
    def test_text_and_numbers_do_not_become_one_another(self, array: np.ndarray, datatype: str) -> None:
        with pytest.raises(TypeError, match=f'"x": expected {datatype}, got an array of'):
            Tensor.from_numpy("x", array, datatype)
