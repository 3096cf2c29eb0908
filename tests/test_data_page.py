"""What `svg-fast data inspect` says and shows of shards is what was put into them; names in them stay text."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from click.testing import CliRunner, Result
from PIL import Image
from shard_files import Array, random_clips, write_shard
from test_report import ATTACK, Page

from svg_fast.cli.inspect import inspect_command
from svg_fast.data.recipe import LeftOut
from svg_fast.data.shards import Manifest, Shard, damaged, load_manifest, save_manifest
from svg_fast.evaluation.data_page import write_data_page

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "video" / "bair_kth_clips.npz"
GAP, COLUMNS = 4, 4  # between pictures, and of the preview
SETTINGS = {"size": 32, "resize": None, "left_out": ["a", "b"]}


def moving_square(n_frames: int, k: int = 0, size: int = 32) -> Array:
    """A red square of 8 pixels that moves to the right by one pixel a frame, on a grey that is the clip's own."""
    frames = np.full((n_frames, size, size, 3), 60 + 10 * k, np.uint8)
    for t, frame in enumerate(frames):
        frame[8:16, np.arange(t, t + 8) % size] = (220, 30, 40)
    return frames


def write_data(
    root: Path, train: Sequence[Array], test: Sequence[Array], left_out: Sequence[LeftOut] = (), name: str = "clip{}"
) -> Path:
    """train in two shards, test in one where there is any, each clip of its own source; the first note is known."""
    root.mkdir(parents=True, exist_ok=True)
    named = [(name.format(k), clip) for k, clip in enumerate([*train, *test])]
    half, n_train = len(train) // 2, len(train)
    shards = [write_shard(root, 0, "train", named[:half]), write_shard(root, 1, "train", named[half:n_train])]
    shards += [write_shard(root, 2, "test", named[n_train:])] if test else []
    save_manifest(root, Manifest("squares", train[0].shape[1:], SETTINGS, shards, list(left_out)))
    return root


def change(root: Path, **changes: Any) -> Manifest:
    manifest = replace(load_manifest(root), **changes)
    save_manifest(root, manifest)
    return manifest


def inspect(*arguments: str | Path) -> Result:
    return CliRunner().invoke(inspect_command, [str(argument) for argument in arguments])


def decode(image: dict[str, str | None]) -> list[Array]:
    """Every frame of a picture of the page, (H, W, 4)."""
    source = image["src"] or ""
    assert source.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        frames = []
        for k in range(getattr(picture, "n_frames", 1)):
            picture.seek(k)
            frames.append(np.asarray(picture.convert("RGBA")).astype(int))
    return frames


def images(path: Path) -> tuple[list[dict[str, str | None]], list[dict[str, str | None]]]:
    """The previews and the strips of a page."""
    every = Page(path).attributes("img")
    previews = [image for image in every if image.get("class") == "preview"]
    return previews, [image for image in every if image not in previews]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six train clips of 10, 12, .. 20 frames and one test clip of 60."""
    train = [moving_square(10 + 2 * k, k) for k in range(6)]
    left = [LeftOut(f"bad{k}.avi", f"reason {k}") for k in range(250)]
    root = write_data(tmp_path_factory.mktemp("data") / "squares", train, [moving_square(60)], left)
    assert inspect(root).exit_code == 0
    return root


def test_numbers_in_the_terminal_and_on_the_page(data: Path) -> None:
    n_bytes = {split: sum(p.stat().st_size for p in data.glob(f"{split}-*.tar")) for split in ("train", "test")}
    size = [f"{n_bytes[split] / 1000:.3g} kB" for split in ("train", "test")]
    wanted = [
        ("shards", "2", "1"),
        ("sources", "6", "1"),
        ("clips", "6", "1"),
        ("frames", "90", "60"),
        ("shortest clip, in frames", "10", "60"),
        ("median clip, in frames", "15", "60"),
        ("longest clip, in frames", "20", "60"),
        ("size", *size),
    ]
    shown, text = inspect(data), Page(data / "inspect.html").text
    lines = [tuple(re.split(r"\s{2,}", line)) for line in shown.output.splitlines()]
    for row in wanted:
        assert row in lines
        assert " ".join(row) in text
    assert shown.output.startswith("squares: frames of 32 x 32 pixels, channels: 3\n")
    assert "left out: 250\n  bad0.avi: reason 0\n" in shown.output
    assert "and 245 more" in shown.output
    assert shown.output.splitlines()[-1] == str(data / "inspect.html")
    assert "250 left out, the first 200 of them here" in text
    assert "bad199.avi reason 199" in text
    assert "bad200" not in text
    for name, words in (("size", "32"), ("resize", "none"), ("left out", "a, b")):
        assert f"{name} {words}" in text
        assert f"  {name}: {words}\n" in shown.output


def test_the_preview_plays_the_clips(data: Path) -> None:
    (train, test), _ = images(data / "inspect.html")
    frames = decode(train)
    assert [len(frames), len(decode(test))] == [20, 50]
    assert {frame.shape for frame in frames} == {(2 * 32 + GAP, 4 * 32 + 3 * GAP, 4)}
    for k in range(6):
        clip, (row, column) = moving_square(10 + 2 * k, k), divmod(k, COLUMNS)
        y, x = row * (32 + GAP), column * (32 + GAP)
        for t, frame in enumerate(frames):
            tile = frame[y : y + 32, x : x + 32]
            assert (tile[..., 3] == 255).all()
            errors = np.abs(tile[..., :3] - clip).mean(axis=(1, 2, 3))
            assert errors.argmin() == min(t, len(clip) - 1)  # a clip that has ended stays
            assert errors.min() < 5
    assert (frames[0][:, 32 : 32 + GAP, 3] == 0).all()
    whole = moving_square(60)  # of which the page plays 5 .. 54
    assert np.abs(decode(test)[0][..., :3] - whole[5]).mean() < 5
    with Image.open(io.BytesIO(base64.b64decode((train["src"] or "").partition(",")[2]))) as picture:
        picture.load()
        assert (picture.info["duration"], picture.info["loop"]) == (40, 0)  # 25 frames per second, for ever
    assert "(animation of 20 frames)" in (train["alt"] or "")
    assert "25 frames per second" in Page(data / "inspect.html").text


def test_the_contact_sheet_is_exact(data: Path) -> None:
    _, strips = images(data / "inspect.html")
    assert len(strips) == 7
    (strip,) = decode(strips[0])
    times = [0, 1, 3, 4, 5, 6, 8, 9]  # of ten frames
    tiles = [strip[:, k * (32 + GAP) :][:, :32, :3] for k in range(8)]
    assert np.array_equal(tiles, moving_square(10)[times])
    assert strips[0]["alt"] == f"Frames {', '.join(map(str, times))} of clip0, from left to right"
    text = Page(data / "inspect.html").text
    assert "clip1 clip 1, frames 1\N{EN DASH}12" in text


def test_clips_are_spread_and_the_page_does_not_grow(tmp_path: Path) -> None:
    """Of 120 clips 12, from the middle of each dozenth; the page is as large as that of 12."""
    sizes = []
    for n in (12, 120):
        root = write_data(tmp_path / str(n), random_clips(*[3] * n, channels=3), ())
        write_data_page(root / "inspect.html", root)
        sizes.append((root / "inspect.html").stat().st_size)
    assert sizes[1] < 1.1 * sizes[0]
    shown = [int(number) for number in re.findall(r">clip (\d+), frames", (root / "inspect.html").read_text())]
    assert shown == list(range(5, 120, 10))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_pixel_statistics(tmp_path: Path, channels: int) -> None:
    clips = random_clips(3, 4, channels=channels)
    for clip in clips:
        clip[:, :4, :, 0] = 0
        clip[:, 4, :4, 0] = 255
    root = write_data(tmp_path, clips, ())
    write_data_page(root / "p.html", root)
    table = Page(root / "p.html").text.partition("saturated train")[2]
    middles = np.stack([clips[0][1], clips[1][2]]).astype(float)
    names = {1: ["grey"], 3: ["red", "green", "blue"]}.get(channels, [f"channel {c}" for c in range(channels)][:4])
    for c, name in enumerate(names):
        found = re.search(rf"{name} ([\d.]+) ([\d.]+) ([\d.]+).% ([\d.]+).%", table)
        assert found is not None
        values = middles[..., c]
        wanted = [values.mean(), values.std(), 100 * (values == 0).mean(), 100 * (values == 255).mean()]
        np.testing.assert_allclose([float(word) for word in found.groups()], wanted, atol=0.051)
    ((strip, *_),) = (decode(image) for image in images(root / "p.html")[1][:1])
    shown = clips[0][0][..., :3] if channels >= 3 else clips[0][0][..., :1].repeat(3, 2)
    assert np.array_equal(strip[:, :8, :3], shown)


def test_histogram_of_lengths(tmp_path: Path) -> None:
    """Both splits' bars stand for the same lengths."""
    root = write_data(tmp_path, random_clips(2, 2, 2, 5), random_clips(3, 3))
    write_data_page(root / "p.html", root)
    bars = re.findall(r'height: ([\d.]+)%" title="(\d+) frames: (\d of \d) clips"', (root / "p.html").read_text())
    train = [("100.00", "2", "3 of 4"), ("0.00", "3", "0 of 4"), ("0.00", "4", "0 of 4"), ("33.33", "5", "1 of 4")]
    test = [("0.00", "2", "0 of 2"), ("100.00", "3", "2 of 2"), ("0.00", "4", "0 of 2"), ("0.00", "5", "0 of 2")]
    assert bars == [*train, *test]
    write_data_page(root / "p.html", write_data(root, random_clips(5, 5), ()))
    assert "Lengths of clips" not in (root / "p.html").read_text()


def test_bars_are_few_however_long_the_clips(tmp_path: Path) -> None:
    write_data_page(tmp_path / "p.html", write_data(tmp_path, random_clips(7, 350, size=2), ()))
    bars = re.findall(r'title="(\d+) to (\d+) frames: (\d)', (tmp_path / "p.html").read_text())
    assert bars == [(f"{k}", f"{k + 9}", "1" if k in (0, 350) else "0") for k in range(0, 360, 10)]


@pytest.mark.parametrize("shape", [(200, 300), (300, 1), (97, 5)])
def test_large_frames_are_shown_smaller(tmp_path: Path, shape: tuple[int, int]) -> None:
    level = np.linspace(0, 255, shape[0]).astype(np.uint8)
    clip = np.broadcast_to(level[:, None, None], (4, *shape, 1))
    write_data_page(tmp_path / "p.html", write_data(tmp_path, [clip, clip], ()))
    for image in images(tmp_path / "p.html")[1]:
        (strip,) = decode(image)
        height = strip.shape[0]
        assert height <= 96
        np.testing.assert_allclose(strip[:, 0, 0], np.linspace(0, 255, height), atol=8)


@pytest.mark.skipif(not REAL.is_file(), reason="../shared/data/video is not here")
def test_real_clips(tmp_path: Path) -> None:
    with np.load(REAL) as file:
        bair, kth = ([file[name] for name in sorted(file) if name.startswith(kind)] for kind in ("bair", "kth"))
    root = write_data(tmp_path, kth, bair)
    assert inspect(root, "--verify").exit_code == 0
    for preview, clips in zip(images(root / "inspect.html")[0], (kth, bair), strict=True):
        frames = decode(preview)
        assert len(frames) == len(clips[0])
        for t in (0, len(frames) - 1):
            tile = frames[t][:64, 68:132, :3]
            assert np.abs(tile - clips[1][t]).mean() < 8
    for image, clip in zip(images(root / "inspect.html")[1], [*kth, *bair], strict=True):
        (strip,) = decode(image)
        assert np.array_equal(strip[:, :64, :3], clip[0])
        assert np.array_equal(strip[:, -64:, :3], clip[-1])
    assert (root / "inspect.html").stat().st_size < 4e6


def test_what_was_read_and_gave_no_clip_is_counted(tmp_path: Path) -> None:
    root = write_data(tmp_path, random_clips(3, 3), ())
    first, second = load_manifest(root).shards
    out = LeftOut("broken.avi", "it has no clip")
    change(root, shards=[replace(first, sources=[*first.sources, ("broken.avi", 1, 2)], left_out=[out]), second])
    shown = inspect(root)
    assert re.search(r"sources +2 of 3 +0\n", shown.output)
    assert "left out: 1\n  broken.avi: it has no clip\n" in shown.output
    assert "1 left out broken.avi it has no clip" in Page(root / "inspect.html").text


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_verify_names_every_bad_shard(tmp_path: Path) -> None:
    root = write_data(tmp_path, random_clips(9, 9), random_clips(9))
    shown = inspect(root, "--verify")
    assert shown.exit_code == 0
    assert "verified: 3 shards" in shown.output
    (root / "inspect.html").unlink()
    flip(root / "train-00000.tar", 2000)
    flip(root / "test-00002.tar", 700)
    assert inspect(root).exit_code == 0  # it reads a few frames only
    (root / "inspect.html").unlink()
    shown = inspect(root, "--verify")
    assert shown.exit_code == 1
    assert isinstance(shown.exception, ValueError)
    names = "train-00000.tar (another SHA-256), test-00002.tar (another SHA-256)"
    assert str(shown.exception) == f"2 of 3 shards must be converted again, they are damaged: {names}"
    assert not (root / "inspect.html").exists()

    n_bytes = (root / "train-00001.tar").stat().st_size
    (root / "train-00001.tar").write_bytes(bytes(100))
    (root / "test-00002.tar").unlink()
    read: list[int] = []
    found = damaged(root, load_manifest(root).shards, read.append)
    assert found[1:] == [f"train-00001.tar (100 bytes instead of {n_bytes:,})", "test-00002.tar (not there)"]
    assert sum(read) == (root / "train-00000.tar").stat().st_size


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    def sentence(*arguments: str | Path) -> str:
        shown = inspect(*arguments)
        assert shown.exit_code == 1
        assert isinstance(shown.exception, ValueError | FileNotFoundError)
        assert not list(tmp_path.rglob("*.html"))
        return str(shown.exception)

    assert "no manifest.json" in sentence(tmp_path / "nothing")
    root = write_data(tmp_path / "data", random_clips(9, 9), ())
    assert "--out must end in .html" in sentence(root, "--out", tmp_path / "page.pdf")
    with (root / "train-00001.tar").open("r+b") as file:
        file.truncate(600)
    assert "train-00001.tar must have 3584 bytes, got 600" in sentence(root)
    (root / "train-00001.tar").unlink()
    assert "train-00001.tar is in the manifest, but not there" in sentence(root)
    change(root, shape=(2**31, 2**31, 4))  # 2^64 bytes
    assert "a clip in it that ends later" in sentence(root)
    (root / "manifest.json").write_text("{}")
    assert "is not a manifest" in sentence(root)


def test_out_and_a_folder_without_clips(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", random_clips(2, 2), ())
    change(root, shards=[], left_out=[LeftOut("a", "b")])
    shown = inspect(root, "--out", tmp_path / "page.html")
    assert shown.exit_code == 0
    assert [path.name for path in tmp_path.glob("*.html")] == ["page.html"]
    assert not list(root.glob("*.html"))
    page = Page(tmp_path / "page.html")
    assert not page.attributes("img")
    assert "clips 0 0" in page.text
    assert "median clip, in frames \N{EN DASH} \N{EN DASH}" in page.text


HOSTILE = f'"><img src=x onerror=alert(1)>{ATTACK}\x1b[2J\r\udcff\u202e/{"w" * 400}'


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names, reasons, notes and settings that would like to be markup, to steer a terminal, or to be very wide."""
    root = tmp_path_factory.mktemp("hostile")
    write_data(root, [moving_square(9), moving_square(20)], [moving_square(9)])

    def worse(shard: Shard) -> Shard:
        clips = [replace(clip, note=HOSTILE, arrays={HOSTILE: (0, 1)}) for clip in shard.clips]
        return replace(shard, sources=[(HOSTILE, 1, 2)], clips=clips)

    shards, deep = [worse(shard) for shard in load_manifest(root).shards], [HOSTILE]
    for _ in range(300):
        deep = [deep]  # type: ignore[list-item]
    settings = {HOSTILE: HOSTILE, "deep": deep, "many": list(range(10**5))}
    change(root, kind=HOSTILE, settings=settings, shards=shards, left_out=[LeftOut(HOSTILE, HOSTILE)] * 3)
    return root


def test_names_are_text(hostile: Path) -> None:
    shown = inspect(hostile)
    assert shown.exit_code == 0
    assert not set("\x1b\r\u202e") & set(shown.output)
    assert shown.output.count(r"\x1b[2J\r\udcff\u202e/w") > 5
    assert "  deep: \N{HORIZONTAL ELLIPSIS}\n" in shown.output
    page = Page(hostile / "inspect.html")
    assert page.text.count(f"{ATTACK}\\x1b[2J\\r\\udcff\\u202e/w") > 10
    assert not page.attributes("script")
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert all((image["src"] or "").startswith("data:image/webp") for image in page.attributes("img"))
    assert max(map(len, page.text.split())) < 500
    (policy,) = [meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_a_shard_named_for_a_terminal_is_refused(tmp_path: Path) -> None:
    root = write_data(tmp_path, random_clips(2, 2), ())
    change(root, shards=[replace(shard, name="a\x1b[2J.tar") for shard in load_manifest(root).shards])
    shown = inspect(root)
    assert isinstance(shown.exception, ValueError)
    assert "\x1b" not in str(shown.exception)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_it_looks_right_in_a_browser(browser: Browser, data: Path, hostile: Path, width: int) -> None:
    for path, n_images in ((data, 9), (hostile, 5)):
        if path == hostile:
            inspect(hostile)
        browser.open(path / "inspect.html", width)
        browser.evaluate("document.querySelectorAll('details:not([open]) summary').forEach(s => s.click())")
        seen = browser.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
        assert len(seen) == n_images
        assert all(complete and natural and shown for complete, natural, shown in seen)
        assert {url.split(":")[0] for url in browser.requests()[1:]} == {"data"}
        assert browser.complaints() == []
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        outside = "[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('.scroll')"
        assert browser.evaluate(f"{outside} && e.getBoundingClientRect().right > {width}).map(e => e.tagName)") == []


def test_both_colour_schemes(browser: Browser, data: Path) -> None:
    for scheme, page_is in (("light", lambda x: x > 240), ("dark", lambda x: x < 40)):
        browser.open(data / "inspect.html", width=800, scheme=scheme)
        header = browser.picture("document.querySelector('header')").mean(axis=2)
        assert page_is(np.median(header))
        assert np.ptp(header) > 150
        gap = browser.picture("document.querySelector('.preview')")[50, 130]  # tiles of 128 pixels, then 16
        assert page_is(gap.mean())
        bars = browser.picture("document.querySelector('.bars')")
        assert (bars[..., 2] - bars[..., 0] > 100).mean() > 0.01
