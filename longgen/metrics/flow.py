"""Motion, smoothness and flicker from Dense Inverse Search optical flow (Kroeger et al., 1603.03590).

Legend: h, w of a Picture; p a pixel. Flow is in pixels of the Picture, x then y, from the first picture of a pair to the second.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from longgen.metrics.picture import SIDE, Picture

# Luma levels per pixel, the gradient whose weight is a half. Derived: noise of 4 levels at 64x64 has a sixth (measured).
DETAIL = 3.0
BLUR_PX = SIDE / 77  # smallest structure whose motion counts; noise is finer
FLAT = 1e-4  # share of pixels that must have detail for motion to count fully: an empty picture does not move
CEILING_DB = 60.0  # below the resolution of 8 bits: rounding alone leaves 59 dB
CELLS = 4  # along the shorter side: a flash may be local, while errors of the flow are smaller than a cell and average out


class Flow:
    """The curves `motion`, `smoothness` and `flicker`, and `cells` [2 x CELLS x CELLS] for each pair of frames.

    motion, per cent of the shorter side per second: length of the flow from the previous frame, averaged over pixels with detail,
    weighted by w = e^2 / (e^2 + DETAIL^4) with e the squared gradient of blurred luma. A flat background has no motion of its own,
    and flow fills it with that of passing objects: unweighted, a square crossing a plain picture reads 3 to 12 times too fast. So
    this is the speed of what visibly moves, whatever its size; a still textured background lowers it. Accurate to a tenth for a
    texture (to a sixth for the finest at half a pixel per frame) and to a fifth for a small flat shape, too low where luma hardly
    separates the shape from its background (measured).

    smoothness, dB, for a frame with two neighbours: the peak signal-to-noise ratio of luma between the frame and the mean of its
    neighbours, each moved half of the flow between them; at most CEILING_DB. Steady motion is predictable; jerks and boiling
    textures are not. Pixels from outside the picture are ignored.

    flicker, per cent of the range of luma: mean over CELLS x CELLS or more cells of |signed mean of that error|. Frames
    alternating between two brightnesses read their difference; a steady ramp, a pan and a moving object read about 0. A frame's
    own brightness does not affect the flow, which is between its two neighbours.
    """

    def __init__(self, fps: float) -> None:
        self.motion: list[float] = []
        self.smoothness: list[float] = []
        self.flicker: list[float] = []
        self.cells: list[np.ndarray] = []  # mean flow of CELLS x CELLS cells over CELLS: the sum of squares is their mean square
        self._per_second = 100 * fps / SIDE
        self._search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._previous: list[np.ndarray] = []  # luma of up to two frames

    def add(self, now: Picture) -> None:
        self.motion.append(self._speed(self._previous[-1], now.luma) * self._per_second if self._previous else math.nan)
        self.smoothness.append(math.nan)  # of this frame, until the next one arrives
        self.flicker.append(math.nan)
        if len(self._previous) == 2:
            first, middle = self._previous
            self.smoothness[-2], self.flicker[-2] = self._prediction_error(first, middle, now.luma)
        self._previous = [*self._previous[-1:], now.luma]

    def _speed(self, first: np.ndarray, second: np.ndarray) -> float:
        """Mean speed, weighted by detail, in pixels per frame."""
        flow = self._search.calc(first, second, None)
        self.cells.append(cv2.resize(flow, (CELLS, CELLS), interpolation=cv2.INTER_AREA).ravel() / CELLS)
        blurred = cv2.GaussianBlur(first.astype(np.float32), (0, 0), BLUR_PX)
        across, down = (cv2.Sobel(blurred, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
        energy = np.square(np.square(across) + np.square(down))
        weight = energy / (energy + DETAIL**4)
        return float((weight * cv2.magnitude(flow[..., 0], flow[..., 1])).sum() / (weight.sum() + FLAT * weight.size))

    def _prediction_error(self, first: np.ndarray, middle: np.ndarray, last: np.ndarray) -> tuple[float, float]:
        """Smoothness and flicker of `middle`."""
        height, width = middle.shape
        grid = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=-1)
        flow = self._search.calc(first, last, None)
        flow = cv2.remap(flow, grid - flow / 2, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # at the middle frame
        error, inside = middle.astype(np.float32), np.full(middle.shape, 255, np.uint8)
        for luma, source in ((first, grid - flow / 2), (last, grid + flow / 2)):
            error -= cv2.remap(luma.astype(np.float32), source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE) / 2
            inside &= cv2.inRange(source, (0, 0), (width - 1, height - 1))
        error[inside == 0] = 0
        share = max(float(inside.mean()) / 255, 1 / inside.size)
        mean_square = float(np.square(error).mean()) / share
        smoothness = min(10 * math.log10(255**2 / mean_square), CEILING_DB) if mean_square else CEILING_DB
        cells = cv2.resize(error, (round(CELLS * width / SIDE), round(CELLS * height / SIDE)), interpolation=cv2.INTER_AREA)
        return smoothness, float(100 / 255 * np.abs(cells).mean()) / share
