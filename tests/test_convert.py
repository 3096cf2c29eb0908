"""Conversion into shards: the same bytes however it was done, whatever stopped it on the way."""

from __future__ import annotations

import multiprocessing
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_recipe import ToyRecipe, contents, toy_frames, undisturbed, write_toys

from svg_fast.data.convert import Converted, _work, convert
from svg_fast.data.recipe import LeftOut
from svg_fast.data.shards import Shards, damaged, load_manifest, save_manifest

TOYS = {
    "train/a": "clip 3\nclip 5\n",
    "train/b": "clip 2\n",
    "train/c": "clip 4\nclip 1\nclip 2\n",
    "test/d": "clip 6\n",
    "test/e": "clip 1\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_toys(tmp_path / "source", TOYS)


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


def test_every_frame_and_array_comes_back(source: Path, dest: Path) -> None:
    manifest, n_new = convert(ToyRecipe(source), dest, workers=2)
    assert n_new == 5
    assert load_manifest(dest) == manifest
    assert [shard.name for shard in manifest.shards] == [
        *(f"train-0000{k}.tar" for k in range(3)),
        *(f"test-0000{k}.tar" for k in (3, 4)),
    ]
    assert contents(dest).keys() == {"manifest.json", *(shard.name for shard in manifest.shards)}
    train = Shards(dest, "train")
    assert train.sources == ["train/a.toy", "train/a.toy", "train/b.toy"] + 3 * ["train/c.toy"]
    assert train.n_frames.tolist() == [3, 5, 2, 4, 1, 2]
    assert train.firsts.tolist() == [0, 3, 0, 0, 4, 5]
    for clip, (name, first) in enumerate(zip(train.sources, train.firsts.tolist(), strict=True)):
        n_frames = int(train.n_frames[clip])
        np.testing.assert_array_equal(train.frames(clip), toy_frames(name, first, n_frames))
        np.testing.assert_array_equal(train.array(clip, "index"), np.arange(first, first + n_frames))
    assert not damaged(dest, manifest.shards, int)
    assert Shards(dest, "test").n_frames.tolist() == [6, 1]
    with tarfile.open(dest / "train-00000.tar") as tar:
        assert tar.getnames()[:3] == [f"00000_00000.{end}" for end in ("frames.npy", "index.npy", "json")]


def test_the_number_of_workers_changes_no_byte(source: Path, dest: Path) -> None:
    convert(ToyRecipe(source), dest, workers=1)
    assert contents(dest) == undisturbed(source)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        convert(ToyRecipe(source), dest, workers=0)


def test_small_sources_share_shards_and_splits_do_not(source: Path, dest: Path) -> None:
    write_toys(source, {f"train/{k:03d}": "clip 1\n" for k in range(300)})
    recipe = ToyRecipe(source, weight=2**16)
    shards = convert(recipe, dest, workers=2).manifest.shards
    stamps = [stamp for shard in shards for stamp in shard.sources]
    assert stamps == [(source.name, source.n_bytes, source.modified) for source in recipe.sources()[0]]
    assert {name.partition("/")[0] == shard.split for shard in shards for name, _, _ in shard.sources} == {True}
    sizes = {
        split: [sum(stamp[1] for stamp in shard.sources) for shard in shards if shard.split == split]
        for split in ("train", "test")
    }
    limit = sum(size for _, size, _ in stamps) // 64
    assert limit > 2**20
    for of_split in sizes.values():
        assert all(limit <= size < limit + 7 * 2**16 for size in of_split[:-1])
    assert [int(shard.name[-9:-4]) for shard in shards] == list(range(len(shards)))
    assert len(convert(ToyRecipe(source, weight=1), dest.with_name("few")).manifest.shards) == 2


def test_progress_ends_at_the_sum_of_all_bytes(source: Path, dest: Path) -> None:
    seen = list[tuple[int, int]]()
    convert(ToyRecipe(source), dest, workers=2, progress=lambda done, total: seen.append((done, total)))
    total = sum(len(steps) for steps in TOYS.values()) * 2**20
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert sorted(seen) == seen
    assert len(seen) == 1 + len(TOYS)


def test_a_second_run_has_nothing_to_do(source: Path, dest: Path) -> None:
    first = convert(ToyRecipe(source), dest)
    times = {path: path.stat().st_mtime_ns for path in dest.iterdir()}
    assert convert(ToyRecipe(source), dest) == Converted(first.manifest, 0)
    assert {path: path.stat().st_mtime_ns for path in dest.iterdir()} == times


def touch(source: Path) -> None:
    os.utime(source / "train/b.toy", ns=(1, 1))


def add(source: Path) -> None:
    write_toys(source, {"test/f": "clip 2\n"})


def remove(source: Path) -> None:
    (source / "test/e.toy").unlink()


def rewrite(source: Path) -> None:
    write_toys(source, {"train/a": "clip 3\nclip 6\n"})  # of the same size
    os.utime(source / "train/a.toy", ns=(1, 1))


def leave_out(source: Path) -> None:
    (source / "note.txt").touch()


@pytest.mark.parametrize(
    ("change", "n_new"), [(touch, 1), (add, 1), (remove, 0), (rewrite, 1), (leave_out, 0)], ids=lambda value: str(value)
)
def test_only_what_changed_is_made_anew(source: Path, dest: Path, change: Callable[[Path], None], n_new: int) -> None:
    convert(ToyRecipe(source), dest)
    change(source)
    assert convert(ToyRecipe(source), dest).n_new == n_new
    assert contents(dest) == undisturbed(source)


def test_a_lost_or_cut_shard_is_made_again(source: Path, dest: Path) -> None:
    convert(ToyRecipe(source), dest)
    (dest / "train-00001.tar").unlink()
    os.truncate(dest / "test-00003.tar", 1000)
    assert convert(ToyRecipe(source), dest).n_new == 2
    assert contents(dest) == undisturbed(source)


def test_other_settings_are_refused(source: Path, dest: Path) -> None:
    convert(ToyRecipe(source), dest)
    before = contents(dest)
    with pytest.raises(ValueError, match="holds shards with title = 'toy', not 'play': choose another folder"):
        convert(ToyRecipe(source, title="play"), dest)
    with pytest.raises(ValueError, match=r"with kind = 'toys', not 'dolls'; shape = \[4, 6, 3\], not \[8, 8, 1\]"):
        convert(ToyRecipe(source, kind="dolls", shape=(8, 8, 1)), dest)
    (dest / "manifest.json").rename(dest / "train-00000.json")  # such as an unfinished conversion has
    with pytest.raises(ValueError, match="holds shards with title = 'toy', not 'play'"):
        convert(ToyRecipe(source, title="play"), dest)
    (dest / "train-00000.json").rename(dest / "manifest.json")
    assert contents(dest) == before


def test_files_of_others_stay(source: Path, dest: Path) -> None:
    others = {"notes.json": b"{}", "train.tar": b"tar", "old/train-00000.tar": b"old", ".writing": b"x"}
    for name, content in others.items():
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        (dest / name).write_bytes(content)
    convert(ToyRecipe(source), dest)
    remove(source)
    convert(ToyRecipe(source), dest)
    assert contents(dest) == others | undisturbed(source)


@pytest.mark.parametrize("name", ["train-00000.tar", "train-00000.json", "manifest.json", "test-00099.json"])
def test_files_of_others_are_not_replaced(source: Path, dest: Path, name: str) -> None:
    dest.mkdir()
    (dest / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=f"{name} is .*choose another folder"):
        convert(ToyRecipe(source), dest)
    assert contents(dest) == {name: b"{}"}


def test_a_manifest_cannot_have_other_files_removed(source: Path, dest: Path) -> None:
    manifest = convert(ToyRecipe(source), dest).manifest
    (dest / "thesis.txt").write_text("years of work")
    save_manifest(dest, replace(manifest, shards=[*manifest.shards, replace(manifest.shards[0], name="thesis.txt")]))
    convert(ToyRecipe(source), dest)
    assert contents(dest) == undisturbed(source) | {"thesis.txt": b"years of work"}


def test_one_conversion_at_a_time(source: Path, dest: Path) -> None:
    refused = list[str]()

    def again(done: int, total: int) -> None:
        with pytest.raises(BlockingIOError) as caught:
            convert(ToyRecipe(source), dest)
        refused.append(str(caught.value))

    convert(ToyRecipe(source), dest, workers=2, progress=again)
    assert set(refused) == {f"another conversion into {dest} is at work: wait for it, or end it"}
    assert contents(dest) == undisturbed(source)


def test_a_worker_whose_parent_has_ended_ends_in_silence(source: Path, dest: Path) -> None:
    dest.mkdir(exist_ok=True)  # without the lock, which the parent removes when it ends
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(ToyRecipe(source), dest, theirs))
    process.start()
    process.join(60)
    assert process.exitcode == 0  # 1 after a traceback
    ours.close()


def test_a_bad_source_leaves_no_clip(source: Path, dest: Path) -> None:
    write_toys(source, {"train/b": "clip 2\nclip 3\nbad it is torn\n", "test/d": "", "test/e": "clip 0\n"})
    (source / "note.txt").touch()
    recipe = ToyRecipe(source, weight=1)  # one shard for each split
    manifest = convert(recipe, dest).manifest
    assert manifest.all_left_out() == [
        LeftOut("note.txt", "not a toy"),
        LeftOut("train/b.toy", "it is torn"),
        LeftOut("test/d.toy", "it has no clip"),
        LeftOut("test/e.toy", "a clip of it has no frame"),
    ]
    train = Shards(dest, "train")
    assert train.sources == 2 * ["train/a.toy"] + 3 * ["train/c.toy"]
    np.testing.assert_array_equal(train.frames(2), toy_frames("train/c.toy", 0, 4))
    with tarfile.open(dest / "train-00000.tar") as tar:
        assert len(tar.getnames()) == 3 * 5
    assert convert(recipe, dest).n_new == 0  # it is not tried again until it changes
    write_toys(source, {"train/b": "clip 2\n"})
    assert convert(recipe, dest).n_new == 1


def test_names_of_all_kinds(source: Path, dest: Path) -> None:
    names = ["train/Übung 1", "train/動画", os.fsdecode(b"train/\xff\xfe"), 'train/"quoted"\n']
    write_toys(source, dict.fromkeys(names, "clip 2\n"))
    write_toys(source, {"train/b": "bad \N{SNOWMAN}\n"})
    convert(ToyRecipe(source), dest)
    assert {f"{name}.toy" for name in names} < set(Shards(dest, "train").sources)
    assert load_manifest(dest).all_left_out() == [LeftOut("train/b.toy", "\N{SNOWMAN}")]


def test_no_sources_no_folder(tmp_path: Path, dest: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no toys in"):
        convert(ToyRecipe(tmp_path), dest)
    assert not dest.exists()


def test_where_nothing_can_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for dest in (tmp_path / "file", tmp_path / "file" / "dest"):
        with pytest.raises(OSError, match=str(dest)):
            convert(ToyRecipe(source), dest)


@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [
        ("full 2000\nclip 100\n", OSError, r"File too large: '.*test-00004\.tar'"),
        ("die 11\n", ChildProcessError, r"the process that converted 'test/e\.toy' was ended by SIGSEGV; .* are kept"),
        ("clip 1\ndie 9\n", ChildProcessError, r"'test/e\.toy' was ended by SIGKILL, as when memory runs out"),
        ("defect\n", RuntimeError, "Untransportable: the wire is cut"),
    ],
    ids=["full", "segfault", "killed", "defect"],
)
def test_trouble_in_a_worker(source: Path, dest: Path, trouble: str, kind: type[Exception], message: str) -> None:
    write_toys(source, {"test/e": f"sleep 0.05\n{trouble}"})
    with pytest.raises(kind, match=message) as caught:
        convert(ToyRecipe(source), dest, workers=1)
    if isinstance(caught.value, OSError) and kind is OSError:
        assert caught.value.filename == str(dest / "test-00004.tar")
    finished = ("train-00000", "train-00001", "train-00002", "test-00003")
    assert contents(dest).keys() == {f"{name}.{end}" for name in finished for end in ("tar", "json")}
    write_toys(source, {"test/e": "clip 2\n"})
    assert convert(ToyRecipe(source), dest).n_new == 1
    assert contents(dest) == undisturbed(source)


def all_sidecars(dest: Path) -> None:
    manifest = load_manifest(dest)
    for shard in manifest.shards:
        save_manifest(dest, replace(manifest, shards=[shard], left_out=[]), shard.name.replace("tar", "json"))


def no_manifest(dest: Path) -> None:
    all_sidecars(dest)
    (dest / "manifest.json").unlink()


def no_tar_yet(dest: Path) -> None:
    no_manifest(dest)
    (dest / "train-00001.tar").unlink()


def half_written(dest: Path) -> None:
    no_tar_yet(dest)
    (dest / "train-00001.json").unlink()
    (dest / ".writing-abc").mkdir()
    (dest / ".writing-abc" / "train-00001.tar").write_bytes(b"half")
    (dest / ".converting").touch()


def half_reopened(dest: Path) -> None:
    all_sidecars(dest)
    (dest / "train-00000.json").unlink()
    (dest / "train-00000.tar").unlink()


@pytest.mark.parametrize("state", [all_sidecars, no_manifest, no_tar_yet, half_written, half_reopened])
def test_goes_on_from_whatever_a_kill_can_leave(source: Path, dest: Path, state: Callable[[Path], None]) -> None:
    convert(ToyRecipe(source), dest)
    state(dest)
    assert convert(ToyRecipe(source), dest).n_new == (0 if state in (all_sidecars, no_manifest) else 1)
    assert contents(dest) == undisturbed(source)
