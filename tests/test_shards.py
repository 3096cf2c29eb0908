"""The shards' format: what is written comes back, by us, by tarfile and by WebDataset; damage is told."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from shard_files import random_clips, write_shard, write_shards

from svg_fast.data.recipe import BadSource, RawClip, Source
from svg_fast.data.shards import MANIFEST, Manifest, Shards, ShardWriter, damaged, load_manifest, save_manifest

CLIPS = random_clips(5, 1, 12, size=16, channels=3)
ACTIONS = [{"action": np.arange(4 * len(clip), dtype=np.float32).reshape(-1, 4)} for clip in CLIPS]
NAMES = ["a/one.avi", "a/one.avi", "bä\n/two.avi"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shard = write_shard(tmp_path, 7, "train", list(zip(NAMES, CLIPS, strict=True)), ACTIONS)
    save_manifest(tmp_path, Manifest("videos", (16, 16, 3), {"size": 16}, [shard], []))
    return tmp_path


def test_frames_and_arrays_come_back_from_any_start(root: Path) -> None:
    shards = Shards(root, "train")
    assert len(shards) == 3
    assert shards.sources == NAMES
    assert shards.firsts.tolist() == [0, 1, 2]
    for clip, frames in enumerate(CLIPS):
        assert np.array_equal(shards.frames(clip), frames)
        assert np.array_equal(shards.array(clip, "action"), ACTIONS[clip]["action"])
    assert np.array_equal(shards.frames(2, 3, 9), CLIPS[2][3:9])
    out = np.empty((2, 4, 16, 16, 3), np.uint8)
    shards.gather(np.array([2, 0]), np.array([8, 1]), 4, out)
    assert np.array_equal(out, [CLIPS[2][8:], CLIPS[0][1:]])


def test_what_a_clip_does_not_have_is_an_error(root: Path) -> None:
    shards = Shards(root, "train")
    with pytest.raises(IndexError, match="clip 0 has 5 frames, not 3 to 6"):
        shards.frames(0, 3, 6)
    with pytest.raises(KeyError, match="no array 'speed', only"):
        shards.array(0, "speed")
    with pytest.raises(ValueError, match="read-only"):
        shards.frames(0)[0] = 0
    with pytest.raises(FileNotFoundError, match="hold no test clip"):
        Shards(root, "test")


def test_any_tar_reader_finds_named_samples(root: Path) -> None:
    with tarfile.open(root / "train-00007.tar") as archive:
        members = {name: archive.extractfile(name) for name in archive.getnames()}
        assert [name for name in members if name.endswith(".json")] == [f"00007_0000{k}.json" for k in range(3)]
        content = members["00007_00002.frames.npy"]
        assert content is not None
        assert np.array_equal(np.load(io.BytesIO(content.read())), CLIPS[2])
        origin = members["00007_00002.json"]
        assert origin is not None
        assert json.load(origin) == {"source": NAMES[2], "first": 2, "n_frames": 12, "note": ""}


def test_webdataset_streams_them(root: Path) -> None:
    samples = list(webdataset.WebDataset(str(root / "train-00007.tar"), shardshuffle=False).decode())
    assert [sample["json"]["source"] for sample in samples] == NAMES
    for sample, frames, arrays in zip(samples, CLIPS, ACTIONS, strict=True):
        assert np.array_equal(sample["frames.npy"], frames)
        assert np.array_equal(sample["action.npy"], arrays["action"])


def test_a_source_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[RawClip]:
        yield RawClip(iter(CLIPS[0]))
        raise BadSource("broken in the middle")

    def source(name: str) -> Source:
        return Source(name, tmp_path, "train", 1, 2)

    for bad, message in ((failing(), "broken"), (iter([RawClip(iter([]))]), "no frame"), (iter([]), "no clip")):
        with (tmp_path / "part.tar").open("w+b") as file:
            writer = ShardWriter(file, 0, (16, 16, 3))
            writer.add(source("good"), 0, iter([RawClip(iter(CLIPS[1]))]))
            before = file.tell()
            with pytest.raises(BadSource, match=message):
                writer.add(source("bad"), 1, bad)
            assert file.tell() == before
            writer.add(source("good"), 0, iter([RawClip(iter(CLIPS[2]))]))
            writer.finish()
        with tarfile.open(tmp_path / "part.tar") as archive:
            assert len(archive.getnames()) == 4
        assert [clip.n_frames for clip in writer.clips] == [1, 12]


def test_frames_of_another_shape_are_a_defect_of_the_recipe(tmp_path: Path) -> None:
    with (tmp_path / "part.tar").open("w+b") as file:
        writer = ShardWriter(file, 0, (8, 8, 1))
        with pytest.raises(ValueError, match=r"uint8 of shape \(8, 8, 1\), got uint8 of shape \(16, 16, 3\)"):
            writer.add(Source("x", tmp_path, "train", 1, 2), 0, iter([RawClip(iter(CLIPS[0]))]))


def test_the_manifest_comes_back_and_counts(root: Path) -> None:
    manifest = load_manifest(root)
    save_manifest(root, manifest)
    assert load_manifest(root) == manifest
    assert json.loads((root / MANIFEST).read_text())["splits"] == {
        "train": {"shards": 1, "clips": 3, "frames": 18},
        "test": {"shards": 0, "clips": 0, "frames": 0},
    }


def test_a_pickled_one_maps_the_files_anew(root: Path) -> None:
    shards = Shards(root, "train")
    shards.frames(0)
    content = pickle.dumps(shards)
    assert len(content) < 10_000
    assert np.array_equal(pickle.loads(content).frames(2), CLIPS[2])


def test_a_flipped_byte_is_found(root: Path) -> None:
    shards = load_manifest(root).shards
    assert damaged(root, shards, int) == []
    path = root / "train-00007.tar"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert damaged(root, shards, int) == ["train-00007.tar (another SHA-256)"]


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((root / MANIFEST).read_text())
    change(content)
    (root / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other"), "format 'other'"),
        (lambda m: m.update(version=2), "version 2, this svg_fast reads up to 1: upgrade"),
        (lambda m: m.update(shape=[16, 16]), "not a manifest"),
        (lambda m: m.update(shape=[16, 16, -3]), "not a manifest"),
        (lambda m: m["shards"][0].update(name="../x.tar"), "plain file name"),
        (lambda m: m["shards"][0].update(name="/etc/passwd"), "plain file name"),
        (lambda m: m["shards"][0]["clips"][0].update(offset=-512), "not a manifest"),
        (lambda m: m["shards"][0]["clips"][0].update(n_frames=2**60), "not a manifest"),
        (lambda m: m["shards"][0]["clips"][0].update(source=2), "not a manifest"),
        (lambda m: m["shards"][0]["clips"][0].update(n_frames=2**40), "a clip in it that ends later"),
        (lambda m: m["shards"][0]["clips"][0].update(arrays={"a": [0, 2**40]}), "a clip in it that ends later"),
        (lambda m: m["shards"][0].update(n_bytes=9), "must have 9 bytes, got"),
        (lambda m: m.pop("kind"), "KeyError"),
        (lambda m: m["shards"][0].update(clips=3), "not a manifest"),
    ],
)
def test_a_hostile_manifest_is_refused(root: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(root, change)
    with pytest.raises(ValueError, match=message):
        Shards(root, "train")


def test_arrays_are_not_executed_and_take_no_memory(root: Path) -> None:
    """The place of an array is that of a pickled one, and of one whose header promises a petabyte."""
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % 2**48
    evil = io.BytesIO()
    np.save(evil, np.array([{}], dtype=object), allow_pickle=True)
    path = root / "train-00007.tar"
    for content in (header.ljust(127) + b"\n", evil.getvalue()):
        tar = bytearray(path.read_bytes())
        tar[512 : 512 + len(content)] = content
        path.write_bytes(tar)
        place = [512, len(content)]
        edit(root, lambda m, place=place: m["shards"][0]["clips"][0].update(arrays={"action": place}))  # type: ignore[misc]
        with pytest.raises(ValueError, match="is damaged at byte 512"):
            Shards(root, "train").array(0, "action")


def test_missing_and_truncated_shards_are_named(root: Path) -> None:
    path = root / "train-00007.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-00007\.tar must have \d+ bytes, got \d+"):
        Shards(root, "train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00007\.tar is in the manifest, but not there"):
        Shards(root, "train")
    (root / MANIFEST).write_bytes(b"")
    with pytest.raises(ValueError, match="not a manifest"):
        load_manifest(root)
    (root / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json in .*: `svg-fast data convert` makes"):
        Shards(root, "train")


def test_shards_of_both_splits(tmp_path: Path) -> None:
    a, b, c = random_clips(3, 4, 5)
    root = write_shards(tmp_path / "both", "videos", {"train": [[("a", a)], [("b", b)]], "test": [[("c", c)]]})
    assert np.array_equal(Shards(root, "train").frames(1), b)
    assert np.array_equal(Shards(root, "test").frames(0), c)
