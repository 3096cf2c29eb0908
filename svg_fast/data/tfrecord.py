"""TFRecord files and the tf.train.Example in them, read without TensorFlow.

A file is records, one after another: u64 length, u32 masked CRC of the length, the data, u32 masked CRC of the data;
all little-endian. An Example is a protocol buffer, nested four deep: Example.features = 1, Features.feature = 1 (a map:
key = 1, value = 2), Feature.{bytes_list, float_list, int64_list} = 1, 2, 3, and their value = 1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from .recipe import BadSource

Feature: TypeAlias = list[memoryview] | npt.NDArray[np.float32] | npt.NDArray[np.int64]

# A field of two bytes becomes a Python object of hundreds: the limit bounds what a small record can unfold to.
MAX_FIELDS = 100_000

_HEADER = struct.Struct("<QI")
_CRC_BYTES = 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; the others are groups, which no Example has
_WIRE_TYPES = {_VARINT: "a varint", _FIXED64: "8 bytes", _BYTES: "a length and its bytes", _FIXED32: "4 bytes"}
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def records(file: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    """The data of each record of a buffered file, both CRCs checked; no record may have more than max_bytes.

    Raises BadSource with the number (from 0) and first byte of a record that is truncated, too long or damaged;
    ImportError without google-crc32c.
    """
    crc32c = _crc32c()
    number = start = 0
    while header := file.read(_HEADER.size):
        where = f"record {number} at byte {start}"
        if len(header) < _HEADER.size:
            raise BadSource(f"{where} is truncated: its header must have {_HEADER.size} bytes, got {len(header)}")
        length, crc = _HEADER.unpack(header)
        _check_crc(crc32c(header[:8]), crc, f"the length of {where}")
        if length > max_bytes:
            raise BadSource(f"{where} must have at most {max_bytes} bytes, its length says {length}")
        data, end = file.read(length), file.read(_CRC_BYTES)
        if len(end) < _CRC_BYTES:
            wanted, got = length + _CRC_BYTES, len(data) + len(end)
            raise BadSource(f"{where} is truncated: {wanted} bytes must follow its header, got {got}")
        _check_crc(crc32c(data), int.from_bytes(end, "little"), f"the data of {where}")
        yield data
        number += 1
        start += _HEADER.size + length + _CRC_BYTES


def _crc32c() -> Callable[[bytes], int]:
    try:
        from google_crc32c import value
    except ImportError as error:
        raise ImportError(
            "TFRecord files need google-crc32c, which is not installed: pip install 'svg_fast[data]'"
        ) from error
    return cast(Callable[[bytes], int], value)


def _check_crc(crc: int, stored: int, what: str) -> None:
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if masked != stored:
        raise BadSource(f"{what} must have the masked CRC-32C {stored:#010x} that is stored, got {masked:#010x}")


def parse_example(record: bytes | memoryview) -> dict[str, Feature]:
    """The features of a tf.train.Example: byte strings as views into the record, numbers as arrays (N,).

    Fields that an Example does not have are passed over; a feature without a value is an empty list. As in every
    protocol buffer the last value of a key counts, and lists of one feature that come in pieces are joined.

    Raises BadSource, with a byte of the record, for anything malformed and for more than MAX_FIELDS fields.
    """
    parser = _Parser(memoryview(record))
    entries = parser.messages(parser.messages([(0, len(record))], 1), 1)
    return dict(parser.entry(*entry) for entry in entries)


class _Parser:
    """Reads the parts of one record; a part is where it starts and stops in it."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.fields_left = MAX_FIELDS

    def entry(self, start: int, stop: int) -> tuple[str, Feature]:
        key, values = "", list[tuple[int, int]]()
        for number, wire, at, end in self.fields([(start, stop)]):
            if number in (1, 2):
                self._expect(wire, _BYTES, at)
            if number == 1:
                try:
                    key = str(self.data[at:end], "utf-8")
                except UnicodeDecodeError as error:
                    raise BadSource(f"byte {at}: a feature's name must be UTF-8 ({error.reason})") from None
            elif number == 2:
                values.append((at, end))
        return key, self.feature(values)

    def feature(self, parts: list[tuple[int, int]]) -> Feature:
        kind, lists = 0, list[tuple[int, int]]()
        for number, wire, at, end in self.fields(parts):
            if number in (_BYTES_LIST, _FLOAT_LIST, _INT64_LIST):
                self._expect(wire, _BYTES, at)
                if number != kind:
                    kind, lists = number, []
                lists.append((at, end))
        if kind == _FLOAT_LIST:
            return self.floats(lists)
        if kind == _INT64_LIST:
            return self.integers(lists)
        return [self.data[at:end] for at, end in self.messages(lists, 1)]

    def floats(self, lists: list[tuple[int, int]]) -> npt.NDArray[np.float32]:
        found = []
        for number, wire, at, end in self.fields(lists):
            if number != 1:
                continue
            if wire != _BYTES:
                self._expect(wire, _FIXED32, at)
            elif (end - at) % 4:
                raise BadSource(f"byte {at}: packed floats must have a multiple of 4 bytes, got {end - at}")
            found.append(self.data[at:end])
        return np.frombuffer(b"".join(found), "<f4").astype(np.float32, copy=False)

    def integers(self, lists: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
        found = []
        for number, wire, at, end in self.fields(lists):
            if number != 1:
                continue
            if wire != _BYTES:
                self._expect(wire, _VARINT, at)
            while at < end:
                value, at = self.varint(at, end, 64)
                self._count(at)
                found.append(value)
        return np.array(found, np.uint64).view(np.int64)

    def messages(self, parts: Iterable[tuple[int, int]], wanted: int) -> Iterator[tuple[int, int]]:
        """The fields of that number, which are messages or byte strings."""
        for number, wire, at, end in self.fields(parts):
            if number == wanted:
                self._expect(wire, _BYTES, at)
                yield at, end

    def fields(self, parts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
        """Number and wire type of each field of a message in parts, and where its content starts and stops."""
        for at, stop in parts:
            while at < stop:
                self._count(at)
                tag, at = self.varint(at, stop, 32)
                number, wire = tag >> 3, tag & 7
                if number == 0 or wire not in _WIRE_TYPES:
                    raise BadSource(f"byte {at}: a field must have a number and a wire type, got {number} and {wire}")
                if wire == _VARINT:
                    end = self.varint(at, stop, 64)[1]
                elif wire == _BYTES:
                    length, at = self.varint(at, stop, 32)
                    end = at + length
                else:
                    end = at + (8 if wire == _FIXED64 else 4)
                if end > stop:
                    raise BadSource(f"byte {at}: {end - at} bytes must come, but the message ends at byte {stop}")
                yield number, wire, at, end
                at = end

    def varint(self, at: int, stop: int, bits: int) -> tuple[int, int]:
        """An unsigned number of 7 bits a byte, the lowest first, and where it ends."""
        value, given = 0, self.data[at : min(stop, at + -(-bits // 7))]
        for k, byte in enumerate(given):
            value |= (byte & 0x7F) << 7 * k
            if byte < 0x80:
                if value >> bits:
                    break
                return value, at + k + 1
        got = given.hex() or "the end"
        raise BadSource(f"byte {at}: a varint of at most {bits} bits must come here, got {got}")

    def _count(self, at: int) -> None:
        self.fields_left -= 1
        if self.fields_left < 0:
            raise BadSource(f"byte {at}: a record must have at most {MAX_FIELDS} fields, got more")

    def _expect(self, wire: int, wanted: int, at: int) -> None:
        if wire != wanted:
            raise BadSource(f"byte {at}: {_WIRE_TYPES[wanted]} must come here, got {_WIRE_TYPES[wire]}")
