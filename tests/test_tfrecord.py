"""TFRecord files against the `tfrecord` package and protobuf; damaged and hostile ones are refused."""

from __future__ import annotations

import io
import random
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from bair_files import random_clips, write_clips
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tfrecord import TFRecordWriter, example_pb2, tfrecord_loader
from tfrecord.reader import tfrecord_iterator

from svg_fast.data.recipe import BadSource
from svg_fast.data.tfrecord import Feature, parse_example, records

LIMIT = 2**20
MIXED = {
    "bytes": ([b"", b"\x00\xff", b"x" * 300], "byte"),
    "floats": ([0.1, -0.0, float("inf"), 1e-45], "float"),
    "integers": ([0, -1, 2**63 - 1, -(2**63), 300], "int"),
    "empty": ([], "float"),
    "Größe/日": ([b"y"], "byte"),
}


def framed(*contents: bytes) -> bytes:
    """A file of these records, by the other package's CRC."""
    parts = []
    for content in contents:
        length = struct.pack("<Q", len(content))
        parts += [length, TFRecordWriter.masked_crc(length), content, TFRecordWriter.masked_crc(content)]
    return b"".join(parts)


def read(content: bytes, max_bytes: int = LIMIT) -> list[bytes]:
    return list(records(io.BytesIO(content), max_bytes))


def plain(example: dict[str, Feature]) -> dict[str, list[Any]]:
    """With every float as its bits, since not every float equals itself."""
    return {
        key: [bytes(view) for view in feature] if isinstance(feature, list) else _bits(feature)
        for key, feature in example.items()
    }


def _bits(numbers: Any) -> list[int]:
    return numbers.view(np.int32).tolist() if numbers.dtype == np.float32 else numbers.tolist()


def _example_class() -> Any:
    """Example with its map as repeated entries, which it is: protobuf sets map entries with unknown fields aside."""
    file = descriptor_pb2.FileDescriptorProto()
    example_pb2.DESCRIPTOR.CopyToProto(file)
    [features] = [message for message in file.message_type if message.name == "Features"]
    features.nested_type[0].options.map_entry = False
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


ByProtobuf = _example_class()


def by_protobuf(record: bytes) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for entry in ByProtobuf.FromString(record).features.feature:
        kind = entry.value.WhichOneof("kind")
        values = getattr(entry.value, kind).value if kind else []
        found[entry.key] = _bits(np.array(values, np.float32)) if kind == "float_list" else list(values)
    return found


def varint(value: int) -> bytes:
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, *contents: bytes) -> bytes:
    """A field with a length."""
    content = b"".join(contents)
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(*feature: bytes, key: bytes = b"k") -> bytes:
    """An Example of one feature, of these bytes."""
    return field(1, field(1, field(1, key), field(2, *feature)))


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
    ids=["zeros", "ones", "up", "down", "digits"],
)
def test_crc_of_rfc_3720(data: bytes, crc: int) -> None:
    """The first four are in RFC 3720, B.4; the last is CRC-32C's check value."""
    length = struct.pack("<Q", len(data))

    def masked(crc: int) -> bytes:
        return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)

    content = length + masked(google_crc32c.value(length)) + data + masked(crc)
    assert read(content) == [data]
    with pytest.raises(BadSource, match="the data of record 0 at byte 0 must have the masked CRC-32C"):
        read(content[:-4] + masked(crc ^ 1))


def test_reads_what_the_other_package_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecords"
    clips = random_clips(3)
    write_clips(path, clips)
    with path.open("rb") as file:
        found = list(records(file, LIMIT))
    assert found == [bytes(view) for view in tfrecord_iterator(str(path))]
    for record, wanted in zip(found, tfrecord_loader(str(path), None), strict=True):
        got = parse_example(record)
        assert got.keys() == wanted.keys()
        for key, feature in got.items():
            value = bytes(feature[0]) if isinstance(feature, list) else feature
            assert np.array_equal(value, wanted[key] if isinstance(value, np.ndarray) else bytes(wanted[key]))


def test_views_into_the_record() -> None:
    record = TFRecordWriter.serialize_tf_example(MIXED)
    strings = parse_example(record)["bytes"]
    assert isinstance(strings, list)
    assert [view.obj is record for view in strings] == [True] * 3


def test_parses_what_protobuf_parses() -> None:
    record = TFRecordWriter.serialize_tf_example(MIXED)
    assert plain(parse_example(record)) == by_protobuf(record)
    assert plain(parse_example(memoryview(record))) == by_protobuf(record)
    assert parse_example(b"") == {}


@pytest.mark.parametrize(
    "record",
    [
        example(field(2, b"\x0d\x00\x00\x80\x3f" * 3)),  # floats one by one
        example(field(2, b"\x0d\x00\x00\x80\x3f", field(1, b"\x00\x00\x00\x40" * 2))),  # and then packed
        example(field(3, b"\x08\x05\x08", varint(2**64 - 1))),  # integers one by one
        example(field(1, field(1, b"a")), field(1, field(1, b"b"))),  # one list in two pieces
        example(field(1, field(1, b"a")), field(2, field(1, bytes(8)))),  # of two kinds the last
        example(field(1, field(1, b"a"))) + example(field(1, field(1, b"b"))),  # one key twice
        field(1, field(1, field(1, b"k"), field(2, field(1, field(1, b"a"))), field(2, field(1, field(1, b"b"))))),
        field(1, field(1, field(2, field(1, field(1, b"a"))))),  # no key
        field(1, field(1, field(1, b"k"))),  # no value
        example(),
        field(7, b"?") + b"\x40\x05" + example(b"\x49" + bytes(8), field(1, field(1, b"a"), b"\x55" + bytes(4))),
    ],
    ids=lambda record: record.hex()[:24],
)
def test_unusual_examples_are_read_as_by_protobuf(record: bytes) -> None:
    assert plain(parse_example(record)) == by_protobuf(record)


def test_truncated_at_every_byte() -> None:
    whole = [b"first", b"", b"third"]
    content = framed(*whole)
    starts = {0: 0, 21: 1, 37: 2, 58: 3}  # byte -> records before it
    assert len(content) == 58
    for size in range(len(content)):
        if size in starts:
            assert read(content[:size]) == whole[: starts[size]]
        else:
            with pytest.raises(BadSource, match=r"record \d at byte \d+ is truncated: .*, got \d+$"):
                read(content[:size])


def test_a_truncated_record_says_what_came() -> None:
    content = framed(b"first", b"second")
    with pytest.raises(BadSource, match="record 1 at byte 21 is truncated: its header must have 12 bytes, got 11"):
        read(content[:32])
    with pytest.raises(BadSource, match="record 1 at byte 21 is truncated: 10 bytes must follow its header, got 7"):
        read(content[:-3])


def test_every_changed_bit_is_noticed() -> None:
    content = framed(b"first", b"")
    for at in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            with pytest.raises(BadSource, match=f"of record {at // 21} at byte {at // 21 * 21} must have"):
                read(bytes(changed))


@pytest.mark.parametrize("length", [LIMIT + 1, 2**31, 2**63, 2**64 - 1])
def test_a_hostile_length_takes_no_memory(length: int) -> None:
    header = struct.pack("<Q", length)
    content = framed(b"first") + header + TFRecordWriter.masked_crc(header) + b"?" * 100
    tracemalloc.start()
    with pytest.raises(
        BadSource, match=f"record 1 at byte 21 must have at most {LIMIT} bytes, its length says {length}"
    ):
        read(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LIMIT


def test_the_limit_is_inclusive() -> None:
    assert read(framed(b"12345"), 5) == [b"12345"]
    with pytest.raises(BadSource, match="at most 4 bytes, its length says 5"):
        read(framed(b"12345"), 4)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"\x0a", "byte 1: a varint of at most 32 bits must come here, got the end"),
        (b"\x0a\x80", "byte 1: a varint of at most 32 bits must come here, got 80"),
        (b"\x0a" + b"\x80" * 9 + b"\x01", "byte 1: a varint of at most 32 bits must come here, got 8080808080"),
        (b"\x0a\xff\xff\xff\xff\x1f", "byte 1: a varint of at most 32 bits must come here, got ffffffff1f"),
        (b"\x38" + b"\xff" * 9 + b"\x02", "byte 1: a varint of at most 64 bits must come here"),
        (b"\x0a\x05abcd", "byte 2: 5 bytes must come, but the message ends at byte 6"),
        (b"\x0a\xff\xff\xff\xff\x0f", "byte 6: 4294967295 bytes must come, but the message ends at byte 6"),
        (b"\x0a\x02\x0a\x01k", "byte 4: 1 bytes must come, but the message ends at byte 4"),
        (b"\x3d\x00", "byte 1: 4 bytes must come, but the message ends at byte 2"),
        (b"\x39\x00", "byte 1: 8 bytes must come, but the message ends at byte 2"),
        (b"\x02\x00", "byte 1: a field must have a number and a wire type, got 0 and 2"),
        (b"\x0b\x0c", "byte 1: a field must have a number and a wire type, got 1 and 3"),
        (b"\x08\x00", "byte 1: a length and its bytes must come here, got a varint"),
        (field(1, b"\x08\x00"), "byte 3: a length and its bytes must come here, got a varint"),
        (field(1, field(1, b"\x08\x00")), "a length and its bytes must come here, got a varint"),
        (field(1, field(1, b"\x15\x00\x00\x00\x00")), "a length and its bytes must come here, got 4 bytes"),
        (example(b"\x08\x00"), "a length and its bytes must come here, got a varint"),
        (example(field(1, b"\x08\x00")), "a length and its bytes must come here, got a varint"),
        (example(field(2, b"\x08\x00")), "4 bytes must come here, got a varint"),
        (example(field(2, field(1, b"\x00" * 6))), "packed floats must have a multiple of 4 bytes, got 6"),
        (example(field(3, b"\x0d" + bytes(4))), "a varint must come here, got 4 bytes"),
        (example(field(3, field(1, b"\x80"))), "a varint of at most 64 bits must come here, got 80"),
        (example(key=b"\xff"), "byte 6: a feature's name must be UTF-8"),
        (example(key=b"\xed\xa0\x80"), "byte 6: a feature's name must be UTF-8"),
    ],
    ids=lambda value: value.hex()[:24] if isinstance(value, bytes) else "",
)
def test_a_malformed_example_is_refused(record: bytes, message: str) -> None:
    with pytest.raises(BadSource, match=message):
        parse_example(record)


@pytest.mark.parametrize(
    "record",
    [
        field(1, b"\x0a\x00" * 200_000),  # features
        example(field(1, b"\x0a\x00" * 200_000)),  # strings
        example(b"\x0a\x00" * 200_000),  # lists
        example(field(3, field(1, bytes(200_000)))),  # packed integers
        b"\x38\x00" * 200_000,  # unknown
    ],
    ids=["features", "strings", "lists", "integers", "unknown"],
)
def test_a_small_record_does_not_unfold_without_bound(record: bytes) -> None:
    with pytest.raises(BadSource, match="a record must have at most 100000 fields, got more"):
        parse_example(record)


def changed(record: bytes, rng: random.Random) -> bytes:
    """The record with a few bytes replaced, removed, repeated or inserted."""
    out = bytearray(record)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out))
        end = at + rng.randint(0, 3)
        out[at:end] = rng.choice([rng.randbytes(end - at), b"", out[at:end] * 2, rng.choice([b"\x80", b"\xff", b"\0"])])
    return bytes(out)


def test_noise_is_refused_or_read_as_by_protobuf() -> None:
    """Whatever comes, BadSource is all that is raised; what is read, protobuf reads alike."""
    rng = random.Random(0)
    whole = TFRecordWriter.serialize_tf_example({**MIXED, "bytes": ([b"ab", b"c"], "byte")})
    n_read = 0
    for k in range(6000):
        record = rng.randbytes(rng.randint(0, 40)) if k % 3 == 0 else changed(whole, rng)
        [content] = read(framed(record))
        try:
            got = plain(parse_example(content))
        except BadSource:
            continue
        assert got == by_protobuf(record), record.hex()
        n_read += 1
    assert 300 < n_read < 5500


def test_without_the_crc_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(
        ImportError, match=r"need google-crc32c, which is not installed: pip install 'svg_fast\[data\]'"
    ):
        read(framed(b"x"))
