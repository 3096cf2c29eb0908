"""Any folder of videos, frames and arrays as clips."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import Images, moving_frames, write_video

from svg_fast.data import frames
from svg_fast.data.frames import VideosRecipe
from svg_fast.data.recipe import BadSource, LeftOut, Recipe
from svg_fast.data.video import square


def read(recipe: VideosRecipe) -> dict[str, list[Images]]:
    sources, _ = recipe.sources()
    return {source.name: [np.stack(list(clip.frames)) for clip in recipe.clips(source)] for source in sources}


def write_images(folder: Path, names: list[str], pixels: Images) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image.squeeze()).save(folder / name)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_source(tmp_path: Path, channels: int) -> None:
    pixels = moving_frames(5, 32, 32, channels)
    write_video(tmp_path / "a.avi", pixels)
    write_video(tmp_path / "b.mkv", pixels[:4])
    write_images(tmp_path / "deep" / "clip", [f"{k}.png" for k in range(5)], pixels)
    np.save(tmp_path / "c.npy", pixels[..., 0][:, None].repeat(3, 1))
    touch(tmp_path, "readme.txt", ".hidden/d.avi", ".e.avi", "deep/.f.png")
    recipe = VideosRecipe(tmp_path, size=32, channels=channels)
    found = read(recipe)
    assert list(found) == ["a.avi", "b.mkv", "c.npy[0:3]", "deep/clip"]
    for name, clips in found.items():
        expected = pixels[..., :1].repeat(channels, 3) if "npy" in name else pixels[: 4 if name == "b.mkv" else 5]
        assert len(clips) == (3 if "npy" in name else 1)
        for clip in clips:
            np.testing.assert_array_equal(clip, expected)
    assert recipe.sources()[1] == []


def test_sizes_and_times_of_sources(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", moving_frames(2))
    write_images(tmp_path / "clip", ["1.png", "2.png"], moving_frames(2))
    os.utime(tmp_path / "clip" / "1.png", ns=(5, 10**18))
    os.utime(tmp_path / "clip" / "2.png", ns=(5, 7))
    video, folder = VideosRecipe(tmp_path).sources()[0]
    assert (video.path, video.n_bytes) == (tmp_path / "a.avi", (tmp_path / "a.avi").stat().st_size)
    assert folder.path == tmp_path / "clip"
    assert folder[3:] == (sum(p.stat().st_size for p in (tmp_path / "clip").iterdir()), 10**18)


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    pixels = moving_frames(4, 16, 16)
    write_images(tmp_path / "clip", ["x1.png", "x2.bmp", "x9y1.png", "x10.pgm"], pixels)
    np.testing.assert_array_equal(read(VideosRecipe(tmp_path, 16, 1))["clip"][0], pixels)


def test_a_single_file_and_a_folder_of_frames_as_source(tmp_path: Path) -> None:
    pixels = moving_frames(3, 16, 16)
    write_images(tmp_path / "clip", ["1.png", "2.png", "3.png"], pixels)
    write_video(tmp_path / "a.avi", pixels)
    np.testing.assert_array_equal(read(VideosRecipe(tmp_path / "clip", 16, 1))["."][0], pixels)
    np.testing.assert_array_equal(read(VideosRecipe(tmp_path / "a.avi", 16, 1))["a.avi"][0], pixels)


def test_fit(tmp_path: Path) -> None:
    pixels = moving_frames(2, 40, 60)
    write_video(tmp_path / "a.avi", pixels)
    for fit, expected in (("squash", pixels), ("crop", pixels[:, :, 10:50])):
        (clip,) = read(VideosRecipe(tmp_path, 20, 1, fit))["a.avi"]  # type: ignore[arg-type]
        np.testing.assert_array_equal(clip, [square(frame, 20) for frame in expected])


def test_arrays(tmp_path: Path) -> None:
    """The layout of Moving MNIST's test set, time first, in sources of 500 clips; any steps and any square size."""
    values = np.random.default_rng(0).integers(0, 256, (4, 1003, 8, 8), np.uint8)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "f.npy", np.asfortranarray(values[:, :2]))
    found = read(VideosRecipe(tmp_path, 8, 1))
    assert list(found) == ["a.npy[0:500]", "a.npy[500:1000]", "a.npy[1000:1003]", "f.npy[0:2]"]
    stacked = np.stack([clip for name, clips in found.items() if name[0] == "a" for clip in clips], 1)
    np.testing.assert_array_equal(stacked[..., 0], values)
    np.testing.assert_array_equal(np.stack(found["f.npy[0:2]"], 1)[..., 0], values[:, :2])
    (clip, *_) = read(VideosRecipe(tmp_path / "f.npy", 16, 3))["f.npy[0:2]"]
    np.testing.assert_array_equal(clip[0], np.repeat(square(values[0, 0][..., None], 16), 3, 2))


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("sprung",)


def test_arrays_that_are_not_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("good.npy", np.zeros((3, 2, 8, 8), np.uint8))
    np.save("float.npy", np.zeros((3, 2, 8, 8), np.float32))
    np.save("flat.npy", np.zeros((3, 2, 8), np.uint8))
    np.save("oblong.npy", np.zeros((3, 2, 8, 9), np.uint8))
    np.save("none.npy", np.zeros((3, 0, 8, 8), np.uint8))
    np.save("object.npy", np.array([Trap()], object), allow_pickle=True)
    Path("pickle.npy").write_bytes(pickle.dumps(Trap()))
    np.savez("zip.npz", a=np.zeros(3))
    os.rename("zip.npz", "zip.npy")
    Path("cut.npy").write_bytes(Path("good.npy").read_bytes()[:-1])
    Path("head.npy").write_bytes(Path("good.npy").read_bytes()[:20])
    with Path("huge.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (20, 2**40, 64, 64)}
        np.lib.format.write_array_header_1_0(file, header)
    Path("empty.npy").touch()
    sources, left_out = VideosRecipe(tmp_path).sources()
    assert [source.name for source in sources] == ["good.npy[0:2]"]
    assert len(left_out) == 11
    reasons = dict(left_out)
    assert reasons["float.npy"] == "must be (T, N, S, S) uint8, got (3, 2, 8, 8) float32"
    assert all("not a whole .npy file" in reasons[f"{name}.npy"] for name in ("cut", "huge", "object", "pickle", "zip"))
    assert not Path("sprung").exists()


def test_split_by_name(tmp_path: Path) -> None:
    names = [f"{k}.avi" for k in range(25)]
    touch(tmp_path, *names)
    sources, _ = VideosRecipe(tmp_path, test_fraction=0.3).sources()
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert {source.name for source in sources if source.split == "test"} == set(by_hash[:8])  # 7.5 is rounded to even
    assert [source.name for source in sources] == names  # 2 before 10


@pytest.mark.parametrize(("n_sources", "fraction", "n_test"), [(1, 0.5, 0), (2, 0.01, 1), (5, 0.0, 0), (3, 1.0, 3)])
def test_size_of_the_test_split(tmp_path: Path, n_sources: int, fraction: float, n_test: int) -> None:
    touch(tmp_path, *(f"{k}.avi" for k in range(n_sources)))
    sources, _ = VideosRecipe(tmp_path, test_fraction=fraction).sources()
    assert sum(source.split == "test" for source in sources) == n_test


def test_split_by_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/x/a.avi", "train/b.avi", "test/c.avi", "val/d.avi", "e.avi", "more/train/f.avi")
    sources, left_out = VideosRecipe(tmp_path, test_fraction=0.9).sources()
    assert {source.name: source.split for source in sources} == {
        "test/c.avi": "test",
        "train/b.avi": "train",
        "train/x/a.avi": "train",
    }
    assert {name for name, _ in left_out} == {"val/d.avi", "e.avi", "more/train/f.avi"}
    assert left_out[0].reason == "in neither of the folders train/ and test/"
    (tmp_path / "test/c.avi").unlink()
    sources, left_out = VideosRecipe(tmp_path).sources()
    assert {source.name: source.split for source in sources}["val/d.avi"] == "test"
    assert {name for name, _ in left_out} == {"e.avi", "more/train/f.avi"}


def test_short_clips(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", moving_frames(4))
    recipe = VideosRecipe(tmp_path, min_frames=5)
    with pytest.raises(BadSource, match="4 frames, fewer than the 5 that a clip needs"):
        read(recipe)


def bomb(path: Path, width: int, height: int) -> None:
    """A PNG whose pixels unfold to width x height bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"\0") + chunk(b"IEND", b""))


@pytest.mark.parametrize(("width", "height"), [(6000, 6000), (11000, 11000), (60000, 60000)])
def test_image_bombs(tmp_path: Path, width: int, height: int) -> None:
    bomb(tmp_path / "1.png", width, height)
    with pytest.raises(BadSource, match=r"1\.png: not an image that can be read \(.*pixels"):
        read(VideosRecipe(tmp_path))


def test_damaged_images(tmp_path: Path) -> None:
    """Cut and flipped: an image of the right size, or BadSource."""
    pixels = moving_frames(1, 16, 16, 3)
    refused = 0
    for name in ("1.png", "1.jpg", "1.bmp", "1.ppm"):
        write_images(tmp_path, [name], pixels)
        data = (tmp_path / name).read_bytes()
        rng = np.random.default_rng(0)
        for trial in range(60):
            damaged = bytearray(data[: None if trial % 2 else int(rng.integers(len(data)))])
            for where in rng.integers(0, min(len(damaged), 200) + 1, 3 * (trial % 2)):
                damaged[min(where, len(damaged) - 1)] = rng.integers(256)
            (tmp_path / name).write_bytes(damaged)
            try:
                assert read(VideosRecipe(tmp_path, 16, min_frames=1))["."][0].shape == (1, 16, 16, 3)
            except BadSource:
                refused += 1
        (tmp_path / name).unlink()
    assert refused > 120  # all that were cut, at the least


def test_images_of_other_kinds(tmp_path: Path) -> None:
    """16 bits, a palette, one bit, transparency on white."""
    half = np.full((8, 8), 0x80FF, np.uint16)
    Image.fromarray(half).save(tmp_path / "1.png")
    Image.fromarray(half.astype(np.int32), "I").save(tmp_path / "2.pgm")
    Image.new("P", (8, 8), 1).save(tmp_path / "3.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "4.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "5.png")
    Image.new("LA", (8, 8), (100, 255)).save(tmp_path / "6.png")
    (clip,) = read(VideosRecipe(tmp_path, 8, 1))["."]
    assert clip.min(axis=(1, 2, 3)).tolist() == clip.max(axis=(1, 2, 3)).tolist()
    assert clip[[0, 1, 3, 4, 5], 0, 0, 0].tolist() == [0x80, 0x80, 255, 255, 100]


def test_frames_of_two_sizes(tmp_path: Path) -> None:
    write_images(tmp_path, ["1.png"], moving_frames(1, 16, 16))
    write_images(tmp_path, ["2.png"], moving_frames(1, 16, 18))
    with pytest.raises(BadSource, match=r"frames of two sizes: 1\.png \(16, 16\), 2\.png \(16, 18\)"):
        read(VideosRecipe(tmp_path))


def test_a_folder_called_like_a_video(tmp_path: Path) -> None:
    pixels = moving_frames(2, 16, 16)
    write_images(tmp_path / "x.avi", ["1.png", "2.png"], pixels)
    np.testing.assert_array_equal(read(VideosRecipe(tmp_path, 16, 1))["x.avi"][0], pixels)


def test_links_and_what_is_no_file(tmp_path: Path) -> None:
    """A link to a file is read, one to a folder, which may have no end, not followed; a pipe is not waited for."""
    (tmp_path / "data").mkdir()
    write_video(tmp_path / "outside.avi", moving_frames(3))
    (tmp_path / "data" / "a.avi").symlink_to(tmp_path / "outside.avi")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "broken.avi").symlink_to(tmp_path / "gone.avi")
    os.mkfifo(tmp_path / "data" / "pipe.avi")
    recipe = VideosRecipe(tmp_path / "data")
    assert [len(clip) for clip in read(recipe)["a.avi"]] == [3]
    assert recipe.sources()[1] == [
        LeftOut("broken.avi", "No such file or directory"),
        LeftOut("loop", "a link to a folder, which is not followed"),
        LeftOut("pipe.avi", "neither a file nor a folder"),
    ]
    write_images(tmp_path / "frames", ["1.png"], moving_frames(1))
    os.mkfifo(tmp_path / "frames" / "2.png")
    with pytest.raises(BadSource, match=r"2\.png: not a file"):
        read(VideosRecipe(tmp_path / "frames"))


def test_names(tmp_path: Path) -> None:
    """Any that JSON holds; the others are left out, with a name that it does hold."""
    good = ["a b.avi", "line\nbreak.avi", "ähnlich/日本.avi", "back\\slash.avi"]
    touch(tmp_path, *good, os.fsdecode(b"caf\xe9.avi"))
    sources, left_out = VideosRecipe(tmp_path).sources()
    assert sorted(source.name for source in sources) == sorted(good)
    assert left_out == [LeftOut("caf\\udce9.avi", "its name is not UTF-8")]
    json.dumps([source.name for source in sources] + list(left_out[0]), ensure_ascii=False).encode()


def test_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "open/a.avi", "closed/b.avi")
    scandir = os.scandir

    def guarded(path: str | Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    sources, left_out = VideosRecipe(tmp_path).sources()
    assert [source.name for source in sources] == ["open/a.avi"]
    assert left_out == [LeftOut("closed", "Permission denied")]
    with pytest.raises(PermissionError):
        VideosRecipe(tmp_path / "closed").sources()


def test_nothing_found(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    with pytest.raises(FileNotFoundError, match=r"no videos in .*: looked for \.avi, "):
        VideosRecipe(tmp_path).sources()
    for missing in ("gone", "a.png"):
        with pytest.raises(FileNotFoundError):
            VideosRecipe(tmp_path / missing).sources()


def test_settings_out_of_range(tmp_path: Path) -> None:
    for wrong in ({"size": 0}, {"channels": 2}, {"fit": "pad"}, {"test_fraction": 1.5}):
        with pytest.raises(ValueError, match="must"):
            VideosRecipe(tmp_path, **wrong)


def test_as_a_recipe(tmp_path: Path) -> None:
    recipe: Recipe = VideosRecipe(tmp_path, 32, 1)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert (recipe.kind, recipe.shape) == ("videos", (32, 32, 1))
    assert json.loads(json.dumps(recipe.settings)) == recipe.settings
    others = [VideosRecipe(tmp_path, 64, 1), VideosRecipe(tmp_path, 32, 3), VideosRecipe(tmp_path, 32, 1, "crop")]
    others += [VideosRecipe(tmp_path, 32, 1, test_fraction=0.2), VideosRecipe(tmp_path, 32, 1, min_frames=3)]
    assert all(recipe.settings != other.settings for other in others)
    assert frames.CLIPS_PER_SOURCE == 500
