"""VRPR: quantized relative positions in three tiers, coarser with distance, so that none leaves the trained range.

Paper: VRPR of FreeLOC, arXiv 2603.25209 (CVPR 2026); code: GitHub Westlake-AGI-Lab/FreeLOC.

Legend: T latent frames, T0 of them in training, i query frame, j key frame, D = i - j >= 0; phi(j, i) = -phi(i, j).

    near   0  <= D < W1   phi = D
    middle W1 <= D < W2   phi = D / G1 + c1       c1 = W1 (1 - 1 / G1)
    far    W2 <= D        phi = D / G2 + c2       c2 = W1 + (W2 - W1) / G1 - W2 / G2
    phi <- min(phi, T0 - 1)                                            `variant = "continuous"` [derived: the tiers join]
`variant = "code"` [code]: floors on the absolute frame, so that phi depends on the phase of i and j too
    middle floor(i / G1) - floor(j / G1) + c1             c1 = W1 - ceil(W1 / G1)
    far    min(floor(i / G2) + c2, T0 - 1) - floor(j / G2)  c2 = W1 + ceil((W2 - W1) / G1) - floor(W2 / G2)
`variant = "paper"`: the relative position itself is floored
    middle floor(D / G1) + c1                             c1 = W1 - floor(W1 / G1) [2nd]
    far    min(floor(D / G2) + c2, T0 - 1)                c2 = c1 + floor(W2 / G1) - floor(W2 / G2) [derived: joins as above]

W1, W2, G1, G2 [code]: 12, 20, 2, 8 for T0 = 21, T = 41 and 10, 14, 2, 8 for T0 = 21, T = 81. Elsewhere [derived]
T0 // 2, round(2 T0 / 3), 2 and the smallest G2 with phi(T - 1) <= T0 - 1. A given value replaces that constant only.
Refused: constants whose continuous phi(T - 1) reaches T0, so that the minimum cuts by less than one position, which is what
the published constants need at T = 81 (20.25); and tables that leave the range or are not monotonic over the frames.

Differs from the reference: tiers are cut at frames, so each pair is in exactly one (the code's edges, in tokens rounded
to 128, leave 2.2% of pairs in none at T = 81); 20 is T0 - 1; the code's c2, W2 - floor(W2 / G2) - floor((W2 - W1) / G1),
joins the tiers at G1 = 2 only, where it equals the c2 above.

Neutral: clips of at most W1 frames, and of at most T0 frames with the constants left out, where nothing is out of range.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry
from longgen.technique import LONGEST, FrameTechnique

PUBLISHED = {(21, 41): (12, 20, 2, 8), (21, 81): (10, 14, 2, 8)}  # (T0, T): W1, W2, G1, G2


class Vrpr(FrameTechnique):
    slot: ClassVar[str] = "positions"
    paper: ClassVar[str] = "VRPR of FreeLOC, arXiv 2603.25209"
    exclusive: ClassVar[tuple[str, ...]] = ("the relative times",)
    requires: ClassVar[tuple[str, ...]] = ("relative-positions", "whole-clip")

    variant: Literal["continuous", "code", "paper"] = "continuous"
    w1: int | None = Field(None, ge=1, le=LONGEST)
    w2: int | None = Field(None, ge=1, le=LONGEST)
    g1: int | None = Field(None, ge=1, le=LONGEST)
    g2: int | None = Field(None, ge=1, le=LONGEST)

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        if geometry.ratio == 1 and (self.w1, self.w2, self.g1, self.g2) == (None, None, None, None):
            return plan
        return plan.at(self.times(geometry))

    def constants(self, geometry: Geometry) -> tuple[int, int, int, int]:
        """W1, W2, G1 and G2 for `geometry`. Raises UsageError where they are out of order or leave the trained range."""
        native, last = geometry.native_lat, geometry.frames_lat - 1
        derived = (max(1, native // 2), round(2 * native / 3), 2, None)
        default = PUBLISHED.get((native, geometry.frames_lat), derived)
        w1, w2, g1 = self.w1 or default[0], self.w2 or default[1], self.g1 or default[2]
        if w1 > w2:
            raise UsageError(f"vrpr.w1 = {w1} is above vrpr.w2 = {w2}: the tiers would overlap", expected="1 <= w1 <= w2",
                             hint=f"--set vrpr.w1={w2}, or a larger vrpr.w2")  # fmt: skip
        room = g1 * (native - 1 - w1) - (w2 - w1)  # what the near and middle tiers leave to the far tier, times G1
        g2 = self.g2 or default[3] or max(1, -(-(last - w2) * g1 // room) if room > 0 else 1)
        near, middle, far = min(last, w1), max(0, min(last, w2) - w1), max(0, last - w2)
        if middle * g2 + far * g1 >= (native - near) * g1 * g2:  # phi(T - 1) >= T0, in integers
            largest = near + middle / g1 + far / g2
            if room + g1 > 0:
                fits = far * g1 // (room + g1) + 1
                expected, hint = f"g2 of {fits} or more", f"--set vrpr.g2={fits}, or leave the constants out"
            else:
                expected = f"w1 + (w2 - w1) / g1 below {native}; no g2 helps"
                hint = "lower vrpr.w1 or vrpr.w2, raise vrpr.g1, or leave them out"
            raise UsageError(f"vrpr.g2 = {g2} (w1 = {w1}, w2 = {w2}, g1 = {g1}) maps the frame distance {last} to {largest:.4g}, "
                             f"but the backbone was trained up to {native - 1}", expected=expected, hint=hint)  # fmt: skip
        return w1, w2, g1, g2

    def times(self, geometry: Geometry) -> np.ndarray:
        """phi [T, T]: row i holds the relative times at which query frame i sees the frames."""
        w1, w2, g1, g2 = self.constants(geometry)
        most = geometry.native_lat - 1
        i, j = np.indices((geometry.frames_lat, geometry.frames_lat))
        distance = np.maximum(i - j, 0)
        if self.variant == "continuous":
            middle = distance / g1 + w1 * (1 - 1 / g1)
            far = distance / g2 + w1 + (w2 - w1) / g1 - w2 / g2
        elif self.variant == "code":
            middle = i // g1 - j // g1 + w1 - math.ceil(w1 / g1)
            far = np.minimum(i // g2 + w1 + math.ceil((w2 - w1) / g1) - w2 // g2, most) - j // g2
        else:
            middle = distance // g1 + w1 - w1 // g1
            far = distance // g2 + w1 - w1 // g1 + w2 // g1 - w2 // g2
        if self.variant != "code":  # which clips the query frame instead
            middle, far = np.minimum(middle, most), np.minimum(far, most)
        half = np.where(i < j, 0, np.where(distance < w1, distance, np.where(distance < w2, middle, far))).astype(np.float64)
        times = half - half.T
        if np.abs(times).max() > most or (np.diff(times, axis=1) > 0).any():
            raise UsageError(f"vrpr.variant = {self.variant} rounds frames out of the trained range or out of order with "
                             f"w1 = {w1}, w2 = {w2}, g1 = {g1}, g2 = {g2}", expected="constants whose floors keep both",
                             hint="--set vrpr.variant=continuous, or a smaller vrpr.g1")  # fmt: skip
        return times
