"""Repetition: whether a video loops with a fixed period, found by autocorrelation of descriptors.

Legend: F frames, D numbers of a descriptor.
"""

from __future__ import annotations

import cv2
import numpy as np

from longgen.metrics.picture import Picture

LEAST_S = 2.0  # shorter periods are steps, waves and beats; the shortest clips in use, 16 frames at 8 fps, are this long
MOST = 2 / 3  # of the video: the longest lag tried, so that a third of the frames have a counterpart
FLOOR = 0.25  # squared Lab units: the error of a codec in cells of this size is half a unit
SHALLOW = 0.01  # a shallower dip is rounding
AS_GOOD = 0.95  # a loop recurs at every multiple of its period: the shortest lag that is nearly as strong is the period
LIGHT_CELLS, COLOUR_CELLS = 16, 8  # per side


class Repetition:
    """Stores 384 numbers per frame: L* in 16x16 cells, a* and b* in 8x8, minus their means over the frame.

    Subtracting the means makes loops detectable in spite of colour drift.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._rows: list[np.ndarray] = []

    def add(self, now: Picture) -> None:
        light = cv2.resize(now.lab[..., 0], (LIGHT_CELLS, LIGHT_CELLS), interpolation=cv2.INTER_AREA)
        colour = cv2.resize(now.lab[..., 1:], (COLOUR_CELLS, COLOUR_CELLS), interpolation=cv2.INTER_AREA)
        colour = (colour - colour.mean(axis=(0, 1))) * (LIGHT_CELLS / COLOUR_CELLS)  # a colour cell covers four of lightness
        self._rows.append(np.concatenate([(light - light.mean()).ravel(), colour.ravel()]) / LIGHT_CELLS)

    def descriptors(self) -> np.ndarray:
        """[F, 384] float32, in Lab units: the distance of two rows is the root of the mean squared distance of their cells."""
        return np.array(self._rows)

    def result(self) -> tuple[float, float | None] | None:
        """As `recurrence`, of the descriptors."""
        return recurrence(self.descriptors(), self._fps, FLOOR)


def recurrence(rows: np.ndarray, fps: float, floor: float) -> tuple[float, float | None] | None:
    """Strength of the strongest recurrence of `rows` [F, D] in per cent, and its lag in seconds, or None if nothing recurs.

    d(lag) is the mean squared distance of rows that are `lag` apart, and `floor` what of it is error. Without recurrence it rises
    and levels off; a dip means that the video recurs. The strength is the depth of that dip, 1 - d(lag) / baseline, where the
    baseline is the lower of the maxima of d before and after it: 100 is the same again, 0 no more similar than others, and up to
    20 may be chance. Since d is squared, a picture that recurs up to three tenths of its change scores 91.
    None if the video is too short: there is no lag from LEAST_S to MOST of it.
    """
    least, most = max(round(LEAST_S * fps), 1), int(MOST * len(rows))
    if most <= least:
        return None
    distance = squared_distance(rows)[: most + 1] + floor
    depth = 1 - distance / np.minimum(np.maximum.accumulate(distance), np.maximum.accumulate(distance[::-1])[::-1])
    dips = [lag for lag in range(least, most) if depth[lag] > SHALLOW and depth[lag] == depth[lag - 1 : lag + 2].max()]
    if not dips:
        return 0.0, None
    strongest = depth[dips].max()
    lag = next(lag for lag in dips if depth[lag] >= AS_GOOD * strongest)
    return float(100 * strongest), lag / fps


def squared_distance(rows: np.ndarray) -> np.ndarray:
    """The mean of |rows[i] - rows[i + lag]|^2 over i, for each lag from 0 to F - 1. `rows` [F, D].

    |a - b|^2 = |a|^2 + |b|^2 - 2 ab, with the products of all lags from one autocorrelation, a few columns at a time: F log F.
    """
    count = len(rows)
    products = np.zeros(count)
    for columns in np.array_split(rows, max(rows.shape[1] // 32, 1), axis=1):
        spectrum = np.fft.rfft(columns.astype(float), 2 * count, axis=0)
        products += np.fft.irfft(np.square(np.abs(spectrum)).sum(axis=1), 2 * count)[:count]
    sums = np.concatenate([[0.0], np.cumsum(np.einsum("fd,fd->f", rows, rows, dtype=float))])
    lags = np.arange(count)
    return np.maximum((sums[count - lags] + sums[-1] - sums[lags] - 2 * products) / (count - lags), 0)
