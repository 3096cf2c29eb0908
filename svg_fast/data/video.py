"""Frames of one video file, decoded one after another and pressed or cut to a square."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from .recipe import BadSource, Frame

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

Fit = Literal["squash", "crop"]

# A file is read as what its ending says and as nothing else: a playlist that is called .avi is a bad AVI.
_DEMUXERS = {
    ".avi": "avi",
    ".gif": "gif",
    ".m4v": "mov",
    ".mkv": "matroska",
    ".mov": "mov",
    ".mp4": "mov",
    ".mpeg": "mpeg",
    ".mpg": "mpeg",
    ".webm": "matroska",
}
ENDINGS = frozenset(_DEMUXERS)
MAX_PIXELS = 2**25  # of one frame, before it is resized: a little more than 8K (7680x4320)

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_GIF_IMAGE, _GIF_EXTENSION, _GIF_END = 0x2C, 0x21, 0x3B


def decode(path: Path, size: int, channels: int, fit: Fit = "squash") -> Iterator[Frame]:
    """All frames of the video in a file, (size, size, channels) uint8, in the order they are shown.

    Memory holds a few frames, whatever the file's length. Grey is the luma as 0 to 255. What a GIF leaves transparent
    is white. One thread decodes: a conversion runs a process on each core.

    Whether a file is whole is known at its end, and so is the error: take no frame for good before the last one came.
    AVI, MP4, GIF and, unless they were streamed live, Matroska and WebM tell how much there is; an MPEG program stream
    does not, and may have been cut between two frames. A damaged frame is noticed where its codec notices.

    Args:
        path: a file with one of `ENDINGS`, in upper or lower case; other endings are a ValueError.
        size: side of the square in pixels.
        channels: 1 (grey) or 3 (RGB).
        fit: "squash" presses the whole frame into the square, "crop" takes the largest centred one.

    Raises:
        BadSource: the file cannot be read, is no such video, has larger frames than `MAX_PIXELS`, is truncated or
            damaged, or has no frames.
        ImportError: PyAV is not installed.
    """
    demuxer = _DEMUXERS.get(path.suffix.lower())
    if demuxer is None:
        raise ValueError(f"a video must end in {', '.join(sorted(ENDINGS))}, got {path.name!r}")
    av = _import_av()
    try:
        with path.open("rb") as file:
            _check_whole(file, demuxer)
            with av.open(
                file,
                format=demuxer,
                options={"max_pixels": str(MAX_PIXELS)},
                metadata_errors="replace",
                io_open=_open_nothing,
            ) as container:
                yield from _frames(container, size, channels, fit)
    except (av.FFmpegError, OSError) as error:
        raise BadSource(f"not readable as {path.suffix[1:].upper()} video ({_what(error)})") from error


def square(frame: Frame, size: int, fit: Fit = "squash") -> Frame:
    """A frame (H, W, C) as (size, size, C), C 1 or 3: antialiased bilinear; a square frame of that size is unchanged.

    fit: "squash" presses the whole frame into the square, "crop" takes the largest centred one.
    """
    from PIL import Image

    height, width, channels = frame.shape
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        frame = frame[top : top + side, left : left + side]
    if frame.shape[:2] == (size, size):
        return np.ascontiguousarray(frame)
    image = Image.fromarray(np.ascontiguousarray(frame[..., 0] if channels == 1 else frame))
    resized = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return resized.reshape(size, size, channels)


def _frames(container: InputContainer, size: int, channels: int, fit: Fit) -> Iterator[Frame]:
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        raise BadSource("no video in it that can be decoded")
    _prepare(stream)
    declared, packets, count = _declared_packets(stream), 0, 0
    reformatter = VideoReformatter()  # one for all frames: setting it up costs more than a small frame
    for packet in container.demux(stream):
        packets += packet.size > 0  # the last one is empty: it flushes the decoder
        if packet.is_corrupt:
            raise BadSource(f"cut off in or after frame {count}")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise BadSource(f"damaged at frame {count}")
            _check_pixels(frame.width, frame.height)
            plain = reformatter.reformat(frame, format="gray" if channels == 1 else "rgb24", threads=1)
            pixels = np.asarray(plain.to_ndarray(), np.uint8).reshape(frame.height, frame.width, channels)
            yield square(np.rot90(pixels, round(frame.rotation / 90)), size, fit)
            count += 1
    if packets < declared:
        raise BadSource(f"truncated: {packets} of the {declared} frames that it declares are there")
    if count == 0:
        raise BadSource("no frames in it")


def _prepare(stream: VideoStream) -> None:
    _check_pixels(stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a frame may be larger than the header said
    stream.codec_context.thread_count = 1


def _check_pixels(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:  # 0 is what FFmpeg leaves where it found no size or refused it
        size = f"{width}x{height}" if width * height else "unknown or too many"
        raise BadSource(f"frames of {size} pixels; 1 to {MAX_PIXELS} are read")


def _declared_packets(stream: VideoStream) -> int:
    """How many coded frames the file says that it has; 0 where it does not say.

    Its index is believed before its header: an AVI that was cut by an editor may keep the old number there. An index
    of one entry is what reading the first frame left. Packets are compared with it, since one may hold no picture.
    """
    entries = len(stream.index_entries)
    return entries if entries > 1 else stream.frames


def _check_whole(file: BinaryIO, demuxer: str) -> None:
    """BadSource for a GIF or Matroska file that ends before it says; FFmpeg takes what is there without a word."""
    if demuxer == "gif":
        _check_gif(file)
    elif demuxer == "matroska":
        declared, there = _matroska_bytes(file), file.seek(0, os.SEEK_END)
        if there < declared:
            raise BadSource(f"truncated: {there} of the {declared} bytes that it declares are there")
    file.seek(0)


def _check_gif(file: BinaryIO) -> None:
    header = file.read(13)
    if not header.startswith(b"GIF8"):
        raise BadSource("not a GIF")
    _skip_palette(file, header[10:11])
    images = 0
    while (block := file.read(1)) and block[0] != _GIF_END:
        if block[0] == _GIF_IMAGE:
            _skip_palette(file, file.read(9)[8:])
            images += 1
        elif block[0] != _GIF_EXTENSION:
            raise BadSource(f"damaged GIF: block {block[0]:#04x} after {images} images")
        file.read(1)  # bits of a code, or the kind of extension
        while length := file.read(1):
            if length[0] == 0:
                break
            file.seek(length[0], os.SEEK_CUR)
    if not block:
        raise BadSource(f"truncated GIF: it ends in or after image {images}, without the mark of its end")


def _skip_palette(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)


def _matroska_bytes(file: BinaryIO) -> int:
    """Bytes up to the end of the segment; 0 where it is open, as in a live recording, or this is no Matroska file."""
    file.seek(_end_of_element(file, _EBML))
    return _end_of_element(file, _SEGMENT)


def _end_of_element(file: BinaryIO, kind: bytes) -> int:
    """Where the EBML element ends that begins here; 0 if it is of another kind or does not tell."""
    head = file.read(5)
    if not head.startswith(kind) or not any(head[4:]):
        return 0
    bits = 7 * (9 - head[4].bit_length())  # each zero before the first one is a byte more; a byte has 7 bits of length
    length = int.from_bytes(head[4:] + file.read(bits // 7 - 1), "big") % (1 << bits)
    return 0 if length == (1 << bits) - 1 else file.tell() + length


def _open_nothing(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError(f"a video must not open another file, tried {url!r}")


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("reading videos needs PyAV: pip install 'svg_fast[data]'") from error
    return av


def _what(error: Exception) -> str:
    """What an error of FFmpeg or the system says, without the file's name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
