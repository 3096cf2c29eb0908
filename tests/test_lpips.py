"""LPIPS against the published formula written out here, and the files that published weights come in."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svg_fast.evaluation import lpips
from svg_fast.evaluation.lpips import LPIPS, Net
from svg_fast.evaluation.weights import load_weights

# torchvision's number of a convolution -> channels out, channels in, kernel
ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG_SHAPES = [(64, 3, 3), (64, 64, 3), (128, 64, 3), (128, 128, 3), (256, 128, 3), (256, 256, 3), (256, 256, 3)]
VGG_SHAPES += [(512, 256, 3), *[(512, 512, 3)] * 5]
VGG = dict(
    zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        VGG_SHAPES,
        strict=True,
    )
)
WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}

Weights = dict[str, Tensor]


def random_weights(net: Net) -> tuple[Weights, Weights]:
    """Backbone and linear weights under the names of their published files."""
    generator = torch.Generator().manual_seed(7)
    backbone = {"classifier.1.weight": torch.zeros(5, 9)}
    for k, (out, channels, size) in (ALEX if net == "alex" else VGG).items():
        scale = (2 / (channels * size**2)) ** 0.5
        backbone[f"features.{k}.weight"] = scale * torch.randn(out, channels, size, size, generator=generator)
        backbone[f"features.{k}.bias"] = 0.1 * torch.randn(out, generator=generator)
    linear = {
        f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for k, width in enumerate(WIDTHS[net])
    }
    return backbone, linear


def published(net: Net, weights: tuple[Weights, Weights], x: Tensor, y: Tensor) -> Tensor:
    """Zhang et al., equation 1, for frames (N, 3, H, W) in float64."""
    backbone, linear = ({name: tensor.double() for name, tensor in part.items()} for part in weights)

    def conv(x: Tensor, k: int, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(x, backbone[f"features.{k}.weight"], backbone[f"features.{k}.bias"], stride, padding).relu()

    def maps(x: Tensor) -> list[Tensor]:
        # red, green, blue; the published buffers are float32
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).double()[:, :, None, None]
        x = (2 * x - 1 - shift) / scale
        if net == "alex":
            one = conv(x, 0, 4, 2)
            two = conv(F.max_pool2d(one, 3, 2), 3, 1, 2)
            three = conv(F.max_pool2d(two, 3, 2), 6)
            four = conv(three, 8)
            return [one, two, three, four, conv(four, 10)]
        one = conv(conv(x, 0), 2)
        two = conv(conv(F.max_pool2d(one, 2), 5), 7)
        three = conv(conv(conv(F.max_pool2d(two, 2), 10), 12), 14)
        four = conv(conv(conv(F.max_pool2d(three, 2), 17), 19), 21)
        return [one, two, three, four, conv(conv(conv(F.max_pool2d(four, 2), 24), 26), 28)]

    total = torch.zeros(len(x), dtype=torch.float64)
    for k, (a, b) in enumerate(zip(maps(x.double()), maps(y.double()), strict=True)):
        a, b = (m / (m.square().sum(1, keepdim=True).sqrt() + 1e-10) for m in (a, b))
        total += ((a - b).square() * linear[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2))
    return total


def saved(tensors: Weights, folder: Path, name: str, kind: str = "zip") -> Path:
    """A file of weights as PyTorch writes it, as it did before 1.6, or as safetensors."""
    path = folder / f"{name}.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.fixture(scope="module")
def weights() -> tuple[Weights, Weights]:
    return random_weights("alex")


@pytest.fixture(scope="module")
def metric(weights: tuple[Weights, Weights], tmp_path_factory: pytest.TempPathFactory) -> LPIPS:
    folder = tmp_path_factory.mktemp("lpips")
    return LPIPS.load(saved(weights[0], folder, "alexnet"), saved(weights[1], folder, "alex"))


@pytest.mark.parametrize(("net", "size"), [("alex", (64, 64)), ("alex", (31, 50)), ("vgg", (32, 17))])
def test_the_published_formula(net: Net, size: tuple[int, int], tmp_path: Path) -> None:
    weights = random_weights(net)
    metric = LPIPS.load(saved(weights[0], tmp_path, "backbone"), saved(weights[1], tmp_path, "linear"), net).double()
    x, y = torch.rand(2, 3, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(metric(x, y), published(net, weights, x, y), rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_files(weights: tuple[Weights, Weights], kind: str, tmp_path: Path) -> None:
    """Each kind of file, in float32, without a draw from the global generator."""
    before = torch.get_rng_state()
    metric = LPIPS.load(saved(weights[0], tmp_path, "alexnet", kind), saved(weights[1], tmp_path, "alex", kind))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(parameter.requires_grad for parameter in metric.parameters())
    x, y = torch.rand(2, 2, 3, 64, 64)
    torch.testing.assert_close(metric(x, y).double(), published("alex", weights, x, y), rtol=1e-4, atol=0)


def test_equal_frames_are_at_no_distance_and_others_are(metric: LPIPS) -> None:
    x, y = torch.rand(2, 3, 3, 64, 64)
    assert metric(x, x).abs().max() < 1e-10
    assert metric(x, y).min() > 1e-3
    torch.testing.assert_close(metric(x, y), metric(y, x))


def test_grey_frames_are_three_equal_channels(metric: LPIPS) -> None:
    x, y = torch.rand(2, 3, 1, 64, 64)
    torch.testing.assert_close(metric(x, y), metric(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("lead", [(3, 2, 4), (2, 4), (4,), (), (3, 1, 4), (2, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("at_once", [3, 100])
def test_truth_broadcasts_and_pieces_join(
    metric: LPIPS, lead: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = torch.rand(3, 2, 4, 1, 40, 40), torch.rand(*lead, 1, 40, 40)
    whole = metric(x.flatten(0, 2), y.expand(3, 2, 4, 1, 40, 40).flatten(0, 2))
    monkeypatch.setattr(lpips, "_PIECE_PIXELS", at_once * 40 * 40)
    sizes: list[int] = []
    first = next(metric.backbone["features"].children())
    with first.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]))):
        torch.testing.assert_close(metric(x, y), whole.view(3, 2, 4))
    assert max(sizes) <= at_once
    shared = {(2, 4): 3, (2, 1): 3, (4,): 6, (): 24, (1, 1, 1): 24}.get(lead, 1)
    assert sum(sizes) == 24 + 24 // shared  # the features of a shared truth are computed once


@pytest.mark.parametrize(("net", "smallest"), [("alex", 31), ("vgg", 16)])
def test_smallest_frames(net: Net, smallest: int) -> None:
    metric = LPIPS(net)
    assert metric(torch.rand(1, 1, smallest, 64), torch.rand(1, smallest, 64)).isfinite().all()
    with pytest.raises(ValueError, match=f"H, W of at least {smallest} for .*, got torch.float32 of shape"):
        metric(torch.rand(1, 1, 64, smallest - 1), torch.rand(1, 64, smallest - 1))


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (torch.zeros(2, 2, 64, 64), torch.zeros(2, 2, 64, 64), r"prediction must be floats .*1 or 3, H, W"),
        (torch.zeros(2, 1, 64, 64), torch.zeros(1, 64, 64, dtype=torch.uint8), "truth must be floats.*torch.uint8"),
        (torch.zeros(2, 1, 64, 64), torch.zeros(3, 1, 64, 64), r"broadcast to prediction's \[2, 1, 64, 64\].*\[3, 1"),
        (torch.zeros(2, 1, 64, 64), torch.zeros(2, 3, 64, 64), "truth must broadcast"),
        (torch.zeros(1, 64, 64), torch.zeros(2, 1, 64, 64), "truth must broadcast"),
    ],
)
def test_wrong_frames(metric: LPIPS, prediction: Tensor, truth: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(prediction, truth)


def test_an_unknown_net() -> None:
    with pytest.raises(ValueError, match="net must be one of alex, vgg, got 'squeeze'"):
        LPIPS("squeeze")  # type: ignore[arg-type]


def test_a_missing_file_says_what_is_needed(weights: tuple[Weights, Weights], tmp_path: Path) -> None:
    wanted = "absent.pth does not exist: LPIPS needs {}; point --lpips-weights at it"
    with pytest.raises(FileNotFoundError, match=wanted.format("the state_dict of torchvision's AlexNet")):
        LPIPS.load(tmp_path / "absent.pth", tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match=wanted.format("the lpips package's v0.1 weights for AlexNet")):
        LPIPS.load(saved(weights[0], tmp_path, "alexnet"), tmp_path / "absent.pth")
    with pytest.raises(IsADirectoryError):
        load_weights(tmp_path, "LPIPS")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file(weights: tuple[Weights, Weights], kind: str, tmp_path: Path) -> None:
    path = saved(weights[1], tmp_path, "alex", kind)
    data = path.read_bytes()
    for size in {0, 1, 4, 100, *range(1000, len(data), len(data) // 30), len(data) - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"is (truncated or )?damaged( or|:) .*: LPIPS needs a file"):
            load_weights(path, "LPIPS needs a file")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("features.3.weight", None, "lacks features.3.weight: LPIPS needs"),
        ("features.8.bias", torch.zeros(255), r"features.8.bias must have shape \[256\] of floats, got \[255\]"),
        ("features.8.bias", torch.zeros(256, dtype=torch.int64), r"of floats, got \[256\] of torch.int64"),
        # a small file that claims 4 TB
        ("features.0.bias", torch.zeros(1).expand(2**20, 2**20), "a tensor that does not lie in its storage: LPIPS"),
    ],
)
def test_weights_of_another_network(
    weights: tuple[Weights, Weights], name: str, tensor: Tensor | None, message: str, tmp_path: Path
) -> None:
    changed = {**weights[0]}
    del changed[name]
    path = saved(changed if tensor is None else {**changed, name: tensor}, tmp_path, "alexnet")
    with pytest.raises(ValueError, match=message):
        LPIPS.load(path, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "is not a state_dict, which has names and tensors alone"),
        ({"state_dict": {"x": torch.zeros(3)}}, "is not a state_dict, which has names and tensors alone"),
        ({3: torch.zeros(3)}, "has a dictionary with keys that are not strings"),
        ({"x": torch.zeros(3).to_sparse()}, r"names torch._utils._rebuild_sparse_tensor, .*"),
        ({"x": torch.zeros(3, device="meta")}, r"names torch._utils._rebuild_meta_tensor_no_storage, .*"),
    ],
    ids=["tensor", "nested", "number", "sparse", "meta"],
)
def test_not_a_state_dict(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=f"{message}: LPIPS"):
        load_weights(tmp_path / "file.pth", "LPIPS")


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_pickle_that_names_a_function_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "file.pth", tmp_path / "marker"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"x": Hostile(marker)}, protocol=2))
    else:
        torch.save({"x": Hostile(marker)}, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=rf"names {os.system.__module__}\.system, .* nothing was run: LPIPS"):
        load_weights(path, "LPIPS")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Hostile(marker)))
    assert marker.exists()  # it would have


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "file.pt")
    with pytest.raises(ValueError, match="is a TorchScript archive, which holds code, not a state_dict: FVD"):
        load_weights(tmp_path / "file.pt", "FVD")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = saved({"x": torch.zeros(2**20)}, tmp_path, "plain")
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"has a compressed member 'byteorder', .* compresses nothing: LPIPS"):
        load_weights(tmp_path / "small.pth", "LPIPS")


def test_one_record_under_two_names_is_refused(tmp_path: Path) -> None:
    """torch.load does not tell "a" from "A", and would read a record once for each way of writing its name."""
    path = saved({name: torch.zeros(2**10) for name in "aA"}, tmp_path, "plain")
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "twice.pth", "w") as twice:
        for name in plain.namelist():
            data = plain.read(name)
            if name.endswith("data.pkl"):
                text = b"X\1\0\0\0"  # of one byte
                data = data.replace(text + b"0", text + b"a").replace(text + b"1", text + b"A")
            if not name.endswith("data/1"):
                twice.writestr(name.replace("data/0", "data/a"), data)
    with pytest.raises(ValueError, match="tensors in storages of more elements than the file holds: LPIPS"):
        load_weights(tmp_path / "twice.pth", "LPIPS")


def test_an_archive_with_two_directories_is_refused(tmp_path: Path) -> None:
    """Readers differ on which directory counts: of compressed members, or of empty ones."""
    path = saved({"x": torch.zeros(2**20)}, tmp_path, "plain")
    with zipfile.ZipFile(path) as plain:
        members = {name: plain.read(name) for name in plain.namelist()}

    def archive(members: dict[str, bytes], method: int) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as written:
            for name, data in members.items():
                written.writestr(name, data)
        return buffer.getvalue()

    real, decoy = archive(members, zipfile.ZIP_DEFLATED), archive(dict.fromkeys(members, b""), zipfile.ZIP_STORED)
    end = real.rindex(b"PK\5\6")
    path.write_bytes(real[:end] + decoy[decoy.index(b"PK\1\2") : decoy.rindex(b"PK\5\6")] + real[end:])
    with pytest.raises(ValueError, match=r"plain\.pth .*: LPIPS"):
        load_weights(path, "LPIPS")
