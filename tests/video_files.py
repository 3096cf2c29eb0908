"""Small video files for tests, written with PyAV from frames, or by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]


def moving_frames(n_frames: int, height: int = 120, width: int = 160, channels: int = 1, seed: int = 0) -> Images:
    """(T, H, W, C) uint8: coarse noise, moved by a pixel a frame; no two frames are alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 10 + 1, width // 10 + 1, channels), np.uint8)
    first = coarse.repeat(10, axis=0).repeat(10, axis=1)[:height, :width]
    return np.stack([np.roll(first, t, axis=1) for t in range(n_frames)])


def write_video(
    path: Path,
    frames: Images,
    codec: str = "ffv1",
    fps: int = 25,
    pix_fmt: str | None = None,
    times: Sequence[int] | None = None,
) -> None:
    """Write frames (T, H, W, C), C 1 or 3; the container is what the path's ending says.

    ffv1, in AVI and Matroska, is lossless for grey and for RGB frames, and for planes given with pix_fmt "yuv444p",
    (T, 3, H, W). times are in 1/fps seconds, one for each frame; without them the frames follow each other.
    """
    source = "yuv444p" if pix_fmt == "yuv444p" else {1: "gray", 3: "rgb24"}[frames.shape[-1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[2:] if source == "yuv444p" else frames.shape[1:3]
        stream.pix_fmt = pix_fmt or {"gray": "gray", "rgb24": "bgr0"}[source]
        for t, pixels in enumerate(frames):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels.squeeze()), source)
            image = image.reformat(format=stream.pix_fmt)
            image.pts = t if times is None else times[t]
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def write_kth(path: Path, frames: Images, codec: str = "ffv1") -> None:
    """A file like KTH's: AVI, 160x120, 25 frames a second; lossless unless the codec is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, codec, pix_fmt=None if codec in ("ffv1", "rawvideo") else "yuv420p")


def gif_bytes(
    size: int, palette: Sequence[tuple[int, int, int]], images: Iterable[tuple[int, int, Images, int]]
) -> bytes:
    """A GIF of size x size with four colours, of which the last is transparent.

    images: (left, top, indices (h, w), disposal), disposal 1 to keep, 2 to clear, 3 to restore what was there.
    """
    out = b"GIF89a" + struct.pack("<HHBBB", size, size, 0x81, 0, 0) + bytes(sum(palette, ()))
    for left, top, indices, disposal in images:
        height, width = indices.shape
        out += b"\x21\xf9\x04" + struct.pack("<BHBB", disposal << 2 | 1, 4, 3, 0)
        out += b"\x2c" + struct.pack("<HHHHB", left, top, width, height, 0) + _uncompressed(indices)
    return out + b"\x3b"


def _uncompressed(indices: Images) -> bytes:
    """GIF's LZW for two bits a pixel, with the table cleared before every second one so that codes keep three bits."""
    clear, end = 4, 5
    codes = [code for k, index in enumerate(indices.ravel().tolist()) for code in ([clear] * (k % 2 == 0) + [index])]
    bits = sum(code << 3 * k for k, code in enumerate([*codes, end]))
    data = bits.to_bytes(3 * (len(codes) + 1) // 8 + 1, "little")
    blocks = [data[k : k + 255] for k in range(0, len(data), 255)]
    return b"\x02" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
