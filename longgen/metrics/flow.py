"""How fast the picture moves, and what motion does not explain: Dense Inverse Search optical flow (Kroeger et al., 1603.03590).

Legend: h, w of a Picture; p a pixel. Flow is in pixels of the Picture, x then y, from the first picture of a pair to the second.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from longgen.metrics.picture import SIDE, Picture

# Levels of luma a pixel, of an edge or a texture that counts half. Derived: noise of 4 levels at 64x64 has a sixth (measured).
DETAIL = 3.0
BLUR_PX = SIDE / 77  # the least structure that is asked where it moves; noise is finer
FLAT = 1e-4  # share of the pixels that must carry detail for motion to count in full: an empty picture does not move
CEILING_DB = 60.0  # an error that 8 bits cannot show: rounding alone leaves 59 dB
CELLS = 4  # along the shorter side: a flash may be local, an error of the flow is smaller than a cell and averages out


class Flow:
    """The curves `motion`, `smoothness` and `flicker`.

    motion, per cent of the shorter side per second: length of the flow from the frame before, averaged over the pixels that carry
    detail, weighed by w = e^2 / (e^2 + DETAIL^4) with e the squared gradient of blurred luma. A flat ground shows no motion of its
    own, and flow fills it with that of what passes by: unweighed, a square that crosses a plain picture reads 3 to 12 times
    too fast. So it is the speed of what can be seen to move, whatever its size; a still textured ground lowers it. Right to a tenth
    for a texture (to a sixth for the finest at half a pixel a frame) and to a fifth for a small flat shape, too low where luma
    hardly tells the shape from its ground (measured).

    smoothness, dB, for a frame with two neighbours: the peak signal-to-noise ratio of luma between the frame and the mean of its
    neighbours, each moved half of the flow between them; at most CEILING_DB. Steady motion is foretold, jerks and boiling texture
    are not. Pixels that come from outside the picture are left out.

    flicker, per cent of the range of luma: mean over CELLS x CELLS or more cells of |mean of that error, with its sign|. Frames
    that alternate between two brightnesses read their distance; a steady ramp, a pan and a moving object read about 0. A frame's
    own brightness does not disturb the flow, which is that of its two neighbours.
    """

    def __init__(self, fps: float) -> None:
        self.motion: list[float] = []
        self.smoothness: list[float] = []
        self.flicker: list[float] = []
        self._per_second = 100 * fps / SIDE
        self._search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._before: list[np.ndarray] = []  # luma of up to two frames

    def add(self, now: Picture) -> None:
        self.motion.append(self._speed(self._before[-1], now.luma) * self._per_second if self._before else math.nan)
        self.smoothness.append(math.nan)  # of this frame, until its next neighbour is here
        self.flicker.append(math.nan)
        if len(self._before) == 2:
            first, middle = self._before
            self.smoothness[-2], self.flicker[-2] = self._foretold(first, middle, now.luma)
        self._before = [*self._before[-1:], now.luma]

    def _speed(self, first: np.ndarray, second: np.ndarray) -> float:
        """Mean speed of what carries detail, in pixels a frame."""
        flow = self._search.calc(first, second, None)
        blurred = cv2.GaussianBlur(first.astype(np.float32), (0, 0), BLUR_PX)
        across, down = (cv2.Sobel(blurred, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
        energy = np.square(np.square(across) + np.square(down))
        weight = energy / (energy + DETAIL**4)
        return float((weight * cv2.magnitude(flow[..., 0], flow[..., 1])).sum() / (weight.sum() + FLAT * weight.size))

    def _foretold(self, first: np.ndarray, middle: np.ndarray, last: np.ndarray) -> tuple[float, float]:
        """Smoothness and flicker of `middle`."""
        height, width = middle.shape
        grid = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=-1)
        flow = self._search.calc(first, last, None)
        flow = cv2.remap(flow, grid - flow / 2, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # seen from the middle
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
