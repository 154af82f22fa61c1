"""Frames at which a technique's boundaries could show as seams."""

from __future__ import annotations

from longgen.frames import pixel_frames
from longgen.plan import Plan
from longgen.sampling.multidiffusion import MultiDiffusion

ANY_TIMESTEP = 500.0  # clips that move from step to step have no fixed boundaries, so one step is representative


def seams(plan: Plan) -> list[int]:
    """The pixel frames, from 1 on, right after a boundary: of a rollout's chunks, or the start or end of a MultiDiffusion clip.

    There are none for clips that move from step to step or are strided, since no boundary stays in place, and none for FIFO queues
    and attention windows, which advance frame by frame.
    """
    edges: set[int] = set()
    if plan.chunk_lat is not None:
        edges.update(range(plan.chunk_lat, plan.frames_lat, plan.chunk_lat))
    sampling, length = plan.sampling, plan.call_geometry.frames_lat
    if isinstance(sampling, MultiDiffusion) and length < plan.frames_lat and sampling.shifts(length) == 1:
        clips = sampling.clips(plan.frames_lat, length, ANY_TIMESTEP, 0)
        for frames, weight in zip(clips.frames, clips.weight, strict=True):
            weighted = frames[weight > 0]
            if weighted[-1] - weighted[0] == len(weighted) - 1:
                edges.update((int(weighted[0]), int(weighted[-1]) + 1))
    first = (pixel_frames(edge, plan.spec.stride_t) for edge in edges if 0 < edge < plan.frames_lat)
    return sorted(frame for frame in first if frame < plan.frames_px)
