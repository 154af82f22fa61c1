"""What may make a video repeat itself, read off its plan: a sink whose times look near again, and noise that a frame sees twice.

Paper: LoL, arXiv 2601.16914: videos fall back to their sink where it stands 132 and 201 latent frames away, in LongLive and
Self-Forcing++.

Legend: d relative time, C temporal frequencies theta_m, T0 latent frames in training.

    R(d) = mean over m of cos(theta_m d): how near a frame d away looks                           [paper: phases that agree again]
    a sink looks near again where R is the largest within T0 of d, and a theta_m that no cycle of was seen in training,
    theta_m T0 < 2 pi, is beyond its trained phases, theta_m (T0 - 1)                                                    [derived]
On Wan's frequencies with T0 = 21 the first such d are 132 and 201. Where techniques scale frequencies, theta_m is the scaled one; a
rollout's are those of its last chunk [derived].
"""

from __future__ import annotations

import math

import numpy as np

from longgen.catalog import name_of
from longgen.frameplan import FramePlan
from longgen.plan import Plan

NAMED = 3  # times that a note names


def notes(plan: Plan) -> list[str]:
    return [*_sink_notes(plan), *_noise_notes(plan)]


def near_again(plan: FramePlan, native_lat: int, frequencies: tuple[float, ...], furthest: int) -> list[int]:
    """The relative times, up to `furthest`, at which a sink looks near again."""
    trained = np.array(frequencies)
    theta = trained if plan.frequency_scale is None else trained * plan.frequency_scale
    d = np.arange(furthest + native_lat + 1)
    nearness = np.cos(np.outer(d, theta)).mean(axis=1)
    unseen = trained * native_lat < 2 * math.pi
    outside = np.outer(d, theta[unseen]) > trained[unseen] * (native_lat - 1) * (1 + 1e-6)
    around = (slice(at - native_lat, at + native_lat + 1) for at in range(native_lat, furthest + 1))
    highest = (at for at, near in enumerate(around, start=native_lat) if nearness[at] == nearness[near].max())
    return [at for at in highest if outside[at].any()]


def _sink_notes(plan: Plan) -> list[str]:
    """Where a sink stays in view while frames after it do not."""
    spec, found = plan.spec, set[int]()
    if not plan.sink_lat or not spec.frequencies:
        return []
    for frame_plan, _, _ in plan.branches().values():
        for pass_ in frame_plan.passes:
            aside = np.flatnonzero(pass_.visible[:, 0] & ~pass_.visible.all(axis=1) & (pass_.weight > 0))
            if aside.size and (furthest := int(pass_.rel[aside, 0].max())) >= spec.native_lat:
                found |= {*near_again(frame_plan, spec.native_lat, spec.frequencies, furthest)}
    distances = [at for at in sorted(found) if plan.past_lat <= at < plan.frames_lat]
    if not distances:
        return []
    times = [f"{spec.stride_t * (at - plan.past_lat) / plan.fps:.0f} s" for at in distances[:NAMED]]
    more = f", and {len(distances) - NAMED} more" if len(distances) > NAMED else ""
    cure = "rebase or flex in the stack" if plan.chunk_lat else "flex in the stack"
    back = ", ".join(map(str, distances[:NAMED]))
    return [f"at {', '.join(times)}{more} the first frames stand {back} latent frames back, where their rotary "
            f"phases nearly agree again and rollouts were seen to fall back to them (LoL, arXiv 2601.16914): {cure} "
            "avoids it"]  # fmt: skip


def _noise_notes(plan: Plan) -> list[str]:
    """Where a view that is limited holds more frames of the same noise than frames of one period can."""
    noise, geometry = plan.noise, plan.call_geometry if plan.clips else plan.geometry
    same = None if noise is None else noise.same_noise(geometry)
    if noise is None or same is None:
        return []
    period, chance, most, length = *same, 0.0, 0
    for view in _views(plan, len(chance)):
        pairs = np.einsum("qi,ij,qj->q", view, chance, view, optimize=True) / 2 - view.sum(axis=1) / 2
        if pairs.max(initial=0.0) > most:
            most, length = float(pairs.max()), int(view[pairs.argmax()].sum())
    ordinary = max(_pairs(chance, start, period) for start in range(len(chance) - period + 1))
    if most <= ordinary + 1e-6:
        return []
    return [f"{name_of(noise)} repeats its noise every {period} latent frames, and a frame sees {length} of them: about {most:.0f} "
            f"pairs with the same noise, which can show as repetition; windows of {period} or fewer see at most "
            f"{ordinary:.0f}"]  # fmt: skip


def _pairs(chance: np.ndarray, start: int, length: int) -> float:
    """How many pairs of `length` frames from `start` on have the same noise, as expected."""
    return float((chance[start : start + length, start : start + length].sum() - length) / 2)


def _views(plan: Plan, frames_lat: int) -> list[np.ndarray]:
    """What frames see, [Q, T] of 0 and 1 each, where it is not all that there is."""
    if plan.in_clips:
        length = plan.call_geometry.frames_lat
        start, frame = np.arange(frames_lat - length + 1)[:, None], np.arange(frames_lat)
        return [((frame >= start) & (frame < start + length)).astype(float)]
    passes = [pass_ for frame_plan, _, _ in plan.branches().values() for pass_ in frame_plan.passes]
    limited = (pass_.visible[np.flatnonzero((pass_.weight > 0) & ~pass_.visible.all(axis=1))] for pass_ in passes)
    return [np.unique(view, axis=0).astype(float) for view in limited if len(view)]
