"""svg-fast data convert: what it says, how it ends, and what is left when it is stopped."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy_recipe
from bair_files import random_clips, write_bair
from click.testing import CliRunner, Result
from PIL import Image
from toy_recipe import ToyRecipe, contents, toys_command, undisturbed, write_toys
from video_files import moving_frames, write_kth

from svg_fast.cli import cli
from svg_fast.data.convert import convert
from svg_fast.data.shards import Shards, load_manifest

TOYS = {"train/a": "clip 3\nclip 5\n", "train/b": "clip 1\n", "test/c": "clip 2\n"}


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


def toys(source: Path, dest: Path, *options: str) -> Result:
    return CliRunner().invoke(toys_command(), [str(source), str(dest), "--workers", "2", *options])


def data_convert(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["data", "convert", *map(str, arguments), "--workers", "1"])


def test_summary(tmp_path: Path) -> None:
    source = write_toys(
        tmp_path / "source", {"train/a": "clip 3\nclip 5\n", "train/b": "clip 1\n", "test/c": "clip 2\n"}
    )
    dest = tmp_path / "a folder"
    done = toys(source, dest)
    n_bytes = {split: sum(path.stat().st_size for path in dest.glob(f"{split}-*.tar")) for split in ("train", "test")}
    expected = [
        f"train: 2 shards, 3 clips, 9 frames, {n_bytes['train']} bytes",
        f"test: 1 shards, 1 clips, 2 frames, {n_bytes['test']} bytes",
        "frames: 4x6x3; resize: none",
        "next:",
        f"  svg-fast data inspect '{dest}'",
        f"  svg-fast train kth-lp --data-root '{dest}'",
    ]
    assert (done.exit_code, done.stdout.splitlines()) == (0, expected)
    again = toys(source, dest)
    assert (again.exit_code, again.stdout.splitlines()) == (
        0,
        ["all shards were there already", *expected],
    )


def test_what_was_left_out_is_named(tmp_path: Path, dest: Path) -> None:
    bad = {f"train/{k:02d}": f"bad reason {k}\n" for k in range(21)}
    source = write_toys(tmp_path / "source", {"test/a": "clip 1\n", os.fsdecode(b"test/\xff\x1b"): "bad torn\n", **bad})
    for _ in range(2):  # also when there is nothing to do
        done = toys(source, dest)
        assert done.exit_code == 3
        lines = done.stdout.splitlines()
        at = lines.index("left out: 22")
        assert lines[at + 1 : at + 21] == [f"  train/{k:02d}.toy: reason {k}" for k in range(20)]
        assert lines[at + 21] == "  and 2 more, see manifest.json"
    for k in range(21):
        (source / f"train/{k:02d}.toy").unlink()
    assert r"  test/\udcff\x1b.toy: torn" in toys(source, dest).stdout
    (source / "test/a.toy").unlink()
    nothing = toys(source, dest)
    assert nothing.exit_code == 3
    assert "next:" not in nothing.stdout


@pytest.mark.parametrize("inside", ["", "shards/new"])
def test_dest_lies_outside_source(tmp_path: Path, inside: str) -> None:
    source = write_toys(tmp_path, {"train/a": "clip 3\n"})
    done = toys(source, source / inside)
    assert isinstance(done.exception, ValueError)
    assert "DEST must lie outside SOURCE" in str(done.exception)
    assert contents(source).keys() == {"train/a.toy"}


def test_videos(tmp_path: Path, dest: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (5, 3, 12, 16), np.uint8)
    for clip, frames in enumerate(levels):
        folder = tmp_path / "source" / f"clip {clip}"
        folder.mkdir(parents=True)
        for k, frame in enumerate(frames[: 2 if clip == 4 else 3]):
            Image.fromarray(frame).save(folder / f"{k}.png")
    options = ["--size", "12", "--channels", "1", "--fit", "crop", "--test-fraction", "0.5", "--min-frames", "3"]
    done = data_convert("videos", tmp_path / "source", dest, *options)
    assert done.exit_code == 3
    assert "frames: 12x12x1; resize: antialiased bilinear, crop" in done.stdout
    assert "  clip 4: 2 frames, fewer than the 3 that a clip needs" in done.stdout
    assert "svg-fast train" not in done.stdout
    given = {"size": 12, "channels": 1, "fit": "crop", "test_fraction": 0.5, "min_frames": 3}
    assert load_manifest(dest).settings.items() >= given.items()
    for split in ("train", "test"):
        shards = Shards(dest, split)
        for clip, name in enumerate(shards.sources):
            np.testing.assert_array_equal(shards.frames(clip)[..., 0], levels[int(name[-1])][..., 2:14])
    refused = data_convert("videos", tmp_path / "source", dest)
    assert isinstance(refused.exception, ValueError)
    assert "size = 12, not 64" in str(refused.exception)


def test_kth(tmp_path: Path, dest: Path) -> None:
    frames = moving_frames(6)
    write_kth(tmp_path / "source" / "person21_boxing_d1_uncomp.avi", frames)
    (tmp_path / "list.txt").write_text("person21_boxing_d1 frames 1-2, 4-6\nperson22_boxing_d1 frames 1-2\n")
    done = data_convert("kth", tmp_path / "source", dest, "--size", "32", "--sequences", tmp_path / "list.txt")
    assert done.exit_code == 3
    assert "  00sequences.txt: 1 of the 2 videos in 00sequences.txt are not here" in done.stdout
    assert f"  svg-fast train kth-lp --data-root {dest}" in done.stdout
    test = Shards(dest, "test")
    assert (test.shape, test.n_frames.tolist(), test.firsts.tolist()) == ((32, 32, 1), [2, 3], [0, 3])


def test_bair(tmp_path: Path, dest: Path) -> None:
    names = write_bair(tmp_path / "source", n_train=2, n_test=1, n_clips=2)
    done = data_convert("bair", tmp_path / "source", dest)
    assert done.exit_code == 0
    assert "frames: 64x64x3; resize: none" in done.stdout
    assert f"  svg-fast train bair-lp --data-root {dest}" in done.stdout
    train = Shards(dest, "train")
    assert sorted(set(train.sources)) == names[1:]
    np.testing.assert_array_equal(train.frames(1), random_clips(2, 3, seed=1)[1].frames)
    np.testing.assert_array_equal(train.array(1, "action"), random_clips(2, 3, seed=1)[1].action)
    assert data_convert("bair", tmp_path / "source", dest).stdout.startswith("all shards were there")


@pytest.mark.parametrize("kind", ["kth", "bair", "videos"])
def test_an_empty_source(tmp_path: Path, dest: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    done = data_convert(kind, tmp_path / "empty", dest)
    assert isinstance(done.exception, FileNotFoundError)
    assert str(tmp_path / "empty") in str(done.exception)
    assert not dest.exists()


def start(source: Path, dest: Path) -> subprocess.Popen[str]:
    """A conversion with two workers in a process group of its own."""
    command = [sys.executable, toy_recipe.__file__, "data", "convert", "toys", str(source), str(dest), "--workers", "2"]
    return subprocess.Popen(command, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def n_finished(dest: Path) -> int:
    return len(list(dest.glob("*.json")))


def living(group: int) -> list[str]:
    """The processes of a group, from /proc/<id>/stat: id (name) state parent group ..."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, _, rest = path.read_text().rpartition(")")
            state, _, of, *_ = rest.split()
            if int(of) == group and state not in "ZX":
                found.append(path.parent.name)
    return found


def wait_for_finished(dest: Path, n: int) -> None:
    wait_for(lambda: n_finished(dest) >= n)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    return write_toys(tmp_path / "slow", {f"train/{k:02d}": 3 * "sleep 0.004\nclip 5\n" for k in range(30)})


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment(slow: Path, dest: Path, seed: int) -> None:
    moment = random.Random(seed)
    for _ in range(2):
        process = start(slow, dest)
        wait_for_finished(dest, n_finished(dest) + moment.randrange(1, 9))
        time.sleep(moment.uniform(0, 0.02))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    n_before = n_finished(dest)
    assert 2 <= n_before < 30
    assert convert(ToyRecipe(slow), dest).n_new <= 30 - n_before + 2  # a sidecar may be there before its tar
    assert contents(dest) == undisturbed(slow)


def test_workers_do_not_outlive_their_parent(slow: Path, dest: Path) -> None:
    write_toys(slow, {"train/00": "sleep 100\n"})
    process = start(slow, dest)
    wait_for_finished(dest, 3)
    process.kill()
    process.communicate()
    wait_for(lambda: not living(process.pid))
    write_toys(slow, {"train/00": "clip 1\n"})
    convert(ToyRecipe(slow), dest)
    assert contents(dest) == undisturbed(slow)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [False, True], ids=["alone", "group"])
def test_stopped_by_a_signal(slow: Path, dest: Path, signum: signal.Signals, whole_group: bool) -> None:
    write_toys(slow, {"train/00": "sleep 100\n"})
    process = start(slow, dest)
    wait_for_finished(dest, 3)
    (os.killpg if whole_group else os.kill)(process.pid, signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert f"stopped: finished shards stay in {dest}" in errors
    assert "Traceback" not in errors
    wait_for(lambda: not living(process.pid))
    left = contents(dest)
    assert len(left) > 4
    assert {Path(name).suffix for name in left} == {".json", ".tar"}
    assert len(list(dest.iterdir())) == len(left)


def test_stopped_while_it_starts(slow: Path, dest: Path) -> None:
    process = start(slow, dest)
    wait_for(lambda: (dest / ".converting").exists())
    time.sleep(0.3)  # its processes import torch
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in errors
    wait_for(lambda: not living(process.pid))
    assert contents(dest) == {}
