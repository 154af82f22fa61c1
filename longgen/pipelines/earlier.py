"""What a new video takes of an earlier one: latents of a run as they are, or the last frames of a video file, encoded once.

Legend: C channels, m latent frames that are given, p that are in front of these.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from longgen import past as pasts
from longgen.frames import pixel_frames
from longgen.past import Past
from longgen.pipelines.given import Given
from longgen.plan import Plan

Encode = Callable[[np.ndarray, torch.Generator], Tensor]


def given(plan: Plan, past: Past, generator: torch.Generator, encode: Encode) -> Given:
    """The `plan.given_lat` latent frames that `plan` begins with. encode: `PipelineBackbone.encoded_frames`.

    A rollout gets all of a run from its first frame on, whose generator goes on where `generator` has the run's own seed. Frames
    that are denoised together get its last ones.
    """
    from PIL import Image

    if past.latents is not None:
        taken = pasts.taken(past)
        shown = taken.latents[:, :, : past.shown_lat]
        if plan.spec.causal:
            goes_on = past.seed == generator.initial_seed()
            return Given(taken.latents[:, :, : plan.given_lat], generator=taken.generator if goes_on else None,
                         carried=(*taken.carried,) if goes_on else ())  # fmt: skip
        first = shown.shape[2] - plan.given_lat
        return Given(shown[:, :, first:], before=shown[:, :, :first])
    count = pixel_frames(plan.given_lat, plan.spec.stride_t)
    frames = np.concatenate([*pasts.frames(past, plan.fps, plan.size, plan.conditions.fit, count)])
    return Given(encode(frames, generator), Image.fromarray(frames[0]))


def in_front(plan: Plan, past: Past) -> Tensor | None:
    """The latents [1, C, p, h, w] of a run before those that `plan` is given: only the decoder sees them."""
    if past.latents is None or plan.spec.causal:
        return None
    return pasts.taken(past).latents[:, :, : past.shown_lat - plan.given_lat]
