"""What a plan starts from: whether its backbone can, how many latent frames are given, and what is taken of an earlier video.

lat counts latent frames, px pixel frames.
"""

from __future__ import annotations

from longgen import frames, pictures
from longgen.backbones.registry import SPECS
from longgen.backbones.spec import CAPABILITIES, FIRST_FRAME, LAST_FRAME, BackboneSpec
from longgen.conditions import Conditions
from longgen.errors import UsageError
from longgen.past import Past
from longgen.plan import Plan
from longgen.preset import Sample


def check(spec: BackboneSpec, conditions: Conditions, sample: Sample) -> None:
    """Raises UsageError where `spec` cannot start from `conditions`, or not without a picture."""
    conditions.check()
    needs = {"--image": FIRST_FRAME if conditions.image else None, "--last-image": LAST_FRAME if conditions.last_image else None}
    for option, need in needs.items():
        if need is not None and need not in spec.capabilities:
            able = ", ".join(known.name for known in SPECS.values() if need in known.capabilities)
            raise UsageError(f"{option}: {spec.name} cannot take {CAPABILITIES[need]}", expected=f"one of {able}",
                             hint=f"choose one of these with --backbone, or leave {option} out")  # fmt: skip
    if conditions.past is not None and not spec.continues:
        able = ", ".join(known.name for known in SPECS.values() if known.continues)
        raise UsageError(f"--continue: {spec.name} is made to start from text alone", expected=f"one of {able}",
                         hint="choose one of these with --backbone, or leave --continue out")  # fmt: skip
    if conditions.past is not None and conditions.past.latent_shape is not None:
        _check_latents(spec, conditions.past, sample.size or spec.size)
    if spec.last_picture_needed and conditions.last_image is None:
        raise UsageError(f"{spec.name} starts from a first and a last picture, and no last one is given",
                         expected="--image FILE and --last-image FILE",
                         hint="give both, or choose an image-to-video --backbone")  # fmt: skip
    if spec.picture_needed and not conditions:
        raise UsageError(f"{spec.name} starts from a picture, and none is given", expected="--image FILE, or --continue VIDEO",
                         hint="give one, or choose a text-to-video --backbone")  # fmt: skip


def _check_latents(spec: BackboneSpec, past: Past, size: tuple[int, int]) -> None:
    """Raises UsageError where the latents of a run are not such as `spec` makes at `size`."""
    made_by = SPECS.get(past.backbone or "")
    able = [known.name for known in SPECS.values() if known.continues and made_by and known.latent_space == made_by.latent_space]
    if (
        past.latent_shape is None
        or past.latent_shape[0] != spec.latent_channels
        or (made_by is not None and spec.name in SPECS and made_by.latent_space != spec.latent_space)
    ):
        raise UsageError(f"--continue: {past.path} holds latents of {past.backbone}, which {spec.name} cannot read",
                         expected=f"a run of {spec.name} or of a model with the same VAE, or a video file",
                         hint=(f"--backbone {able[0]}, or " if able else "") + "copy its video to another folder and give that: "
                         "its frames are taken then")  # fmt: skip
    width, height = size
    if size != past.size or past.latent_shape[1:] != (height // spec.stride_hw, width // spec.stride_hw):
        raise UsageError(f"--continue: {past.path} is {past.size[0]}x{past.size[1]}, and {width}x{height} is asked",
                         expected="the size of the run whose latents go on",
                         hint="leave --size out, or copy its video and give the copy: its frames are fitted then")  # fmt: skip


def given_lat(spec: BackboneSpec, conditions: Conditions, fps: int) -> int:
    """The latent frames that the video begins with and that are not sampled."""
    past = conditions.past
    if past is None:
        return 1 if conditions.image is not None else 0
    if past.latents is not None:
        return past.latents if spec.causal else min(past.shown_lat, spec.clean_lat)
    newest = (min(len(past.sampled(fps)), spec.native_px) - 1) // spec.stride_t + 1
    return newest if spec.causal else min(newest, spec.clean_lat)


def past_notes(plan: Plan, past: Past) -> list[str]:
    """What is taken of an earlier video."""
    spec, notes, name = plan.spec, [*past.notes], past.name
    if past.latents is not None:
        held = past.latents if spec.causal else min(plan.given_lat, past.shown_lat)
        notes.append(f"the last latent frame of {name} is handed over as it is" if held == 1 else
                     f"{held} latent frames of {name} are handed over as they are")  # fmt: skip
        if spec.causal and past.seed is not None:
            notes.append(f"with its own seed, {past.seed}, its noise goes on as in one run; with another it is drawn anew")
        if plan.noise is not None and past.latents <= spec.native_lat:
            notes.append(f"noise that follows from frame to frame begins with the new ones: {name} has no more than "
                         f"{spec.native_px} frames, and so had none")  # fmt: skip
        return notes
    sampled, taken_px = len(past.sampled(plan.fps)), frames.pixel_frames(plan.given_lat, spec.stride_t)
    rate = f" at {plan.fps} fps" * (past.fps != plan.fps)
    if taken_px < sampled:
        taken = "last frame" if taken_px == 1 else f"last {taken_px} frames"
        notes.append(f"the {taken} of {name}, of {sampled}{rate}, {'is' if taken_px == 1 else 'are'} encoded; {spec.name} sees "
                     "nothing before")  # fmt: skip
    else:
        notes.append(f"all of {name} is encoded: {sampled} frame{'s' * (sampled != 1)}{rate}")
    if past.times or past.fps != plan.fps:
        rate = "varying intervals" if past.times else f"{past.fps:.4g} fps"
        notes.append(f"{name} has {past.frames_px} frames at {rate}: of these the nearest in time are taken, at {plan.fps} fps")
    if fitted := pictures.fit_note(past.size, plan.size, plan.conditions.fit):
        notes.append(f"{name} {fitted}")
    if plan.fade_px:
        last = "last frame fades" if plan.fade_px == 1 else f"last {plan.fade_px} frames fade"
        notes.append(f"in the joined file its {last} into what the VAE makes of them, so that the join does not show")
    return notes
