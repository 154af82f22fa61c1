"""Whether a clip of the built-in grammar shows what its prompt says, read off by `longgen.metrics.tiny_reading`."""

from __future__ import annotations

import numpy as np

from longgen.backbones import tiny_grammar
from longgen.metrics import tiny_reading


class Subject:
    """Reads frames one by one and keeps a few numbers of each."""

    def __init__(self, words: tiny_grammar.Words) -> None:
        self._words = words
        self._readings: list[tiny_reading.Reading] = []

    def add(self, frame: np.ndarray) -> None:
        """`frame` [64, 64, 3] uint8."""
        self._readings.append(tiny_reading.read(frame[None]))

    def values(self) -> dict[str, float]:
        """subject_colour, subject_one_object: per cent of the frames. subject_motion: 100 or 0."""
        centre_px = np.concatenate([reading.centre_px for reading in self._readings])
        area_px = np.concatenate([reading.area_px for reading in self._readings])
        whole = tiny_reading.Reading(
            colour=tuple(reading.colour[0] for reading in self._readings),
            background=tuple(reading.background[0] for reading in self._readings),
            objects=tuple(reading.objects[0] for reading in self._readings),
            centre_px=centre_px,
            area_px=area_px,
            motion=tiny_reading.motion_kind(centre_px, area_px),
        )
        scores = tiny_reading.score(whole, self._words)
        return {f"subject_{name}": 100 * scores[name] for name in ("colour", "one_object", "motion")}
