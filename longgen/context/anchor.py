"""Anchor-based attention: keys and values of a path's first clip are blended into those of the other clips (cross-clip KV).

Paper: GLC-Diffusion, arXiv 2501.05484 (Anchor-Based Attention Mechanism); no code is released.

    K = (1 - w) K_own + w K_anchor,  V alike, in the self-attention of every clip but the path's first       [paper: the form]

Constants: w = 0.1. The paper writes K = lambda K_own + (1 - lambda) K_anchor with lambda = 0.1, and its prose says that a lower
lambda puts more weight on the current frame, the opposite. `weight = 0.1` follows the prose [derived]; the
equation's reading is `weight = 0.9`.

Keys are blended before rotation, both clips having the same positions. Text inside self-attention is unchanged [derived].

Caveats: keys and values of one clip are stored for every layer during a step. Where the model sees the whole video at once
there is no other clip, and this is the identity.

Neutral: weight = 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from longgen.frameplan import FramePlan, Geometry
from longgen.technique import FrameTechnique


class Anchor(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "GLC-Diffusion, arXiv 2501.05484"
    exclusive: ClassVar[tuple[str, ...]] = ("the anchor of clips",)
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    weight: float = Field(0.1, ge=0, le=1)

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        return replace(plan, anchor=self.weight) if geometry.in_clips and self.weight else plan
