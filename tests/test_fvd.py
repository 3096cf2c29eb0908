"""I3D against its published layer table and NumPy, the Frechet distance against SciPy and closed forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import scipy.linalg
import scipy.ndimage
import torch
from torch import Tensor, nn

from svg_fast.evaluation import fvd
from svg_fast.evaluation.fvd import I3D, GaussianStatistics, frechet_distance

Array = npt.NDArray[np.float64]

# Carreira & Zisserman, figure 3; the widths of an Inception block's branches are those of GoogLeNet's table 1
MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
# layer -> channels, T, H = W for 16 frames of 224 x 224
SHAPES = {
    "Conv3d_1a_7x7": (64, 8, 112),
    "MaxPool3d_2a_3x3": (64, 8, 56),
    "Conv3d_2b_1x1": (64, 8, 56),
    "Conv3d_2c_3x3": (192, 8, 56),
    "MaxPool3d_3a_3x3": (192, 8, 28),
    "Mixed_3b": (256, 8, 28),
    "Mixed_3c": (480, 8, 28),
    "MaxPool3d_4a_3x3": (480, 4, 14),
    **{f"Mixed_4{x}": (width, 4, 14) for x, width in zip("bcdef", (512, 512, 512, 528, 832), strict=True)},
    "MaxPool3d_5a_2x2": (832, 2, 7),
    "Mixed_5b": (832, 2, 7),
    "Mixed_5c": (1024, 2, 7),
}


def published_weights() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the files of the PyTorch ports."""
    units = [("Conv3d_1a_7x7", 64, 3, 7), ("Conv3d_2b_1x1", 64, 64, 1), ("Conv3d_2c_3x3", 192, 64, 3)]
    for block, (channels, b0, b1a, b1b, b2a, b2b, b3) in MIXED.items():
        units += [(f"{block}.b0", b0, channels, 1), (f"{block}.b1a", b1a, channels, 1), (f"{block}.b1b", b1b, b1a, 3)]
        units += [(f"{block}.b2a", b2a, channels, 1), (f"{block}.b2b", b2b, b2a, 3), (f"{block}.b3b", b3, channels, 1)]
    for name, out, channels, kernel in units:
        yield f"{name}.conv3d.weight", (out, channels, kernel, kernel, kernel)
        yield from ((f"{name}.bn.{what}", (out,)) for what in ("weight", "bias", "running_mean", "running_var"))
    yield "logits.conv3d.weight", (400, 1024, 1, 1, 1)
    yield "logits.conv3d.bias", (400,)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, shape in published_weights():
        if "conv3d.weight" in name:
            tensors[name] = torch.randn(shape, generator=generator) * (2 / prod(shape[1:])) ** 0.5
        else:
            tensors[name] = torch.rand(shape, generator=generator) * 0.2 + (0.9 if name[-3:] in ("ght", "var") else 0)
    return tensors


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fvd") / "i3d.pt"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def i3d(file: Path) -> I3D:
    return I3D.load(file)


def test_names_shapes_and_the_number_of_parameters() -> None:
    with torch.device("meta"):
        model = I3D()
    wanted = dict(published_weights())
    found = {name: tuple(x.shape) for name, x in model.state_dict().items() if "num_batches_tracked" not in name}
    assert found == wanted
    count = sum(prod(shape) for name, shape in wanted.items() if "running" not in name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count == 12_697_264


def test_shapes_of_the_layers() -> None:
    shapes = {}
    with torch.device("meta"):
        model = I3D()
        for name, layer in model.named_children():
            layer.register_forward_hook(lambda _, __, y, name=name: shapes.update({name: tuple(y.shape)}))
        model(torch.empty(2, 3, 16, 224, 224))
    logits = shapes.pop("logits")
    assert shapes == {name: (2, c, t, side, side) for name, (c, t, side) in SHAPES.items()}
    assert logits == (2, 400)


# size, kernel, stride -> the first place of the first window and the number of windows, by hand
SAME = {
    (4, 3, 2): (0, 2),
    (5, 3, 2): (-1, 3),
    (3, 3, 1): (-1, 3),
    (6, 7, 2): (-2, 3),
    (5, 7, 2): (-3, 3),
    (3, 2, 2): (0, 2),
    (4, 2, 2): (0, 2),
    (3, 1, 1): (0, 3),
}


def windows(x: Array, kernel: Sequence[int], stride: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Index of an output and its window, padded by zeros, of x (C, T, H, W)."""
    places = [SAME[size, k, s] for size, k, s in zip(x.shape[1:], kernel, stride, strict=True)]
    wide = np.pad(x, [(0, 0), *[(8, 8)] * 3])
    for index in product(*(range(count) for _, count in places)):
        starts = (8 + first + i * s for i, (first, _), s in zip(index, places, stride, strict=True))
        yield index, wide[(slice(None), *(slice(a, a + k) for a, k in zip(starts, kernel, strict=True)))]


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [((4, 5, 4), 3, 2), ((5, 4, 5), 3, 2), ((6, 5, 6), 7, 2), ((3, 3, 3), 1, 1)]
)
def test_a_unit_is_tensorflows_convolution_and_batch_norm(size: tuple[int, ...], kernel: int, stride: int) -> None:
    unit = fvd._Unit(2, 3, kernel, stride).double().eval()
    for tensor in (unit.bn.running_mean, unit.bn.running_var, unit.bn.weight, unit.bn.bias):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.01, 0.5)  # variances that show which eps was added
    x = torch.rand(1, 2, *size, dtype=torch.float64)
    y = unit(x)[0].detach().numpy()
    weight, *norm = (t.detach().numpy() for t in (unit.conv3d.weight, *unit.bn.state_dict().values()))
    gain, bias, mean, variance, _ = norm
    count = 0
    for index, window in windows(x[0].numpy(), (kernel,) * 3, (stride,) * 3):
        conv = np.einsum("octhw,cthw->o", weight, window)
        expected = np.maximum((conv - mean) / np.sqrt(variance + 1e-3) * gain + bias, 0)
        np.testing.assert_allclose(y[(slice(None), *index)], expected, rtol=1e-12)
        count += 1
    assert y.shape == (3, *(-(-n // stride) for n in size))
    assert count == y[0].size


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [((3, 5, 4), (1, 3, 3), (1, 2, 2)), ((4, 5, 4), (3,) * 3, (2,) * 3), ((3, 4, 3), (2,) * 3, (2,) * 3)],
)
def test_pooling_is_tensorflows(size: tuple[int, ...], kernel: fvd.Triple, stride: fvd.Triple) -> None:
    x = torch.rand(1, 2, *size)
    y = fvd._Pool(kernel, stride)(x)[0].numpy()
    expected = np.full_like(y, np.nan)
    for index, window in windows(x[0].numpy(), kernel, stride):
        expected[(slice(None), *index)] = window.max((1, 2, 3))
    np.testing.assert_array_equal(y, expected)


def test_a_block_joins_its_four_branches_in_the_published_order() -> None:
    block = fvd._Mixed(4, 1, (2, 3), (2, 2), 1).eval()
    x = torch.rand(1, 4, 3, 3, 3)
    pooled = nn.functional.max_pool3d(x, 3, 1, 1)
    branches = block.b0(x), block.b1b(block.b1a(x)), block.b2b(block.b2a(x)), block.b3b(pooled)
    assert [y.shape[1] for y in branches] == [1, 3, 2, 1]
    assert torch.equal(block(x), torch.cat(branches, 1))


def test_logits_are_averaged_over_windows_of_two_time_steps() -> None:
    logits = fvd._Logits(5).double()
    x = torch.rand(2, 5, 3, 2, 2, dtype=torch.float64)
    middle_twice = x.mean((3, 4)) @ torch.tensor([1, 2, 1], dtype=torch.float64) / 4
    expected = nn.functional.linear(middle_twice, logits.conv3d.weight[:, :, 0, 0, 0], logits.conv3d.bias)
    torch.testing.assert_close(logits(x), expected)


def test_features_are_those_of_stretched_videos(i3d: I3D, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel j of 32 shows place (j + 1/2) 8/32 - 1/2 of 8, frames' edges together; grey frames; in pieces."""
    videos = torch.rand(2, 10, 1, 8, 12)
    rows, columns = ((torch.arange(32) + 0.5) * n / 32 - 0.5 for n in (8, 12))
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    frames = [scipy.ndimage.map_coordinates(x, grid, order=1, mode="nearest") for x in videos.flatten(0, 2).numpy()]
    stretched = 2 * torch.from_numpy(np.stack(frames)).view(2, 1, 10, 32, 32).expand(-1, 3, -1, -1, -1) - 1
    features = i3d.features(videos, side=32)
    assert features.shape == (2, 400)
    with torch.no_grad():
        torch.testing.assert_close(features, i3d(stretched), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(fvd, "_PIECE_PIXELS", 1)
    sizes: list[int] = []
    with i3d.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]))):
        pieces = i3d.features(videos.expand(-1, -1, 3, -1, -1), side=32)
    assert sizes == [1, 1]
    torch.testing.assert_close(pieces, features, rtol=1e-4, atol=1e-5)


def test_nine_frames_are_enough(i3d: I3D) -> None:
    assert i3d.features(torch.rand(1, 9, 3, 8, 8), side=32).isfinite().all()
    with pytest.raises(ValueError, match="FVD needs videos of at least 9 frames, got 8"):
        i3d.features(torch.rand(1, 8, 3, 8, 8), side=32)


@pytest.mark.parametrize(
    "videos", [torch.zeros(9, 3, 8, 8), torch.zeros(1, 9, 2, 8, 8), torch.zeros(1, 9, 3, 8, 8).byte()]
)
def test_wrong_videos(i3d: I3D, videos: Tensor) -> None:
    with pytest.raises(ValueError, match=r"videos must be floats \(N, T, 1 or 3, H, W\), got torch"):
        i3d.features(videos)


def test_files(weights: dict[str, Tensor], i3d: I3D, tmp_path: Path) -> None:
    """safetensors is the same as the zip of `file`; counters of newer files and other extra names are left out."""
    count = {"Mixed_3b.b0.bn.num_batches_tracked": torch.tensor(5)}
    safetensors.torch.save_file(weights | count, tmp_path / "i3d.safetensors")
    state = torch.get_rng_state()
    loaded = I3D.load(tmp_path / "i3d.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    for model in (loaded, i3d):
        state_dict = model.state_dict()
        assert all(torch.equal(state_dict[name], tensor) for name, tensor in weights.items())
        assert not any(module.training for module in model.modules())
    loaded.double()  # nothing is left on the meta device


def test_files_that_do_not_fit(weights: dict[str, Tensor], tmp_path: Path) -> None:
    needs = "FVD needs I3D's state_dict, .*; point --fvd-weights at it"
    with pytest.raises(FileNotFoundError, match=f"does not exist: {needs}"):
        I3D.load(tmp_path / "absent.pt")
    names = ("Conv3d_1a_7x7.conv3d.weight", "Conv3d_1a_7x7.bn.weight")
    torch.save({name: weights[name] for name in names}, tmp_path / "few.pt")
    with pytest.raises(ValueError, match=f"lacks Conv3d_1a_7x7.bn.bias: {needs}"):
        I3D.load(tmp_path / "few.pt")
    kinetics600 = {name: tensor.half() for name, tensor in weights.items()} | {
        "logits.conv3d.weight": torch.zeros(600, 1024, 1, 1, 1)
    }
    torch.save(kinetics600, tmp_path / "600.pt")
    with pytest.raises(ValueError, match=r"logits.conv3d.weight must have shape \[400, 1024, .* got \[600, 1024, "):
        I3D.load(tmp_path / "600.pt")


def statistics(features: Array) -> GaussianStatistics:
    gathered = GaussianStatistics(features.shape[1])
    gathered.update(torch.from_numpy(features))
    return gathered


def draw(seed: int, n: int, d: int) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d)


@pytest.mark.parametrize("d", [1, 5, 40])
def test_distance_is_scipys(d: int) -> None:
    x, y = draw(0, 200, d), draw(1, 150, d)
    c, k = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + k - 2 * scipy.linalg.sqrtm(c @ k).real)
    a, b = statistics(x), statistics(y)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_distance_in_closed_form() -> None:
    """Equal covariances leave the means; of independent features each adds (s - t)^2 of its deviations."""
    x = draw(2, 50, 6)
    step = np.arange(6.0)
    assert frechet_distance(statistics(x), statistics(x + step)) == pytest.approx(55, rel=1e-10)
    corners = np.array(list(product((-1.0, 1.0), repeat=4)))  # independent, with variance 16 / 15
    s, t = np.array([1.0, 2.0, 0.0, 5.0]), np.array([3.0, 2.0, 4.0, 0.0])
    expected = ((s - t) ** 2).sum() * 16 / 15
    assert frechet_distance(statistics(corners * s), statistics(corners * t)) == pytest.approx(expected, rel=1e-12)


def test_few_videos_cost_no_digits() -> None:
    """Singular covariances; the trace of the root is the nuclear norm of the centred sets' product."""
    x, y = draw(3, 7, 100), draw(4, 5, 100)
    left, right = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (left**2).sum() + (right**2).sum() - 2 * root
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [2, 30, 300])
def test_a_set_is_at_no_distance_from_itself(n: int) -> None:
    x = draw(5, n, 60)
    assert 0 <= frechet_distance(statistics(x), statistics(x)) < 1e-12 * np.trace(np.cov(x.T))


def test_chunks_in_any_order_are_the_batch() -> None:
    x = draw(6, 90, 8) + 1e5  # far from zero, where sums of squares would lose digits
    for sizes in ([90], [1] * 90, [3, 0, 60, 26, 1]):
        for rows in (x, x[::-1]):
            gathered = GaussianStatistics(8)
            for chunk in torch.from_numpy(rows.copy()).split(sizes):
                gathered.update(chunk)
            assert gathered.count == 90
            np.testing.assert_allclose(gathered.mean, x.mean(0), rtol=1e-13)
            np.testing.assert_allclose(gathered.covariance, np.cov(x.T), rtol=1e-8, atol=1e-8)


def test_float32_features_are_gathered_in_float64() -> None:
    x = torch.rand(1000, 3) + 1000
    gathered = GaussianStatistics(3)
    gathered.update(x)
    np.testing.assert_allclose(gathered.covariance, np.cov(x.double().numpy().T), rtol=1e-10)


def test_too_few_or_wrong_features() -> None:
    one, two = GaussianStatistics(2), GaussianStatistics(2)
    one.update(torch.rand(1, 2))
    two.update(torch.rand(2, 2))
    for pair in ((one, two), (two, one)):
        with pytest.raises(ValueError, match="FVD needs at least 2 videos in each set, got 1"):
            frechet_distance(*pair)
    with pytest.raises(ValueError, match=r"features must be \(N, 2\), got \[2, 3\]"):
        two.update(torch.rand(2, 3))
    with pytest.raises(ValueError, match="features must be finite"):
        two.update(torch.tensor([[0.0, float("nan")]]))
    assert two.count == 2
