"""Where the edges of a technique's own lie in the video: the frames at which a seam would show."""

from __future__ import annotations

from longgen.frames import pixel_frames
from longgen.plan import Plan
from longgen.sampling.multidiffusion import MultiDiffusion

ANY_TIMESTEP = 500.0  # where clips move from step to step there are no edges, so one step speaks for all


def seams(plan: Plan) -> list[int]:
    """The pixel frames, from 1 on, that begin after an edge: of a rollout's chunks, or where a clip of co-denoising begins or ends.

    None for clips that move from step to step, or take every so many-th frame: they leave no edge that stays in its place. None
    for the queue and for windows of attention either, which go from frame to frame.
    """
    edges: set[int] = set()
    if plan.chunk_lat is not None:
        edges.update(range(plan.chunk_lat, plan.frames_lat, plan.chunk_lat))
    sampling, length = plan.sampling, plan.call_geometry.frames_lat
    if isinstance(sampling, MultiDiffusion) and length < plan.frames_lat and sampling.shifts(length) == 1:
        clips = sampling.clips(plan.frames_lat, length, ANY_TIMESTEP, 0)
        for frames, weight in zip(clips.frames, clips.weight, strict=True):
            kept = frames[weight > 0]
            if kept[-1] - kept[0] == len(kept) - 1:
                edges.update((int(kept[0]), int(kept[-1]) + 1))
    first = (pixel_frames(edge, plan.spec.stride_t) for edge in edges if 0 < edge < plan.frames_lat)
    return sorted(frame for frame in first if frame < plan.frames_px)
