"""What the file of a run shows: the latents that are decoded for it, which of their frames, and an earlier video's own.

New frames are decoded with all latents before them, so that a causal VAE goes on as if nothing were between. With `--continue` the
file begins with the first new frame; with `--join` with the first of the earlier video: decoded with the rest where that is a run,
and else its own frames, at the new video's rate and size. A VAE draws them a little differently: where a file's last frame met the
first decoded one, that was half of a visible join (measured on tiny-causal). So its last frames, `Plan.fade_px` of them, fade into
what the VAE makes of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longgen import checkpoint, naming, past
from longgen.checkpoint import Chunks
from longgen.errors import MissingError
from longgen.pipelines import earlier
from longgen.plan import Plan
from longgen.video import Sound

Decode = Callable[[Tensor | Iterator[Tensor]], Iterator[np.ndarray]]


def stored(plan: Plan, folder: Path, latents: Tensor | Chunks) -> Tensor | Iterator[Tensor]:
    """All latents that are decoded for `plan`, whose own are `latents` in the run's `folder`: [1, C, *, h, w], or one by one.

    Raises MissingError where the run kept nothing of what it began with, and LonggenError where that is damaged.
    """
    inputs, source = folder / naming.INPUTS, plan.conditions.past
    if isinstance(latents, Chunks) and plan.chunk_lat is not None:
        given: list[Tensor] = []
        if plan.given_lat and source is not None and source.latents is not None:
            given = [past.taken(source).latents[:, :, : plan.given_lat]]
        elif plan.given_lat:
            given = [given_latents(plan, inputs)]
        frames = (frame for part in given for frame in part.split(1, dim=2))
        return itertools.chain(frames, latents.frames(plan.frames_lat - plan.given_lat))
    front = None if source is None else earlier.in_front(plan, source)
    if isinstance(latents, Chunks):  # of a chain, whose first clip holds what is given
        before = front.split(1, dim=2) if front is not None and front.shape[2] else ()
        return itertools.chain(before, latents.frames(plan.frames_lat))
    return latents if front is None else torch.cat([front, latents.to(front)], dim=2)


def streams(plan: Plan, names: Sequence[str], tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The latents [1, A, C] of a run's sound by the `names` of its backbone, among the `tensors` of the file `path`.

    Raises LonggenError where they are not there, or not those of `plan`.
    """
    shape = (1, plan.spec.sound_lat(plan.frames_lat), None)
    return {name: checkpoint.check_latents(path, tensors.get(name), shape) for name in names}


def heard(plan: Plan, sound: Sound | None) -> Sound | None:
    """Of the `sound` of all frames of `plan`, that of the new ones, which with `--continue` are those in the file."""
    if sound is None or plan.new_px == plan.frames_px:
        return sound
    return sound._replace(samples=sound.samples[round((plan.frames_px - plan.new_px) / plan.fps * sound.rate) :])


def given_latents(plan: Plan, inputs: Path) -> Tensor:
    """The latents that a rollout encoded of what it began with, as it kept them in the folder `inputs`."""
    path = inputs / past.GIVEN
    if not path.is_file():
        raise MissingError(f"{path} is not there: the latents that the run began with", expected="a run folder as longgen left it",
                           hint="start again with --overwrite")  # fmt: skip
    tensors, _ = checkpoint.load_tensors(path)
    return checkpoint.check_latents(path, tensors.get("latents"), (1, plan.spec.latent_channels, plan.given_lat, None, None))


def _by_shot(plan: Plan, decode: Decode, latents: Tensor | Iterator[Tensor]) -> Iterator[np.ndarray]:
    """The frames of `latents`, where a shot with a picture is decoded by itself, so that nothing before it shines through.

    Its first latent frame then holds one frame, where others hold `stride_t`: the picture, which is shown for as many [derived].
    """
    if not plan.cuts:
        yield from decode(latents)
        return
    frames = iter(latents.split(1, dim=2)) if isinstance(latents, Tensor) else latents
    source, before = plan.conditions.past, 0
    if source is not None and source.latents is not None:
        before = source.shown_lat - plan.given_lat  # frames of the run before, see `stored`
    for begin, end in itertools.pairwise((-before, *plan.cuts, plan.frames_lat)):
        first = next(frames, None)
        if first is None:  # of a run that was stopped
            return
        decoded = decode(itertools.chain([first], itertools.islice(frames, end - begin - 1)))
        if begin > 0:
            opening = next(decoded)
            yield np.concatenate([np.repeat(opening[:1], plan.spec.stride_t - 1, axis=0), opening])
        yield from decoded


def in_file(plan: Plan, decode: Decode, latents: Tensor | Iterator[Tensor]) -> Iterator[np.ndarray]:
    """The frames [F, height, width, 3] uint8 of the file of `plan`, whose `latents` are those of `stored`, some at a time."""
    source, decoded = plan.conditions.past, _by_shot(plan, decode, latents)
    if source is None:
        yield from decoded
        return
    decoded = _last(decoded, plan.decoded_px, plan.written_px - plan.lead_px + plan.fade_px)
    if plan.lead is not None:
        file, fps, fit = plan.lead
        decoded = _faded(past.frames(file, fps, plan.size, fit), decoded, plan.fade_px)
    yield from decoded


def _faded(frames: Iterator[np.ndarray], decoded: Iterator[np.ndarray], fade: int) -> Iterator[np.ndarray]:
    """`frames`, the last `fade` of which go over into the first ones `decoded`, and then the rest of these."""
    tail: list[np.ndarray] = []
    for frame in frames:
        tail.append(frame)
        if len(tail) > fade:
            yield tail.pop(0)
    for batch in decoded:
        for frame in batch[:, None]:
            if tail:
                share = 1 - len(tail) / (fade + 1)
                frame = (tail.pop(0) * (1 - share) + frame * share).round().astype(np.uint8)
            yield frame


def _last(decoded: Iterator[np.ndarray], count: int, wanted: int) -> Iterator[np.ndarray]:
    """The last `wanted` of the `count` frames that are `decoded`; where fewer come, those from the same place on."""
    skipped = count - wanted
    for frames in decoded:
        if skipped < len(frames):
            yield frames[max(0, skipped) :]
        skipped -= len(frames)
