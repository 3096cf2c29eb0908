"""Handwritten digits as 32x32 uint8 images, from MNIST's idx files or from scikit-learn."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.client
import logging
import struct
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..files import replacing
from ..reference.moving_mnist import DIGIT_SIZE

logger = logging.getLogger("svg_fast")

Split = Literal["train", "test"]

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
# The largest of the four files has 9.9 MB; a mirror that sends more than this is cut off.
_MAX_DOWNLOAD = 16 * 2**20
_CHUNK = 2**20
_TIMEOUT_SECONDS = 30.0

_IDX_IMAGES = 0x00000803  # unsigned bytes in three dimensions
_IDX_HEADER = struct.Struct(">IIII")
_MNIST_SIZE = 28
_MAX_IMAGES = 100_000  # MNIST has 60,000; the limit bounds what a small gz can unfold to
_FOLDERS = (".", "mnist", "MNIST/raw")
_NAMES = {
    "train": ("train-images-idx3-ubyte", "train*-images-idx3-ubyte"),
    "test": ("t10k-images-idx3-ubyte",),
}
_SKLEARN_TRAIN = 1500  # of 1797; either part holds the ten classes about equally often


def load_digits(data_root: str | Path | None, split: Split) -> Tensor:
    """Digits of one split, (N, 32, 32) uint8, white on black.

    MNIST's 28x28 images are resized bilinearly to 32x32. Without a data_root the digits are scikit-learn's
    8x8 ones, resized to 24x24 inside a margin of 4 pixels, so that the first run needs no download.

    Args:
        data_root: folder with the idx files, plain or .gz, in itself, in mnist/ or in MNIST/raw/; or None.
        split: "train" or "test"; the two share no image.

    Raises:
        FileNotFoundError: data_root has no idx file of the split.
        ValueError: an unknown split, or an idx file that is truncated, corrupt or something else.
        ImportError: data_root is None and scikit-learn is not installed.
    """
    if split not in _NAMES:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if data_root is None:
        return _sklearn_digits(split)
    return _resize(_read_idx_images(_find_idx_images(Path(data_root), split)), DIGIT_SIZE)


def download_mnist(data_root: str | Path, mirrors: Sequence[str] = MIRRORS) -> None:
    """Fetches MNIST's four idx files into data_root, which is made if need be; files already there are kept.

    Each file is checked against its SHA-256 before it appears under its name.

    Raises:
        ConnectionError: no mirror (a URL ending in a slash, tried in order) gave a file with the right checksum.
    """
    root = Path(data_root)
    root.mkdir(parents=True, exist_ok=True)
    for name, sha256 in SHA256.items():
        if (root / name).exists() or (root / name).with_suffix("").exists():
            continue
        failures = []
        for mirror in mirrors:
            try:
                _download(mirror + name, root / name, sha256)
                break
            except (OSError, ValueError, http.client.HTTPException) as error:
                failures.append(f"{mirror}: {error}")
        else:
            raise ConnectionError(
                f"could not download {name} to {root}: {'; '.join(failures) or 'no mirror was given'}"
            )


def _download(url: str, path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with replacing(path) as part:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as source, part.open("wb") as target:
            for chunk in _chunks(source, _MAX_DOWNLOAD):
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != sha256:
            size = part.stat().st_size
            raise ValueError(f"SHA-256 must be {sha256}, got {digest.hexdigest()} ({size} bytes)")


def _chunks(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """At most limit bytes of a file, in pieces: memory follows what is there, not what a header promised."""
    while limit > 0 and (chunk := file.read(min(_CHUNK, limit))):
        limit -= len(chunk)
        yield chunk


def _find_idx_images(root: Path, split: Split) -> Path:
    for folder in _FOLDERS:
        for name in _NAMES[split]:
            for pattern in (name, f"{name}.gz"):
                found = sorted((root / folder).glob(pattern))
                if found:
                    return found[0]
    raise FileNotFoundError(
        f"no MNIST {split} images in {root}: looked for {' and '.join(_NAMES[split])}, plain or .gz, there, "
        "in mnist/ and in MNIST/raw/ (--download or svg_fast.data.download_mnist fetches them)"
    )


def _read_idx_images(path: Path) -> Tensor:
    """Images of an idx file, plain or .gz: (N, 28, 28) uint8."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            stream = cast(BinaryIO, file)
            count = _read_idx_header(stream, path)
            expected = count * _MNIST_SIZE**2
            payload = bytearray()
            # One byte more than promised tells a file that is too long and makes gzip check its CRC.
            for chunk in _chunks(stream, expected + 1):
                payload += chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} must be a whole gzip file, got a truncated or corrupt one ({error})") from error
    if len(payload) != expected:
        came = "more" if len(payload) > expected else f"only {len(payload)}"
        raise ValueError(f"{path} must hold {expected} bytes of pixels for its {count} images, got {came}")
    return torch.frombuffer(payload, dtype=torch.uint8).view(count, _MNIST_SIZE, _MNIST_SIZE)


def _read_idx_header(file: BinaryIO, path: Path) -> int:
    header = file.read(_IDX_HEADER.size)
    if len(header) < _IDX_HEADER.size:
        raise ValueError(f"{path} must begin with an idx header of {_IDX_HEADER.size} bytes, got only {len(header)}")
    magic, count, height, width = _IDX_HEADER.unpack(header)
    if magic != _IDX_IMAGES:
        raise ValueError(f"{path} must be an idx file of uint8 images (magic {_IDX_IMAGES:#010x}), got {magic:#010x}")
    if (height, width) != (_MNIST_SIZE, _MNIST_SIZE) or not 1 <= count <= _MAX_IMAGES:
        raise ValueError(
            f"{path} must hold 1 to {_MAX_IMAGES} images of {_MNIST_SIZE}x{_MNIST_SIZE}, "
            f"got {count} images of {height}x{width}"
        )
    return int(count)


def _sklearn_digits(split: Split) -> Tensor:
    try:
        from sklearn.datasets import load_digits as load_sklearn_digits
    except ImportError as error:
        raise ImportError(
            "digits without a data root are scikit-learn's, which is not installed: "
            "pip install 'svg_fast[train]', or give --data-root with MNIST's idx files"
        ) from error
    _name_sklearn_digits()
    images = torch.from_numpy(load_sklearn_digits().images)  # (1797, 8, 8), 0..16
    images = images[:_SKLEARN_TRAIN] if split == "train" else images[_SKLEARN_TRAIN:]
    # MNIST's digits have a margin too: without one these would fill their 32x32 and look twice as large.
    margin = 4
    grey = (images * (255 / 16)).round().to(torch.uint8)
    return pad(_resize(grey, DIGIT_SIZE - 2 * margin), (margin,) * 4)


@functools.cache  # once per process, however many datasets are made
def _name_sklearn_digits() -> None:
    logger.info("digits: scikit-learn's 1,797 handwritten 8x8 digits, not MNIST (--data-root gives MNIST)")


def _resize(images: Tensor, size: int) -> Tensor:
    """Bilinear with half-pixel centres: (N, h, w) uint8 -> (N, size, size) uint8."""
    return interpolate(images[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
