"""Scores videos by the dimensions of VBench in one streaming pass: memory grows by a few bytes a frame, by 5 kB with features."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from longgen.errors import UsageError
from longgen.metrics.vbench import DIMENSIONS, FEATURES, dimension, efficientnet, musiq, raft
from longgen.metrics.vbench.average import Average
from longgen.metrics.vbench.clips import SECONDS, clip_frames
from longgen.metrics.vbench.consistency import Consistency
from longgen.metrics.vbench.dynamic import DynamicDegree
from longgen.metrics.vbench.recurrence import FeatureRepetition
from longgen.metrics.vbench.smoothness import MotionSmoothness
from longgen.metrics.vbench.weights import PACKAGED, find
from longgen.video import read_frames
from longgen.video_info import facts


@dataclass(frozen=True)
class Scored:
    """Scores of a video of `frames` frames at `fps`.

    values: by the keys of DIMENSIONS, from 0 to 1 like VBench's overall scores; None if the video is too short or too small.
    curves: [F] float64 each by the same keys, nan where undefined; see the file of each dimension for its unit.
    """

    frames: int
    fps: float
    values: dict[str, float | None]
    curves: dict[str, np.ndarray]


class DimensionScorer(Protocol):
    """A dimension of one video. Consumes its frames [F, 3, H, W] float32 from 0 to 255, in order, in batches of any size."""

    curve: list[float]

    def add(self, frames: torch.Tensor) -> None: ...
    def value(self) -> float | None: ...


class VBench:
    """The networks of `dimensions` on `device`, loaded once; by default VBench's, imaging_quality only if pyiqa is installed.

    `weights`: a folder with the files that weights.py lists; VBench's own cache and the Hugging Face cache are searched as well.
    `batch`: frames per call of DINO and CLIP; RAFT takes one pair at a time. Raises MissingError, UsageError, LonggenError.
    """

    def __init__(
        self, device: str = "cpu", weights: Path | None = None, dimensions: Sequence[str] | None = None, batch: int = 8
    ) -> None:
        if batch < 1:
            raise UsageError(f"a batch of {batch} frames", expected="1 or more", hint="leave it out")
        names = [name for name in DIMENSIONS if name not in FEATURES] if dimensions is None else [*dict.fromkeys(dimensions)]
        if dimensions is None and not musiq.installed():
            names.remove("imaging_quality")
        needed = [file for name in names for file in dimension(name).weights]
        if "raft" in needed or find_spec("torchvision"):
            raft.library()  # before any download; a torchvision that fails to import breaks transformers too
        files = find(needed, weights)
        self._device, self._batch = device, batch
        self._scorers: dict[str, Callable[[float], DimensionScorer]] = {}  # factories by key, called with the frame rate
        flow = raft.load(files["raft"], device) if "raft" in files else None
        features = efficientnet.load(files[PACKAGED], device).embed if PACKAGED in files else None
        for name in names:
            if features is not None and name in FEATURES:
                self._scorers[DIMENSIONS[name].key] = _feature_scorer(name, features)
            else:
                self._scorers[DIMENSIONS[name].key] = _scorer(name, files, device, flow)

    def score(self, video: Path | Iterable[np.ndarray], fps: float | None = None) -> Scored:
        """The score of a whole video: a file, with its own frame rate if `fps` is None, or frames [H, W, 3] uint8 and their rate.

        Raises MissingError, UsageError, LonggenError.
        """
        frames, fps = _opened(video, fps)
        scorers = {key: make(fps) for key, make in self._scorers.items()}
        count, shape = 0, None
        with torch.inference_mode():
            while batch := [*itertools.islice(frames, self._batch)]:
                for frame in batch:
                    shape = shape or frame.shape
                    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
                        raise UsageError(f"a frame that is {frame.dtype} {list(frame.shape)}", hint="convert them first",
                                         expected="frames of one size, uint8 [H, W, 3]")  # fmt: skip
                count += len(batch)
                tensor = torch.from_numpy(np.stack(batch)).to(self._device).permute(0, 3, 1, 2).float()
                for scorer in scorers.values():
                    scorer.add(tensor)
        if not count:
            raise UsageError("a video without frames", expected="one frame or more", hint="check the video")
        values = {key: scorer.value() for key, scorer in scorers.items()}
        return Scored(count, fps, values, {key: np.array(scorer.curve, dtype=float) for key, scorer in scorers.items()})

    def score_clips(
        self, video: Path | Iterable[np.ndarray], fps: float | None = None, seconds: int = SECONDS
    ) -> dict[str, float | None]:
        """The mean over the clips of `clip_list`, by `clips.NAME`, with one clip in memory.

        VBench-Long scores long videos this way, but writes each clip to a lossy file first, hence the other name. Its slow-fast
        mixing, which needs DINOv2 and DreamSim and is off without --dev_flag, is not implemented.
        """
        frames, fps = _opened(video, fps)
        length = clip_frames(fps, seconds)
        last: deque[np.ndarray] = deque(maxlen=length)
        scores, count = [], 0
        for frame in frames:
            last.append(frame)
            count += 1
            if count % length == 0:
                scores.append(self.score(last, int(fps)).values)
        if count % length or not count:
            scores.append(self.score(last, int(fps)).values)
        means: dict[str, float | None] = {}
        for key in self._scorers:
            values = [value for score in scores if (value := score[key]) is not None]
            means[f"clips.{key.removeprefix('vbench.')}"] = sum(values) / len(values) if values else None
        return means


def _scorer(name: str, files: dict[str, Path], device: str, flow: raft.Flow | None) -> Callable[[float], DimensionScorer]:
    """Factory of the scorer of the dimension `name`, called with the frame rate of a video."""
    from longgen.metrics.vbench import clip, dino  # not above: see VBench.__init__ on torchvision

    if name == "subject_consistency":
        embed = dino.load(files["dino"], device).embed
        return lambda fps: Consistency(embed)
    if name == "background_consistency":
        embed = clip.load(files["clip-b32"], clip.B32, device).embed
        return lambda fps: Consistency(embed)
    if name == "aesthetic_quality":
        rate = clip.Aesthetic(clip.load(files["clip-l14"], clip.L14, device), clip.load_head(files["laion"], device)).rate
        return lambda fps: Average(rate)
    if name == "imaging_quality":
        rate = musiq.load(files["musiq"], device).rate
        return lambda fps: Average(rate)
    assert flow is not None
    return (lambda fps: DynamicDegree(flow, fps)) if name == "dynamic_degree" else (lambda fps: MotionSmoothness(flow))


def _feature_scorer(name: str, embed: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[float], DimensionScorer]:
    """As `_scorer`, of the two of FEATURES."""
    return (lambda fps: Consistency(embed)) if name == "feature_consistency" else (lambda fps: FeatureRepetition(embed, fps))


def _opened(video: Path | Iterable[np.ndarray], fps: float | None) -> tuple[Iterator[np.ndarray], float]:
    """The frames of `video` one by one, and their rate."""
    if isinstance(video, Path):
        info = facts(video)
        frames, fps = read_frames(video, info.size), info.fps if fps is None else fps
    else:
        frames = iter(video)
    if fps is None or not 0 < fps < float("inf"):
        raise UsageError(f"a video at {fps} frames a second", expected="more than 0", hint="give the rate it is shown at")
    return frames, fps
