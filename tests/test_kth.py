"""KTH's list of frames and its files, as clips."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from video_files import Images, moving_frames, write_kth

from svg_fast.data.kth import KthRecipe, action_of, parse_sequences, video_of
from svg_fast.data.recipe import BadSource, LeftOut, RawClip, Recipe
from svg_fast.data.video import square

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "video"
VIDEO = "person01_boxing_d1"


def folder(root: Path, sequences: str, frames: dict[str, Images]) -> KthRecipe:
    (root / "00sequences.txt").write_text(sequences)
    for name, pixels in frames.items():
        write_kth(root / name, pixels)
    return KthRecipe(root)


def clips(recipe: KthRecipe) -> list[RawClip]:
    sources, _ = recipe.sources()
    return list(recipe.clips(sources[0]))


def test_the_real_list() -> None:
    path = REAL / "kth_00sequences.txt"
    if not path.exists():
        pytest.skip("shared/data/video is not here")
    text = path.read_bytes().decode()
    found = parse_sequences(text)
    assert len(found) == 599
    assert sum(len(ranges) for ranges in found.values()) == len(re.findall(r"\d+-\d+", text))
    assert found["person01_boxing_d2"] == [(1, 106), (107, 195), (196, 265), (305, 390)]
    assert found["person21_boxing_d2"] == [(1, 112), (113, 162), (153, 254), (255, 408)]  # they overlap
    assert "person13_handclapping_d3" not in found
    assert {video[:8] for video in found} == {f"person{k:02}" for k in range(1, 26)}


def test_parsing_is_tolerant_of_layout() -> None:
    text = (
        "\ufeffFrames with a person in view, 1-based\r\n----\r\n\r\n"
        "person02_walking_d4\t \tframes\t1-5,  9-9 ,3-7\r\n\r\n"
        "person03_running_d1\t*missing*\r\n  person04_jogging_d2 frames 10-20"
    )
    assert parse_sequences(text) == {"person02_walking_d4": [(1, 5), (9, 9), (3, 7)], "person04_jogging_d2": [(10, 20)]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("person01_boxing_d5 frames 1-2", "line 2 must be 'personPP_action_dS frames 1-95"),
        ("person26_boxing_d1 frames 1-2", "line 2 must be"),
        ("person00_boxing_d1 frames 1-2", "line 2 must be"),
        ("person02_dancing_d1 frames 1-2", "line 2 must be"),
        ("person02_boxing_d1 frames", "line 2 must be"),
        ("person02_boxing_d1 frames 1-2, 3", "line 2 must be"),
        ("person02_boxing_d1 frames 1-2 3-4", "line 2 must be"),
        ("person02_boxing_d1 frames -1-2", "line 2 must be"),
        ("person02_boxing_d1 frames \u0661-\u0662", "line 2 must be"),  # digits, but not ASCII's
        ("a note among the videos", "line 2 must be .* got 'a note among the videos'"),
        ("person01_boxing_d1 frames 1-2", "line 2: person01_boxing_d1 comes a second time"),
        ("person02_boxing_d1 frames 0-2", "line 2: a range must go up and lie in 1-10000, got 0-2"),
        ("person02_boxing_d1 frames 1-2, 9-3", "line 2: a range must go up and lie in 1-10000, got 9-3"),
        ("person02_boxing_d1 frames 1-10001", "line 2: a range must go up and lie in 1-10000, got 1-10001"),
        (f"person02_boxing_d1 frames 1-{'9' * 5000}", "line 2: a range must go up and lie in 1-10000, got 1-999"),
    ],
)
def test_lines_that_are_not_understood(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sequences(f"{VIDEO} frames 1-9\n{line}\n")


@pytest.mark.parametrize("text", ["", "<html>not found</html>", "person03_running_d1 *missing*"])
def test_a_list_without_videos(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no line begins with the name of a video"):
        parse_sequences(text)
    with pytest.raises(ValueError, match=r"00sequences\.txt: no line begins"):
        folder(tmp_path, text, {f"{VIDEO}_uncomp.avi": moving_frames(2)}).sources()


def test_names() -> None:
    assert video_of("handwaving/person25_handwaving_d3_uncomp.avi") == "person25_handwaving_d3"
    assert action_of("person25_handwaving_d3_uncomp.AVI") == "handwaving"
    with pytest.raises(ValueError, match=r"must be called personPP_action_dS_uncomp\.avi, got 'a/b\.avi'"):
        action_of("a/b.avi")


def test_clips_are_the_ranges(tmp_path: Path) -> None:
    """Frame for frame, 1-based with both ends, in the list's order, overlapping or not."""
    frames = moving_frames(20)
    recipe = folder(tmp_path, f"{VIDEO}\tframes\t3-7, 12-20, 1-1, 5-13\r\n", {f"boxing/{VIDEO}_uncomp.avi": frames})
    for clip, (start, end) in zip(clips(recipe), [(3, 7), (12, 20), (1, 1), (5, 13)], strict=True):
        assert (clip.first, clip.note, clip.arrays) == (start - 1, "", {})
        expected = [square(frame, 64) for frame in frames[start - 1 : end]]
        np.testing.assert_array_equal(list(clip.frames), expected)
        assert expected[0].shape == recipe.shape == (64, 64, 1)


def test_ranges_that_the_file_does_not_reach(tmp_path: Path) -> None:
    text = f"{VIDEO} frames 1-5, 8-13, 11-12, 4-9, 30-40\n"
    recipe = folder(tmp_path, text, {f"{VIDEO}_uncomp.avi": moving_frames(10)})
    found = [(clip.first, len(list(clip.frames)), clip.note) for clip in clips(recipe)]
    assert found == [
        (0, 5, ""),
        (7, 3, "frames 8-13: the file ends at 10"),
        (3, 6, "frames 11-12 are missing, frames 30-40 are missing: the file ends at 10"),
    ]
    recipe = folder(tmp_path, f"{VIDEO} frames 11-12, 13-14", {})
    with pytest.raises(BadSource, match="the file ends at 10, before the first frame of every range"):
        clips(recipe)


def test_a_truncated_file_is_left_out_and_not_cut(tmp_path: Path) -> None:
    recipe = folder(tmp_path, f"{VIDEO} frames 1-4", {f"{VIDEO}_uncomp.avi": moving_frames(10)})
    path = tmp_path / f"{VIDEO}_uncomp.avi"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(BadSource):
        clips(recipe)


def test_sources(tmp_path: Path) -> None:
    names = [
        "a/person20_boxing_d1_uncomp.avi",
        "a/person21_boxing_d1_uncomp.AVI",
        "b/person20_boxing_d1_uncomp.avi",
        "b/person13_handclapping_d3_uncomp.avi",
        "b/person25_running_d2_uncomp.avi",
        "b/holiday.avi",
        "b/readme.pdf",
    ]
    text = (
        "".join(f"person{person}_boxing_d1 frames 1-2\n" for person in (20, 21, 22, 23))
        + "person25_running_d2 frames 1-2\nperson13_handclapping_d3 *missing*"
    )
    recipe = folder(tmp_path, text, {})
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    sources, left_out = recipe.sources()
    assert [(source.name, source.split) for source in sources] == [
        (names[0], "train"),
        (names[1], "test"),
        (names[4], "test"),
    ]
    assert sources[0].path == tmp_path / names[0]
    assert sources[0][3:] == (7, (tmp_path / names[0]).stat().st_mtime_ns)
    assert left_out == [
        LeftOut(names[5], "not called personPP_action_dS_uncomp.avi"),
        LeftOut(names[3], "00sequences.txt has no frames of this video"),
        LeftOut(names[2], f"the same video as {names[0]}"),
        LeftOut("00sequences.txt", "2 of the 5 videos in 00sequences.txt are not here"),
    ]


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no KTH videos in"):
        folder(tmp_path, f"{VIDEO} frames 1-2", {}).sources()
    (tmp_path / "00sequences.txt").rename(tmp_path / f"{VIDEO}_uncomp.avi")
    with pytest.raises(FileNotFoundError, match=r"no 00sequences\.txt in"):
        KthRecipe(tmp_path).sources()
    with pytest.raises(FileNotFoundError):
        KthRecipe(tmp_path / "missing").sources()


def test_the_list_may_lie_elsewhere_and_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_kth(tmp_path / "videos" / f"{VIDEO}_uncomp.avi", moving_frames(3))
    (tmp_path / "list.txt").write_text(f"{VIDEO} frames 1-2")
    recipe = KthRecipe(tmp_path / "videos", sequences=tmp_path / "list.txt")
    assert [len(list(clip.frames)) for clip in clips(recipe)] == [2]
    (tmp_path / "list.txt").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ValueError, match=r"list\.txt must be a list of frames in at most 1048576 bytes"):
        KthRecipe(tmp_path / "videos", sequences=tmp_path / "list.txt").sources()


def test_as_a_recipe(tmp_path: Path) -> None:
    """It travels to worker processes, and its settings to JSON; another list is another setting."""
    recipe: Recipe = folder(tmp_path, f"{VIDEO} frames 1-2", {f"{VIDEO}_uncomp.avi": moving_frames(4)})
    (source,), _ = recipe.sources()
    there = pickle.loads(pickle.dumps(recipe))
    (tmp_path / "00sequences.txt").unlink()  # a worker needs it no more
    assert [len(list(clip.frames)) for clip in there.clips(source)] == [2]
    assert recipe.kind == "kth"
    other = folder(tmp_path, f"{VIDEO} frames 1-3", {})
    assert json.loads(json.dumps(recipe.settings)) == recipe.settings != other.settings


@pytest.mark.parametrize("codec", ["mpeg4", "rawvideo"])
def test_real_clips(tmp_path: Path, codec: str) -> None:
    """KTH's own frames, coded as KTH's files are."""
    if not (REAL / "bair_kth_clips.npz").exists():
        pytest.skip("shared/data/video is not here")
    with np.load(REAL / "bair_kth_clips.npz") as real:
        name = next(name for name in real.files if "kth" in name.lower())
        grey = real[name][..., :1]
    large = np.stack([square(frame, 160)[20:140] for frame in grey])
    recipe = folder(tmp_path, f"{VIDEO} frames 11-39", {})
    write_kth(tmp_path / f"{VIDEO}_uncomp.avi", large, codec)
    (clip,) = clips(recipe)
    found, expected = np.stack(list(clip.frames)).astype(float), np.stack([square(frame, 64) for frame in large])
    errors = [np.abs(found - expected[10 + shift : 39 + shift]).mean() for shift in (-1, 0, 1)]
    assert errors[1] < min(errors[0], errors[2])
    assert codec == "mpeg4" or errors[1] == 0
