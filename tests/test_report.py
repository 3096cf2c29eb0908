"""The report holds everything it shows, says everything it was told, and looks right in a browser without a network."""

from __future__ import annotations

import base64
import io
import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from test_curves import HORIZON, N_FUTURE, N_PAST, evaluation, models

from svg_fast.evaluation.curves import colour
from svg_fast.evaluation.report import write_report
from svg_fast.evaluation.results import Bound, Curve, Evaluation

ATTACK = "<script>alert(1)</script>"
MINUS = "\N{MINUS SIGN}"
RED, BLUE = (220, 30, 30), (30, 30, 220)


class Page(HTMLParser):
    """What a report holds: its tags with their attributes, and its text without the style sheet."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.pieces.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A strip far wider than a screen, and an animation: red for 0.2 s, then blue for a minute."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 255, (80, 2200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "strip.png")
    first, second = (Image.new("RGB", (320, 120), tint) for tint in (RED, BLUE))
    first.save(folder / "playing.gif", save_all=True, append_images=[second], duration=[200, 60_000], loop=0)
    return {"All frames of three clips": folder / "strip.png", "The same clips, playing": folder / "playing.gif"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, Path]) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, models(), pictures)
    return path


def test_pictures_are_inside_and_nothing_is_outside(report: Path, pictures: dict[str, Path]) -> None:
    page = Page(report)
    images = page.attributes("img")
    files = [base64.b64decode((image["src"] or "").split(",", 1)[1]) for image in images]
    assert len(images) == 2 + 2 + len(pictures)  # SSIM, PSNR; ELBO, KL
    assert [path.read_bytes() for path in pictures.values()] == files[-2:]
    for image, data in zip(images, files, strict=True):
        with Image.open(io.BytesIO(data)) as picture:
            assert f"{picture.width} {picture.height}" == f"{image['width']} {image['height']}"
            assert (image["src"] or "").startswith(f"data:image/{str(picture.format).lower()};base64,")
        assert len(image["alt"] or "") > 20
    assert (images[-1]["alt"] or "").endswith("(animation of 2 frames)")
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for name in ("href", "src", "srcset", "style", "action"):
            assert re.match("data:|#|background: #", attributes.get(name) or "#")
    (policy,) = [meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "url(" not in report.read_text()


def test_results_are_averages_over_the_frames(report: Path) -> None:
    text = Page(report).text
    for each in models():
        for metric, digits, half in (("ssim", 4, "0.0040"), ("psnr", 2, "0.10")):
            for curve in each.curves[metric].values():
                assert f"{np.mean(curve.mean):.{digits}f} ± {half}" in text
        assert each.bound is not None
        assert f"{each.bound.elbo:.1f}".replace("-", MINUS) in text
        assert f"{np.mean(each.bound.kl_per_step):.4g}" in text
        assert f"{each.scalars['fvd']:.1f}" in text
    assert "diversity (MSE between samples) 0.01230 0.01230 \N{EN DASH}" in text


def test_the_best_model_is_bold(tmp_path: Path) -> None:
    def flat(name: str, **levels: float) -> Evaluation:
        curves = {metric: {"best": Curve([level] * 3, [0.001] * 3, 0.001)} for metric, level in levels.items()}
        return Evaluation(name, 2, 4, curves, scalars={"fvd": levels["lpips"] * 1000})

    write_report(tmp_path / "r.html", [flat("a", ssim=0.5, lpips=0.25), flat("b", ssim=0.75, lpips=0.5)], {})
    bold = re.findall(r"<strong>([\d.]+)", (tmp_path / "r.html").read_text())
    assert bold == ["0.7500", "0.2500", "250.0"]
    write_report(tmp_path / "r.html", [flat("a", ssim=0.5, lpips=0.25)], {})
    assert "<strong>" not in (tmp_path / "r.html").read_text()


def test_every_number_is_in_the_tables(report: Path) -> None:
    text = report.read_text()
    tables = [part.split("</details>")[0] for part in text.split("<details>")[1:]]
    assert len(tables) == 3
    for table, each in zip(tables, models(), strict=True):
        cells = [cell.replace(MINUS, "-") for cell in re.findall(rf"<td>([{MINUS}\d.]+)", table)]
        wanted = [mean for _, _, _, mean, _ in each.rows()]
        shown = np.array(cells[: len(wanted)], dtype=float).reshape(N_FUTURE, -1).T.ravel()
        np.testing.assert_allclose(shown, wanted, rtol=2e-3)
        assert each.bound is not None
        columns = (each.bound.elbo_per_step, each.bound.kl_per_step, each.bound.mse_per_step)
        np.testing.assert_allclose(np.array(cells[len(wanted) :], dtype=float).reshape(-1, 3).T, columns, rtol=2e-3)


def test_protocol_is_told_in_words_and_completely(tmp_path: Path) -> None:
    protocol = {
        "n_samples": 100,
        "n_clips": 256,
        "statistics": "batch",
        "data_root": None,
        "exact": True,
        "temperature": 0.5,
        "frames_kept": [1, 2],
        "ssim": {"window": 7, "data_range": 1},
        "command": "svg-fast evaluate a.safetensors --n-samples 100 && echo 'done'",
    }
    first = replace(evaluation("a"), protocol=protocol)
    second = replace(evaluation("b", 1), protocol=protocol | {"statistics": "running", "command": "true"})
    write_report(tmp_path / "r.html", [first, second], {})
    text = Page(tmp_path / "r.html").text
    words = text[text.index("All models") : text.index("All numbers", text.index("All models"))]
    assert (
        f"{N_PAST} frames of a clip are given and the {N_FUTURE} after them predicted; training clips had {HORIZON} "
        "frames. Samples drawn for each clip: 100. 95 % intervals are 1.96 standard errors over 256 clips."
    ) in words
    listed = "data root none exact yes temperature 0.5 frames kept 1, 2 ssim window: 7, data range: 1"
    assert listed in words
    assert "a BatchNorm uses batch statistics in sampling. b BatchNorm uses running statistics in sampling." in words
    assert words.count("standard errors") == 1
    for each in (first, second):
        assert each.protocol["command"] in words


def test_intervals_that_are_only_known_per_frame_are_called_so(tmp_path: Path, report: Path) -> None:
    words = "where only the intervals of single frames are known it is their mean"
    assert words not in Page(report).text
    known = evaluation("a").curves["ssim"]["best"]
    curves = {"ssim": {"best": replace(known, average_interval=None)}}
    write_report(tmp_path / "r.html", [replace(evaluation("a"), curves=curves)], {})
    assert words in Page(tmp_path / "r.html").text


def test_what_was_not_measured_is_left_out_or_a_dash(tmp_path: Path) -> None:
    bare = Evaluation("bare", 2, 4, {"psnr": {"best": Curve([math.nan, 20.0], [math.nan, 1.0])}})
    write_report(tmp_path / "r.html", [bare], {})
    page = Page(tmp_path / "r.html")
    assert len(page.attributes("img")) == 1
    deterministic = replace(bare, bound=Bound(-1234.5, [-1234.5], [0.01], [0.0]))
    write_report(tmp_path / "det.html", [deterministic], {})
    bound = f"ELBO (nats per frame) {MINUS}1,234.5 KL (nats per frame) 0 MSE of a pixel 0.01000"
    assert bound in Page(tmp_path / "det.html").text
    assert "best sample \N{EN DASH}" in page.text
    assert not any(words in page.text for words in ("bound", "reproduce", "Sets of samples", "green edge"))


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    (tmp_path / "page.png").write_text("<svg onload=alert(1)>")
    for name in ("photo.jpg", "page.png"):
        with pytest.raises(ValueError, match=rf"{name} must be a PNG or a GIF"):
            write_report(tmp_path / "r.html", models(), {"a": tmp_path / name})
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "r.html", models(), {"a": tmp_path / "missing.png"})
    with pytest.raises(ValueError, match="at least one evaluation is needed"):
        write_report(tmp_path / "r.html", [], {})
    with pytest.raises(ValueError, match="as many frames"):
        write_report(tmp_path / "r.html", [evaluation("a"), replace(evaluation("b"), n_past=2)], {})
    assert not (tmp_path / "r.html").exists()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, Path]) -> Path:
    """Names, captions and settings that would like to be markup, or to be wider than the page."""
    attack = f'"><img src="https://example.com/x.png" onerror="alert(2)">{ATTACK}'
    protocol = {
        attack: attack,
        "command": attack,
        "n_samples": ATTACK,
        "n_clips": {ATTACK: [ATTACK]},
        "path": "/x" * 300,
    }
    several = [replace(evaluation(ATTACK), protocol=protocol, scalars={attack: 1.0}), evaluation("w" * 300, 1)]
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    write_report(path, several, {attack: pictures["All frames of three clips"]}, title=f"{ATTACK}{'T' * 300}")
    return path


def test_names_are_text(hostile: Path) -> None:
    page = Page(hostile)
    assert page.text.count(ATTACK) > 8
    assert not page.attributes("script")
    assert all((image["src"] or "").startswith("data:image/") for image in page.attributes("img"))
    assert not any("onerror" in attributes for _, attributes in page.tags)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def test_it_looks_right_in_a_browser(browser: Browser, report: Path) -> None:
    browser.open(report, width=1280)
    images = browser.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(images) == 6
    assert all(complete and natural and shown for complete, natural, shown in images)
    assert all(shown > 400 for _, _, shown in images[:4])
    assert [url.split(":")[0] for url in browser.requests()] == ["file"] + ["data"] * len(images)
    assert browser.complaints() == []

    plot = browser.picture("document.querySelector('.plot')")
    for k in range(3):
        tint = np.array([int(colour(k)[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(plot - tint).max(axis=2) < 12).sum() > 50
    assert (plot > 250).all(axis=2).mean() > 0.7


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out_of_the_page(browser: Browser, report: Path, hostile: Path, width: int) -> None:
    for path in (report, hostile):
        browser.open(path, width)
        browser.evaluate("document.querySelectorAll('summary').forEach(s => s.click())")
        assert browser.evaluate("[...document.querySelectorAll('details')].every(d => d.open && d.offsetHeight > 300)")
        wide, page = browser.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert (page, wide) == (width, width)
        # what is wider can be scrolled to; the rest is inside
        outside = "[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('.scroll')"
        assert browser.evaluate(f"{outside} && e.getBoundingClientRect().right > {width}).map(e => e.tagName)") == []
        strip = browser.evaluate("(e => [e.scrollWidth, e.clientWidth])(document.querySelector('figure .scroll'))")
        assert strip[0] > 2200 > strip[1]
        assert browser.complaints() == []
        assert not any(url.startswith("http") for url in browser.requests())


def test_a_phone_shows_three_models_side_by_side(browser: Browser, report: Path) -> None:
    browser.open(report, width=400)
    table = "(e => [e.scrollWidth, e.clientWidth])(document.querySelector('.results').parentElement)"
    assert browser.evaluate(table) == [368, 368]


def test_the_animation_plays(browser: Browser, report: Path) -> None:
    browser.open(report, width=1280)
    seen = []
    deadline = time.monotonic() + 20
    while BLUE not in seen and time.monotonic() < deadline:
        picture = browser.picture("document.images[5]")
        seen.append(tuple(picture[picture.shape[0] // 2, picture.shape[1] // 2].tolist()))
    assert seen[-1] == BLUE


def test_dark_mode(browser: Browser, report: Path) -> None:
    for scheme, page_is in (("light", lambda x: x > 240), ("dark", lambda x: x < 40)):
        browser.open(report, width=800, scheme=scheme)
        for selector in ("document.querySelector('header')", "document.querySelector('.plot')"):
            shown = browser.picture(selector).mean(axis=2)
            assert page_is(np.median(shown))
            assert np.ptp(shown) > 150  # text and lines stand out


def test_the_policy_is_in_force(browser: Browser, report: Path) -> None:
    """What the page's policy forbids, the browser blocks, before any network is asked."""
    browser.open(report, width=800)
    blocked = browser.evaluate(
        """new Promise(resolve => {
            document.addEventListener('securitypolicyviolation', event => resolve(event.violatedDirective));
            setTimeout(() => resolve('nothing was blocked'), 5000);
            document.body.append(Object.assign(new Image(), {src: 'https://example.com/x.png'}));
        })"""
    )
    assert blocked == "img-src"
