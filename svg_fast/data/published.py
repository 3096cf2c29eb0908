"""KTH and BAIR with the sampling rules of the published loaders.

Not copied from them: workers that draw without a seed of their own, and test clips that are drawn anew, with repeats,
in every run. Here every draw is a function of the seed and the index, and test clips are fixed.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from .kth import action_of
from .video_shards import VideoShards


class KTH(VideoShards):
    """KTH actions. A training clip: one of the actions, one of its videos, one of the ranges of frames with a person in
    view, one of the starts at which n_frames fit, each uniform; what is too short is drawn again.

    Arguments and errors are those of `VideoShards`. With sampling="epochs" each range comes once in an epoch.
    """

    kind = "kth"
    default_sampling = "independent"

    def probabilities(self) -> npt.NDArray[np.float64]:
        """1 / (videos of its action * ranges of its video) for every range, given that it is long enough."""
        names = self.shards.sources
        ranges, videos = Counter(names), Counter(action_of(name) for name in set(names))
        weights = np.array([1 / (videos[action_of(name)] * ranges[name]) for name in names])[self._stored]
        return weights / weights.sum()


class BAIR(VideoShards):
    """BAIR robot pushing. A training clip: one of the stored clips, uniform, from its first frame. Test clips: each
    stored clip in their order, from its first frame.

    Arguments and errors are those of `VideoShards`. `shards.array(clip, "action")` are a stored clip's actions.
    """

    kind = "bair"
    default_sampling = "independent"
    default_starts = "first"
    test_in_order = True
