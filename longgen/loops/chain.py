"""The chain's loop: clip after clip, each a run of the pipeline that begins with the last frames of the one before.

Equations, constants and the layout of clips: `longgen.sampling.chain`.

Legend: C channels, L latent frames of a clip, m of them carried over, S steps.

Memory is that of one clip, and of the last frames of the video so far. A state is that of the clip under way, or what a finished
clip added; `done` counts the steps of all clips, so that a multiple of S is the end of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longgen.conditions import Conditions
from longgen.loops import OnStep, State
from longgen.loops.denoiser import Denoiser
from longgen.loops.direct import ModelCall, run_pipeline
from longgen.loops.prompt_schedule import TextPerFrame, with_text
from longgen.pipelines.given import Given
from longgen.plan import Plan
from longgen.sampling.chain import SEED_STRIDE, Chain, Clip

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST_STD = 1e-6  # of a channel that is the same everywhere


class Begun(NamedTuple):
    """What the first clip leaves to those after it: its first latent frame [1, C, 1, h, w], which is its picture's where it had
    one, that picture, and the mean and deviation of its channels, [1, C, 1, 1, 1] each.
    """

    reference: Tensor
    picture: Image | None
    mean: Tensor
    std: Tensor


def chain(denoiser: Denoiser, noise: Tensor, generator: torch.Generator, on_step: OnStep, resume: State | None) -> Iterator[Tensor]:
    """Yields what each clip adds, [1, C, some frames, h, w]; those that an interrupted run had finished come first.

    noise: of no frame; every clip draws its own, the first by `generator`, as direct sampling does.
    """
    plan, technique = denoiser.plan, denoiser.plan.sampling
    assert isinstance(technique, Chain)
    seed, done = generator.initial_seed(), 0 if resume is None else resume.done
    carried = max(clip.carried for clip in plan.clips)
    tail, begun = torch.empty(0), None
    for number, clip in enumerate(plan.clips):
        if number:
            generator = torch.Generator().manual_seed((seed + SEED_STRIDE * number) % 2**63)
        part = plan.of_clip(clip)
        if clip.begins and clip.start:  # with a picture of its own
            part = replace(part, conditions=_picture_at(plan, clip))
            given = denoiser.backbone.given(part, generator)
        elif clip.begins:
            given = denoiser.given
        else:
            assert begun is not None
            parts = [begun.reference.to(tail)] * clip.reference + [tail[:, :, -clip.carried :]]
            given = Given(torch.cat(parts, dim=2), begun.picture if clip.reference else None)
        if given is not None and technique.zero_padded:
            given = replace(given, zero_padded=True)
        if resume is not None and (number + 1) * plan.steps <= done:
            added = resume.clips[number].to(denoiser.backbone.device)
        else:
            under_way = resume if resume is not None and done // plan.steps == number and done % plan.steps else None
            added = _sample_clip(denoiser, part, clip, given, generator, number * plan.steps, on_step, under_way)
            if begun is not None and not clip.begins and technique.colour:
                added = matched(added, begun.mean, begun.std, technique.colour)
            added = added[:, :, : clip.new]
            on_step(State((number + 1) * plan.steps, added, {}, generator.get_state(), x0=added.clone))
        if clip.begins:
            begun = _begun(denoiser, added, given, technique.reference)
        tail = torch.cat([added[:, :, :0] if clip.begins else tail, added], dim=2)
        tail = tail[:, :, -carried:].clone()  # a view would keep the clip
        yield added


def _begun(denoiser: Denoiser, added: Tensor, given: Given | None, reference: bool) -> Begun:
    """What a clip that begins the video, or a shot, leaves. added: its frames."""
    picture = None if given is None else given.image
    first = added[:, :, :1]
    if reference and picture is not None:  # some models sample it too, and it is then not quite the picture
        first = denoiser.backbone.encoded_frames(np.asarray(picture)[None], torch.Generator().manual_seed(0))
    return Begun(first, picture, *statistics(added))


def _picture_at(plan: Plan, clip: Clip) -> Conditions:
    """The picture of the shot that begins with `clip`."""
    assert plan.schedule is not None
    pictures = [shot.image for shot in plan.schedule.shots[1:] if shot.image is not None]
    return Conditions(image=pictures[plan.cuts.index(clip.start)], fit=plan.conditions.fit)


def _sample_clip(
    denoiser: Denoiser, part: Plan, clip: Clip, given: Given | None, generator: torch.Generator, before: int, on_step: OnStep,
    resume: State | None,
) -> Tensor:  # fmt: skip
    """The new frames of `clip`, [1, C, L - those that it is given, h, w]. part: its plan. before: the steps of earlier clips."""
    shots = part.schedule.shots if part.schedule is not None else ()
    prompt, of_clip = (shots[0].prompt if shots else denoiser.prompt), part
    if len(shots) == 1:  # one text, as without a schedule
        of_clip = replace(part, schedule=None)
    own = Denoiser(denoiser.backbone, of_clip, prompt, given)
    model_call: ModelCall | None = None
    if of_clip.shares is not None and part.spec.joint_text:
        model_call = _OneText(own.text(of_clip.shares[:, clip.given :].mean(axis=1)))
        own = Denoiser(denoiser.backbone, replace(part, schedule=None), prompt, given)
    elif of_clip.shares is not None:
        model_call = TextPerFrame(own.texts, of_clip.shares, denoiser.backbone.step_state)

    def after_step(state: State) -> None:
        if state.done < part.steps:  # the last one's state is the clip itself
            on_step(state._replace(done=before + state.done))

    if resume is not None:
        resume = resume._replace(done=resume.done - before)
    latents = run_pipeline(own, own.initial_noise(generator), generator, after_step, resume, model_call)
    return latents[:, :, clip.given :]


class _OneText:
    """Model calls with one text for all frames, for models that take no other."""

    def __init__(self, text: dict[str, Tensor]) -> None:
        self.text = text

    def __call__(self, transformer: Any, call: Callable[..., Any], arguments: dict[str, Any], branch: int) -> Any:
        return call(**arguments | with_text(arguments, self.text, branch))


def statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, C, 1, 1, 1] of each channel of latents [1, C, some frames, h, w]."""
    std, mean = torch.std_mean(latents.float(), dim=(2, 3, 4), keepdim=True)
    return mean, std


def matched(latents: Tensor, mean: Tensor, std: Tensor, strength: float) -> Tensor:
    """`latents` with the `mean` and `std` of another clip, by `strength` from 0 to 1. Adaptive instance normalisation."""
    own_mean, own_std = statistics(latents)
    normalised = (latents.float() - own_mean) / own_std.clamp(min=LEAST_STD) * std + mean
    return (latents + strength * (normalised - latents)).to(latents)
