"""The clips of BAIR files come back as they were written; files of another schema are refused."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bair_files import REAL, BairClip, Features, random_clips, real_clips, write_bair, write_clips, write_records

from svg_fast.data.bair import BairRecipe
from svg_fast.data.recipe import BadSource, LeftOut, RawClip, Recipe, Source


def source(path: Path) -> Source:
    return Source(path.name, path, "train", path.stat().st_size, 0)


def clips(path: Path, size: int = 64) -> list[RawClip]:
    return list(BairRecipe(path.parent, size).clips(source(path)))


def check(found: list[RawClip], wanted: list[BairClip]) -> None:
    assert len(found) == len(wanted)
    for got, clip in zip(found, wanted, strict=True):
        frames = np.stack(list(got.frames))
        assert frames.dtype == np.uint8
        assert np.array_equal(frames, clip.frames)
        assert {name: array.dtype for name, array in got.arrays.items()} == dict.fromkeys(got.arrays, np.float32)
        assert np.array_equal(got.arrays["action"], clip.action)
        assert np.array_equal(got.arrays["endeffector_pos"], clip.position)
        assert (got.first, got.note) == (0, "")


@pytest.mark.skipif(not REAL.is_file(), reason="../shared/data/video is not here")
def test_real_frames_come_back_exactly(tmp_path: Path) -> None:
    wanted = real_clips()
    write_clips(tmp_path / "traj_0_to_9.tfrecords", wanted)
    assert [clip.frames.shape for clip in wanted] == [(30, 64, 64, 3)] * 10
    check(clips(tmp_path / "traj_0_to_9.tfrecords"), wanted)


def test_records_need_not_agree_in_length(tmp_path: Path) -> None:
    """Twelve frames: in the order of their numbers, not of their names."""
    wanted = [*random_clips(1, 12), *random_clips(2, 1, seed=1)]
    write_clips(tmp_path / "Größe 日.tfrecords", wanted)
    check(clips(tmp_path / "Größe 日.tfrecords"), wanted)


def test_without_arrays(tmp_path: Path) -> None:
    [wanted] = random_clips(1)
    for names in (["action", "endeffector_pos"], ["action"]):
        features = {key: value for key, value in wanted.features().items() if key.partition("/")[2] not in names}
        write_records(tmp_path / "x.tfrecords", [features])
        [got] = clips(tmp_path / "x.tfrecords")
        assert got.arrays.keys() == {"action", "endeffector_pos"} - set(names)
        assert np.array_equal(np.stack(list(got.frames)), wanted.frames)


@pytest.mark.parametrize("below", ["", "softmotion30_44k"])
def test_sources(tmp_path: Path, below: str) -> None:
    names = write_bair(tmp_path, n_train=2, n_test=1)
    (tmp_path / "softmotion30_44k" / "train" / "notes.txt").write_text("not ours")
    (tmp_path / "softmotion30_44k" / "other").mkdir()
    (tmp_path / "softmotion30_44k" / "other" / "traj_7.tfrecords").write_text("not ours")
    recipe = BairRecipe(tmp_path / below)
    found, left_out = recipe.sources()
    assert left_out == []
    assert [f"{below}/{s.name}".lstrip("/") for s in found] == names
    assert [s.split for s in found] == ["test", "train", "train"]
    for k, one in enumerate(found):
        stat = (tmp_path / names[k]).stat()
        assert (one.path, one.n_bytes, one.modified) == (tmp_path / names[k], stat.st_size, stat.st_mtime_ns)
        check(list(recipe.clips(one)), random_clips(2, seed=k))


def test_one_split_is_enough(tmp_path: Path) -> None:
    write_bair(tmp_path, n_train=0, n_test=1)
    assert [s.name for s in BairRecipe(tmp_path).sources()[0]] == ["softmotion30_44k/test/traj_0.tfrecords"]


def test_no_sources(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.tfrecord").touch()
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"no BAIR files in .*: looked for train/\*\.tfrecords and test/\*"):
            BairRecipe(root).sources()


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    """A pipe would keep a reader waiting for ever."""
    write_clips(tmp_path / "train" / "b.tfrecords", random_clips(1))
    (tmp_path / "train" / "a.tfrecords").mkdir()
    (tmp_path / "train" / "c.tfrecords").symlink_to("nowhere")
    os.mkfifo(tmp_path / "train" / "d.tfrecords")
    found, left_out = BairRecipe(tmp_path).sources()
    assert [s.name for s in found] == ["train/b.tfrecords"]
    assert left_out == [
        LeftOut("train/a.tfrecords", "is not a file"),
        LeftOut("train/c.tfrecords", "cannot be read (No such file or directory)"),
        LeftOut("train/d.tfrecords", "is not a file"),
    ]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "x.tfrecords"
    folder.mkdir()
    with pytest.raises(BadSource, match=r"^cannot be read \(Is a directory\)$"):
        clips(folder)
    gone = source(folder)
    folder.rmdir()
    with pytest.raises(BadSource, match=r"^cannot be read \(No such file or directory\)$"):
        list(BairRecipe(tmp_path).clips(gone))


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.tfrecords").touch()
    with pytest.raises(BadSource, match="no record, the file is empty"):
        clips(tmp_path / "x.tfrecords")


def test_a_damaged_file_gives_the_clips_before(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecords"
    wanted = random_clips(3)
    write_clips(path, wanted)
    path.write_bytes(path.read_bytes()[:-1])
    found = BairRecipe(tmp_path).clips(source(path))
    check([next(found), next(found)], wanted[:2])
    with pytest.raises(BadSource, match=r"^record 2 at byte \d+ is truncated"):
        next(found)


def test_a_record_that_is_too_long(tmp_path: Path) -> None:
    write_records(tmp_path / "x.tfrecords", [{"x": ([bytes(2**24)], "byte")}])
    with pytest.raises(BadSource, match="record 0 at byte 0 must have at most 16777216 bytes, its length says 16777"):
        clips(tmp_path / "x.tfrecords")


def test_a_record_that_is_no_example(tmp_path: Path) -> None:
    write_records(tmp_path / "x.tfrecords", [{"a\tb" * 100: ([b""], "byte")}])
    with pytest.raises(BadSource, match=r"^record 0: features <i>/image_aux1/encoded must be there, got 'a\\tba\\tb"):
        clips(tmp_path / "x.tfrecords")
    write_records(tmp_path / "x.tfrecords", [{}])
    with pytest.raises(BadSource, match=r"^record 0: features <i>/image_aux1/encoded must be there, got none$"):
        clips(tmp_path / "x.tfrecords")


FRAME = "1/image_aux1/encoded"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FRAME: None}, f"2 features <i>/image_aux1/encoded must be numbered 0 to 1, got no {FRAME}"),
        (
            {"01/image_aux1/encoded": ([bytes(12288)], "byte")},
            "4 features <i>/image_aux1/encoded must be numbered 0 to 3, got no 3/image_aux1/encoded",
        ),
        (
            {FRAME: ([bytes(12287)], "byte")},
            rf"{FRAME} must be one string of 12288 bytes \(64x64x3\), got one string of 12287 bytes",
        ),
        ({FRAME: ([bytes(12288)] * 2, "byte")}, r"12288 bytes \(64x64x3\), got 2 strings"),
        ({FRAME: ([], "byte")}, r"12288 bytes \(64x64x3\), got 0 strings"),
        ({FRAME: ([0.0] * 12288, "float")}, r"12288 bytes \(64x64x3\), got 12288 numbers of float32"),
        ({"1/action": ([1.0] * 5, "float")}, "1/action must be 4 floats, got 5 numbers of float32"),
        ({"1/action": ([1] * 4, "int")}, "1/action must be 4 floats, got 4 numbers of int64"),
        ({"1/action": ([b"1234"], "byte")}, "1/action must be 4 floats, got one string of 4 bytes"),
        ({"2/endeffector_pos": ([], "float")}, "2/endeffector_pos must be 3 floats, got 0 numbers of float32"),
        ({"2/action": None}, "features <i>/action must be as many as frames, 3, got 2"),
        ({"3/action": ([1.0] * 4, "float")}, "features <i>/action must be as many as frames, 3, got 4"),
        ({"0/action": None}, "2 features <i>/action must be numbered 0 to 1, got no 0/action"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_record_of_another_schema(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good, bad = (clip.features() for clip in random_clips(2))
    changed: Features = {key: value for key, value in {**bad, **change}.items() if value is not None}
    write_records(tmp_path / "x.tfrecords", [good, changed])
    with pytest.raises(BadSource, match=f"^record 1: .*{message}"):
        clips(tmp_path / "x.tfrecords")


@pytest.mark.parametrize("size", [16, 48, 128])
def test_another_size(tmp_path: Path, size: int) -> None:
    """A constant stays one, and a checkerboard of single pixels becomes grey where the image shrinks: no aliasing."""
    flat = np.full((64, 64, 3), (3, 100, 250), np.uint8)
    board = np.repeat(255 * (np.indices((64, 64)).sum(0) % 2)[..., None], 3, 2).astype(np.uint8)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (64, 64, 3))
    wanted = random_clips(1)[0]._replace(frames=np.stack([flat, board, ramp]))
    write_clips(tmp_path / "x.tfrecords", [wanted])
    [got] = clips(tmp_path / "x.tfrecords", size)
    frames = np.stack(list(got.frames)).astype(int)
    assert frames.shape == (3, size, size, 3)
    assert (frames[0] == (3, 100, 250)).all()
    if size < 32:
        assert np.abs(frames[1] - 127.5).max() < 3
    centres = (np.arange(size) + 0.5) * 64 / size - 0.5
    inside = slice(size // 8, -(size // 8))
    assert np.abs(frames[2, inside] - (4 * centres)[inside, None, None]).max() <= 1
    assert np.array_equal(got.arrays["action"], wanted.action)


def test_recipe(tmp_path: Path) -> None:
    recipe: Recipe = BairRecipe(tmp_path)
    assert (recipe.kind, recipe.shape) == ("bair", (64, 64, 3))
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    small = BairRecipe(tmp_path, size=32)
    assert small.shape == (32, 32, 3)
    assert json.loads(json.dumps(small.settings)) == small.settings
    assert small.settings == {
        "size": 32,
        "resize": "Pillow, bilinear, antialiased",
        "camera": "image_aux1",
        "left_out": ["image_main"],
        "split": "by folder, train and test",
    }
    assert recipe.settings["resize"] == "none"
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        BairRecipe(tmp_path, size=0)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = random_clips(1)
    write_clips(tmp_path / "x.tfrecords", wanted)
    monkeypatch.setitem(sys.modules, "PIL", None)
    check(clips(tmp_path / "x.tfrecords"), wanted)
    with pytest.raises(ImportError, match=r"takes Pillow, which is not installed: pip install 'svg_fast\[data\]'"):
        clips(tmp_path / "x.tfrecords", 32)
