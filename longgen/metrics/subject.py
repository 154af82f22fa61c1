"""Prompt adherence for the built-in grammar, measured by `longgen.backbones.tiny.measure`."""

from __future__ import annotations

import numpy as np

from longgen.backbones.tiny import grammar, measure


class Subject:
    """Measures frames one by one."""

    def __init__(self, words: grammar.Words) -> None:
        self._words = words
        self._readings: list[measure.Reading] = []

    def add(self, frame: np.ndarray) -> None:
        """`frame` [64, 64, 3] uint8."""
        self._readings.append(measure.read(frame[None]))

    def values(self) -> dict[str, float]:
        """subject_colour, subject_one_object: per cent of frames. subject_motion: 100 or 0."""
        centre_px = np.concatenate([reading.centre_px for reading in self._readings])
        area_px = np.concatenate([reading.area_px for reading in self._readings])
        whole = measure.Reading(
            colour=tuple(reading.colour[0] for reading in self._readings),
            background=tuple(reading.background[0] for reading in self._readings),
            objects=tuple(reading.objects[0] for reading in self._readings),
            centre_px=centre_px,
            area_px=area_px,
            motion=measure.motion_kind(centre_px, area_px),
        )
        scores = measure.score(whole, self._words)
        return {f"subject_{name}": 100 * scores[name] for name in ("colour", "one_object", "motion")}
