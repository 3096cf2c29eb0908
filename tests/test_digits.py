"""Digits: idx files whole and broken, the offline ones, and the download."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import logging
import struct
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from svg_fast.data import digits as digits_module
from svg_fast.data import download_mnist, load_digits

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_real = pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason="../shared/data/mnist is not here")
TRAIN = "train-images-idx3-ubyte"


def idx(count: int = 3, *, magic: int = 0x803, size: int = 28, claim: int | None = None) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, count * size * size, dtype=np.uint8)
    return struct.pack(">IIII", magic, count if claim is None else claim, size, size) + pixels.tobytes()


def write(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


@needs_real
@pytest.mark.parametrize(("root", "split"), [(REAL, "train"), (REAL / "mnist", "test")])
def test_mnist_is_what_pillow_makes_of_it(root: Path, split: digits_module.Split) -> None:
    image = pytest.importorskip("PIL.Image")
    got = load_digits(root, split)
    assert got.dtype == torch.uint8
    assert got.shape == (10_000, 32, 32)
    name = {"train": "train10k", "test": "t10k"}[split]
    raw = gzip.decompress((REAL / "mnist" / f"{name}-images-idx3-ubyte.gz").read_bytes())
    mnist = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    for i in range(0, 10_000, 100):
        wanted = np.asarray(image.fromarray(mnist[i]).resize((32, 32), image.Resampling.BILINEAR))
        assert np.abs(got[i].numpy().astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("folder", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize(
    ("split", "name"),
    [("train", TRAIN), ("train", "train10k-images-idx3-ubyte"), ("test", "t10k-images-idx3-ubyte")],
)
def test_plain_and_gz_are_found_in_every_folder(
    tmp_path: Path, folder: str, split: digits_module.Split, name: str
) -> None:
    write(tmp_path / "plain" / folder, name, idx())
    write(tmp_path / "gz" / folder, f"{name}.gz", gzip.compress(idx()))
    plain = load_digits(tmp_path / "plain", split)
    assert plain.shape == (3, 32, 32)
    assert torch.equal(plain, load_digits(str(tmp_path / "gz"), split))


def test_missing_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, "t10k-images-idx3-ubyte", idx())
    with pytest.raises(FileNotFoundError, match=f"no MNIST train images in .*{TRAIN}.*MNIST/raw.*--download"):
        load_digits(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no MNIST test images"):
        load_digits(tmp_path / "nowhere", "test")


def test_wrong_split_is_told() -> None:
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        load_digits(None, "valid")  # type: ignore[arg-type]


WHOLE = idx()
BROKEN = [
    ("empty", b"", "header of 16 bytes, got only 0"),
    ("half a header", WHOLE[:9], "header of 16 bytes, got only 9"),
    ("no pixels", WHOLE[:16], "2352 bytes of pixels for its 3 images, got only 0"),
    ("one byte short", WHOLE[:-1], "got only 2351"),
    ("too long", WHOLE + b"x", "2352 bytes of pixels for its 3 images, got more"),
    ("labels", idx(magic=0x801), "idx file of uint8 images .*got 0x00000801"),
    ("floats", idx(magic=0xD03), "got 0x00000d03"),
    ("other size", idx(size=27), "of 28x28, got 3 images of 27x27"),
    ("no images", idx(0), "1 to 100000 images of 28x28, got 0 images"),
    ("huge claim", idx(claim=2**32 - 1), "got 4294967295 images"),
    ("great claim", idx(claim=100_000), "78400000 bytes of pixels for its 100000 images, got only 2352"),
    ("bomb", idx() + bytes(50_000_000), "got more"),
]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("content", "message"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_broken_idx_is_told_in_little_memory(tmp_path: Path, content: bytes, message: str, packed: bool) -> None:
    write(tmp_path, TRAIN + ".gz" * packed, gzip.compress(content, 1) if packed else content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"{TRAIN}.* must .*{message}"):
            load_digits(tmp_path, "train")
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


PACKED = gzip.compress(WHOLE)
CORRUPT = {
    "not gzip": WHOLE,
    "truncated": PACKED[: len(PACKED) // 2],
    "truncated header": PACKED[:5],
    "no checksum": PACKED[:-8],
    "wrong checksum": PACKED[:-8] + bytes(8),
    "flipped bits": PACKED[:40] + bytes(b ^ 0xFF for b in PACKED[40:80]) + PACKED[80:],
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT.keys())
def test_corrupt_gzip_is_told(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, f"{TRAIN}.gz", content)
    with pytest.raises(ValueError, match=rf"{TRAIN}.gz must be a whole gzip file, got a truncated or corrupt"):
        load_digits(tmp_path, "train")


def test_digits_without_a_data_root(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("sklearn")
    digits_module._name_sklearn_digits.cache_clear()
    with caplog.at_level(logging.INFO, logger="svg_fast"):
        train, test = load_digits(None, "train"), load_digits(None, "test")
    assert [record.name for record in caplog.records] == ["svg_fast"]
    assert "scikit-learn" in caplog.text
    assert "not MNIST" in caplog.text
    assert "--data-root" in caplog.text
    assert (len(train), len(test)) == (1500, 297)
    both = torch.cat((train, test))
    assert both.dtype == torch.uint8
    assert both.shape[1:] == (32, 32)
    assert both.max() == 255
    margin = both.clone()
    margin[:, 4:28, 4:28] = 0
    assert not margin.any()
    images = [{image.numpy().tobytes() for image in part} for part in (train, test)]
    assert images[0].isdisjoint(images[1])
    assert torch.equal(train, load_digits(None, "train"))


def test_missing_scikit_learn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"svg_fast\[train\].*--data-root"):
        load_digits(None, "train")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that serves two small files with the right checksums."""
    files = {f"{TRAIN}.gz": PACKED, "t10k-images-idx3-ubyte.gz": gzip.compress(idx(2))}
    for name, content in files.items():
        write(tmp_path / "mirror", name, content)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(digits_module, "SHA256", checksums)
    return tmp_path / "mirror"


def url(folder: Path) -> str:
    return f"{folder.as_uri()}/"


def test_download(tmp_path: Path, mirror: Path) -> None:
    root = tmp_path / "a" / "b"
    download_mnist(root, [url(tmp_path / "dead"), url(mirror)])
    assert sorted(p.name for p in root.iterdir()) == sorted(p.name for p in mirror.iterdir())
    assert load_digits(root, "train").shape == (3, 32, 32)
    assert load_digits(root, "test").shape == (2, 32, 32)


def test_download_keeps_what_is_there(tmp_path: Path, mirror: Path) -> None:
    root = write(tmp_path / "root", TRAIN, b"mine")
    write(root, "t10k-images-idx3-ubyte.gz", b"mine too")
    download_mnist(root, [])
    assert {p.name: p.read_bytes() for p in root.iterdir()} == {
        TRAIN: b"mine",
        "t10k-images-idx3-ubyte.gz": b"mine too",
    }


@pytest.mark.parametrize("content", [PACKED + b"x", PACKED[:-1], b""], ids=["changed", "truncated", "empty"])
def test_bad_download_leaves_nothing(tmp_path: Path, mirror: Path, content: bytes) -> None:
    write(mirror, f"{TRAIN}.gz", content)
    with pytest.raises(ConnectionError, match=rf"could not download {TRAIN}.gz .*SHA-256 must be .*, got "):
        download_mnist(tmp_path / "root", [url(mirror)])
    assert list((tmp_path / "root").iterdir()) == []


def test_endless_download_is_cut_off(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits_module, "_MAX_DOWNLOAD", 1000)
    with pytest.raises(ConnectionError, match=r"\(1000 bytes\)"):
        download_mnist(tmp_path / "root", [url(mirror)])
    assert list((tmp_path / "root").iterdir()) == []


class LyingHandler(http.server.BaseHTTPRequestHandler):
    """Promises a whole file and hangs up half-way."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PACKED)))
        self.end_headers()
        self.wfile.write(PACKED[: len(PACKED) // 2])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def liar() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), LyingHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_broken_connection_goes_on_to_the_next_mirror(tmp_path: Path, mirror: Path, liar: str) -> None:
    with pytest.raises(ConnectionError, match=f"could not download {TRAIN}.gz .*{liar}"):
        download_mnist(tmp_path / "root", [liar])
    assert list((tmp_path / "root").iterdir()) == []
    download_mnist(tmp_path / "root", [liar, url(mirror)])
    assert load_digits(tmp_path / "root", "train").shape == (3, 32, 32)
