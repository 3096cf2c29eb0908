"""Videos come out frame for frame; damaged and hostile ones are refused with a sentence."""

from __future__ import annotations

import builtins
import os
import struct
from itertools import islice
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from video_files import Images, gif_bytes, moving_frames, write_video

from svg_fast.data import video
from svg_fast.data.recipe import BadSource
from svg_fast.data.video import Fit, decode, square

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "video"
PALETTE = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]


def read(path: Path, size: int = 32, channels: int = 1, fit: Fit = "squash") -> Images:
    return np.stack(list(decode(path, size, channels, fit)))


def count_or_error(path: Path) -> int | str:
    try:
        return sum(1 for _ in decode(path, 32, 1))
    except BadSource as error:
        return str(error)


@pytest.mark.parametrize(
    ("name", "frames"), [("mpeg4_164x240x320.avi", 164), ("cinepak_68x240x320.avi", 68), ("h264_120x144x176.mp4", 120)]
)
def test_real_videos_have_all_their_frames(name: str, frames: int) -> None:
    if not REAL.exists():
        pytest.skip("shared/data/video is not here")
    pixels = read(REAL / name, channels=3)
    assert pixels.shape == (frames, 32, 32, 3)
    assert pixels.std() > 20  # and they show something


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "A.AVI"])
def test_lossless_frames_come_back_exactly(tmp_path: Path, name: str, channels: int) -> None:
    frames = moving_frames(7, 48, 48, channels)
    write_video(tmp_path / name.lower(), frames)
    (tmp_path / name.lower()).rename(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name, 48, channels), frames)


def test_grey_is_the_luma_from_black_to_white(tmp_path: Path) -> None:
    """Y' of 16 to 235 as 0 to 255, BT.601, whatever the colour."""
    levels = np.arange(16, 236, dtype=np.uint8).reshape(11, 20)
    planes = np.stack([levels.repeat(20, 0).repeat(11, 1), np.full((220, 220), 90), np.full((220, 220), 200)])
    write_video(tmp_path / "a.mkv", planes[None].astype(np.uint8), pix_fmt="yuv444p")
    expected = (planes[0] - 16) * (255 / 219)
    assert np.abs(read(tmp_path / "a.mkv", 220)[0, ..., 0] - expected).max() <= 1


@pytest.mark.parametrize(
    ("yuv", "rgb"), [((81, 90, 240), (255, 0, 0)), ((145, 54, 34), (0, 255, 0)), ((41, 240, 110), (0, 0, 255))]
)
def test_colours(tmp_path: Path, yuv: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    """The primaries in BT.601's table."""
    planes = np.broadcast_to(np.array(yuv, np.uint8)[None, :, None, None], (2, 3, 16, 16))
    write_video(tmp_path / "a.mkv", planes, pix_fmt="yuv444p")
    assert np.abs(read(tmp_path / "a.mkv", 16, 3).astype(int) - rgb).max() <= 2


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.avi", "mpeg4"),
        ("a.avi", "mjpeg"),
        ("a.mp4", "libx264"),
        ("a.m4v", "mpeg4"),
        ("a.mov", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.mkv", "libx264"),
        ("a.mpg", "mpeg2video"),
        ("a.mpeg", "mpeg1video"),
    ],
)
def test_lossy_formats(tmp_path: Path, name: str, codec: str) -> None:
    frames = moving_frames(9, 64, 64)
    write_video(tmp_path / name, frames, codec, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    pixels = read(tmp_path / name, 64)
    assert pixels.shape == frames.shape
    errors = [np.abs(pixels.astype(float) - np.roll(frames, t, axis=0)).mean() for t in (-1, 0, 1)]
    assert errors[1] < min(errors[0], errors[2])  # each frame is most like the one that was written in its place


def test_variable_frame_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_frames(6), "libx264", pix_fmt="yuv420p", times=[0, 1, 5, 6, 30, 31])
    assert len(read(tmp_path / "a.mp4")) == 6


def test_upright(tmp_path: Path) -> None:
    """A phone's portrait is stored lying, with a matrix that turns it clockwise: x' = h - y, y' = x."""
    frames = moving_frames(3, 64, 64)
    write_video(tmp_path / "a.mp4", frames, "mpeg4", pix_fmt="yuv420p")
    plain = read(tmp_path / "a.mp4", 64)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, matrix) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    turned = read(tmp_path / "a.mp4", 64)
    np.testing.assert_array_equal(turned[:, :, 63], plain[:, 0])  # the top row is now the right column
    np.testing.assert_array_equal(turned[:, 0, 63], plain[:, 0, 0])


def test_gif(tmp_path: Path) -> None:
    """Frames that cover a part, are partly transparent (3), and are kept, cleared or taken back afterwards."""
    red, patch = np.ones((4, 4), np.uint8), np.array([[3, 2], [2, 2]], np.uint8)
    for disposal, left_there in ((1, (0, 255, 0)), (2, (255, 255, 255)), (3, (255, 0, 0))):
        data = gif_bytes(4, PALETTE, [(0, 0, red, 1), (0, 0, patch, disposal), (2, 2, patch, 1), (2, 2, patch, 1)])
        (tmp_path / "a.gif").write_bytes(data)
        expected = np.full((4, 4, 4, 3), (255, 0, 0), np.uint8)
        expected[1, :2, :2] = (0, 255, 0)
        expected[1, 0, 0] = (255, 0, 0)
        expected[2:, :2, :2] = left_there
        if disposal == 1:
            expected[2:, 0, 0] = (255, 0, 0)
        expected[2:, 2:, 2:] = (0, 255, 0)
        expected[2:, 2, 2] = (255, 0, 0)
        np.testing.assert_array_equal(read(tmp_path / "a.gif", 4, 3), expected)


def test_square() -> None:
    frame = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6, 1) * 10
    np.testing.assert_array_equal(square(frame, 4, "crop"), frame[:, 1:5])
    np.testing.assert_array_equal(square(frame.transpose(1, 0, 2), 4, "crop"), frame[:, 1:5].transpose(1, 0, 2))
    flat = square(np.full((120, 160, 3), (7, 80, 255), np.uint8), 64)
    np.testing.assert_array_equal(flat, np.full((64, 64, 3), (7, 80, 255)))


@pytest.mark.parametrize(("height", "width", "size"), [(120, 160, 64), (64, 64, 32), (16, 16, 40)])
def test_resizing_is_antialiased_bilinear(height: int, width: int, size: int) -> None:
    """Against the definition: a triangle of one pixel's radius, or of one new pixel's where that is wider."""
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

    def weights(old: int) -> npt.NDArray[np.float64]:
        scale = old / size
        centres = (np.arange(size)[:, None] + 0.5) * scale
        triangle = np.clip(1 - np.abs(np.arange(old) + 0.5 - centres) / max(scale, 1), 0, None)
        return triangle / triangle.sum(1, keepdims=True)

    expected = np.einsum("yh,xw,hwc->yxc", weights(height), weights(width), frame)
    assert np.abs(square(frame, size) - expected).max() <= 1.01  # it rounds twice


def test_frames_come_as_they_are_decoded(tmp_path: Path) -> None:
    """The first frames are there before a fault at the end is found."""
    write_video(tmp_path / "a.avi", moving_frames(40), "rawvideo")
    os.truncate(tmp_path / "a.avi", (tmp_path / "a.avi").stat().st_size // 2)
    frames = decode(tmp_path / "a.avi", 32, 1)
    assert len(list(islice(frames, 10))) == 10
    with pytest.raises(BadSource):
        list(frames)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.avi", "mpeg4"),
        ("a.avi", "ffv1"),
        ("a.avi", "mjpeg"),
        ("a.mp4", "libx264"),
        ("a.mkv", "ffv1"),
        ("a.gif", "gif"),
    ],
)
def test_truncated_anywhere(tmp_path: Path, name: str, codec: str) -> None:
    """A file that was cut has all of its frames or is refused."""
    path = tmp_path / name
    pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "gray", "gif": "gray"}.get(codec, "yuv420p")
    write_video(path, moving_frames(8, 40, 40), codec, pix_fmt=pix_fmt)
    data = path.read_bytes()
    assert count_or_error(path) == 8
    outcomes = []
    for length in {*range(0, len(data), len(data) // 150), *range(len(data) - 20, len(data))}:
        path.write_bytes(data[:length])
        outcomes.append(count_or_error(path))
    assert {outcome for outcome in outcomes if not isinstance(outcome, str)} <= {8}
    assert sum(isinstance(outcome, str) for outcome in outcomes) > len(outcomes) / 2


def test_truncated_between_frames(tmp_path: Path) -> None:
    """Where nothing is damaged, only the counts tell."""
    write_video(tmp_path / "a.avi", moving_frames(8), "rawvideo")
    data = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(data[: data.index(b"00dc", data.index(b"movi") + 5 * 160 * 120)])
    with pytest.raises(BadSource, match=r"truncated: [45] of the 8 frames"):
        read(tmp_path / "a.avi")
    gif = gif_bytes(4, PALETTE, [(0, 0, np.full((4, 4), k, np.uint8), 1) for k in (0, 1, 2)])
    (tmp_path / "a.gif").write_bytes(gif[: gif.rindex(b"\x21\xf9")])
    with pytest.raises(BadSource, match="truncated GIF: it ends in or after image 2"):
        read(tmp_path / "a.gif")
    write_video(tmp_path / "a.mkv", moving_frames(8))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[:-100])
    with pytest.raises(BadSource, match=f"truncated: {len(data) - 100} of the {len(data)} bytes"):
        read(tmp_path / "a.mkv")


def test_cut_in_the_last_frame(tmp_path: Path) -> None:
    """The counts agree, and a decoder may well make a picture of the half that is there."""
    write_video(tmp_path / "a.avi", moving_frames(8), "mjpeg", pix_fmt="yuvj420p")
    data = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(data[: data.rindex(b"\xff\xd9", 0, data.index(b"idx1")) - 500])
    with pytest.raises(BadSource, match="cut off in or after frame 7"):
        read(tmp_path / "a.avi")


def test_live_recordings_declare_nothing(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", moving_frames(8))
    data = (tmp_path / "a.mkv").read_bytes()
    segment = data.index(b"\x18\x53\x80\x67") + 4
    (tmp_path / "a.mkv").write_bytes(data[:segment] + b"\x01" + b"\xff" * 7 + data[segment + 8 :])
    assert len(read(tmp_path / "a.mkv")) == 8


def test_damage_that_the_decoder_would_conceal(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", moving_frames(8), "mpeg4", pix_fmt="yuv420p")
    data = bytearray((tmp_path / "a.avi").read_bytes())
    start = data.index(b"00dc", data.index(b"movi")) + 200
    data[start : start + 300] = bytes(300)
    (tmp_path / "a.avi").write_bytes(data)
    with pytest.raises(BadSource, match="damaged at frame 0"):
        read(tmp_path / "a.avi")


@pytest.mark.parametrize("name", ["a.avi", "a.gif", "a.mp4"])
def test_flipped_bytes(tmp_path: Path, name: str) -> None:
    """Frames of the right shape or BadSource, whatever is in the file."""
    codec, pix_fmt = {"a.avi": ("mpeg4", "yuv420p"), "a.gif": ("gif", "gray"), "a.mp4": ("libx264", "yuv420p")}[name]
    write_video(tmp_path / name, moving_frames(5, 40, 40), codec, pix_fmt=pix_fmt)
    data = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(150):
        damaged = bytearray(data)
        for where in rng.integers(0, len(data) if trial % 2 else 300, 4):
            damaged[where] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            assert all(frame.shape == (32, 32, 1) for frame in islice(decode(tmp_path / name, 32, 1), 1000))
        except BadSource:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("name", ["x.avi", "x.mp4", "x.mkv", "x.gif", "x.mpg"])
@pytest.mark.parametrize("kind", ["hls", "concat", "empty", "text", "zeros"])
def test_what_is_no_video(tmp_path: Path, name: str, kind: str) -> None:
    """Also where FFmpeg, left to guess, would follow it to another file."""
    other = tmp_path / "other.avi"
    write_video(other, moving_frames(3), "mpeg4", pix_fmt="yuv420p")
    text = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {other.name}\n",
        "empty": "",
        "text": "not a video at all\n" * 100,
        "zeros": "\0" * 5000,
    }
    path = tmp_path / name
    path.write_text(text[kind])
    if kind == "concat":
        with av.open(str(path)) as container:  # the danger is there
            assert container.format.name == "concat"
    with pytest.raises(BadSource):
        read(path)


def test_a_video_opens_no_other_file() -> None:
    with pytest.raises(PermissionError, match=r"must not open another file, tried 'file:///etc/hosts'"):
        video._open_nothing("file:///etc/hosts", 1, {})


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match=r"not readable as AVI video \(No such file or directory\)"):
        read(tmp_path / "a.avi")
    (tmp_path / "b.avi").mkdir()
    with pytest.raises(BadSource, match=r"Is a directory"):
        read(tmp_path / "b.avi")
    with pytest.raises(ValueError, match=r"a video must end in \.avi, \.gif, .*, got 'a\.txt'"):
        read(tmp_path / "a.txt")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])
    with pytest.raises(BadSource, match="no video in it that can be decoded"):
        read(tmp_path / "a.mkv")


def test_large_frames_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.avi", moving_frames(2))
    write_video(tmp_path / "a.mp4", moving_frames(2), "libx264", pix_fmt="yuv420p")
    monkeypatch.setattr(video, "MAX_PIXELS", 2 * 160 * 120)
    assert len(read(tmp_path / "a.avi")) == len(read(tmp_path / "a.mp4")) == 2
    monkeypatch.setattr(video, "MAX_PIXELS", 160 * 120 - 1)
    for name, size in (("a.avi", "unknown or too many"), ("a.mp4", "160x120")):
        with pytest.raises(BadSource, match=f"frames of {size} pixels; 1 to 19199 are read"):
            read(tmp_path / name)


def test_a_gif_that_claims_to_be_huge(tmp_path: Path) -> None:
    """10 GB, if its header were believed."""
    gif = bytearray(gif_bytes(4, PALETTE, [(0, 0, np.zeros((4, 4), np.uint8), 1)] * 2))
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    (tmp_path / "a.gif").write_bytes(gif)
    with pytest.raises(BadSource, match=r"frames of .* pixels; 1 to 33554432 are read"):
        read(tmp_path / "a.gif")


@pytest.mark.parametrize("name", ["a b.avi", "ähnlich-日本.avi", "line\nbreak.avi", "-i.avi", "http:x.avi", "a%d.avi"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "plain.avi", moving_frames(2))
    (tmp_path / "plain.avi").rename(tmp_path / name)
    assert len(read(tmp_path / name)) == 2


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_video(tmp_path / "plain.avi", moving_frames(2))
    name = os.fsdecode(b"caf\xe9.avi")
    (tmp_path / "plain.avi").rename(tmp_path / name)
    assert len(read(tmp_path / name)) == 2


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def missing(name: str, *args: object, **kwargs: object) -> object:
        if name == "av":
            raise ImportError(name)
        return imported(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'svg_fast\[data\]'"):
        list(decode(tmp_path / "a.avi", 32, 1))
