"""Files shaped like BAIR robot pushing, written by the `tfrecord` package, which shares no code with the reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tfrecord import TFRecordWriter

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "video" / "bair_kth_clips.npz"

Features = dict[str, tuple[Any, str]]  # name -> value and "byte", "float" or "int"


class BairClip(NamedTuple):
    """What one record holds: frames (T, 64, 64, 3) uint8, action (T, 4) and position (T, 3) float32."""

    frames: npt.NDArray[np.uint8]
    action: npt.NDArray[np.float32]
    position: npt.NDArray[np.float32]

    def features(self) -> Features:
        """Named as in the published files, with a second camera that shows the negative."""
        features: Features = {}
        for i, frame in enumerate(self.frames):
            features[f"{i}/image_main/encoded"] = (~frame).tobytes(), "byte"
            features[f"{i}/image_aux1/encoded"] = frame.tobytes(), "byte"
            features[f"{i}/action"] = self.action[i].tolist(), "float"
            features[f"{i}/endeffector_pos"] = self.position[i].tolist(), "float"
        return features


def random_clips(n_clips: int, n_frames: int = 3, seed: int = 0) -> list[BairClip]:
    rng = np.random.default_rng(seed)
    return [_clip(rng.integers(0, 256, (n_frames, 64, 64, 3), dtype=np.uint8), rng) for _ in range(n_clips)]


def real_clips() -> list[BairClip]:
    """Ten clips of 30 real frames, with random actions; FileNotFoundError where REAL is absent."""
    rng = np.random.default_rng(0)
    with np.load(REAL) as clips:
        return [_clip(clips[name], rng) for name in sorted(clips) if name.startswith("bair_")]


def _clip(frames: npt.NDArray[np.uint8], rng: np.random.Generator) -> BairClip:
    n_frames = len(frames)
    return BairClip(frames, *(rng.standard_normal((n_frames, width)).astype(np.float32) for width in (4, 3)))


def write_records(path: Path, records: Sequence[Features]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = TFRecordWriter(str(path))
    for features in records:
        writer.write(features)
    writer.close()


def write_clips(path: Path, clips: Sequence[BairClip]) -> None:
    write_records(path, [clip.features() for clip in clips])


def write_bair(root: Path, n_train: int = 2, n_test: int = 1, n_clips: int = 2, n_frames: int = 3) -> list[str]:
    """root/softmotion30_44k with that many files of clips that all differ; returns the files' names below root."""
    names = [f"train/traj_{i}.tfrecords" for i in range(n_train)] + [f"test/traj_{i}.tfrecords" for i in range(n_test)]
    names = sorted(f"softmotion30_44k/{name}" for name in names)
    for seed, name in enumerate(names):
        write_clips(root / name, random_clips(n_clips, n_frames, seed))
    return names
