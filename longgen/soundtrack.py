"""The sound of models that make it with the video: what a plan does to it, what it refuses for its sake, and what it says of it."""

from __future__ import annotations

from longgen.errors import UsageError
from longgen.plan import Plan
from longgen.units import short


def check(plan: Plan) -> None:
    """Raises UsageError where the sound could not follow the video, or has no place in how `plan` samples."""
    spec, name = plan.spec, plan.preset.name
    if spec.sound is None:
        return
    if plan.fps != spec.fps:
        raise UsageError(f"--fps {plan.fps}: {spec.name} makes sound for {spec.fps} frames a second, and the picture would leave "
                         "it behind or lag", expected=f"--fps {spec.fps}", hint="leave --fps out")  # fmt: skip
    if plan.in_clips or plan.clips:
        raise UsageError(f"{name} makes the video of {spec.name} clip by clip, and its sound is one piece, all of which each clip "
                         "would hear", expected="a preset that makes all frames together, as sliding-window or freespec",
                         hint="choose one of them, or a model without sound")  # fmt: skip
    if plan.conditions.join:
        raise UsageError(f"--join: {name} makes new sound for the new frames of {spec.name}, and none for those in front of them",
                         expected="--continue alone, which writes the new frames with their sound",
                         hint="join the two files with ffmpeg afterwards")  # fmt: skip
    if plan.schedule is not None:
        raise UsageError(f"--schedule gives each frame its own text, and the sound of {spec.name} is not made by frames",
                         expected="one prompt, or a model without sound", hint="leave --schedule out")  # fmt: skip


def notes(plan: Plan) -> list[str]:
    """What becomes of the sound; nothing where there is none."""
    spec = plan.spec
    if spec.sound is None:
        return []
    seconds = short(plan.frames_px / plan.fps)
    said = (f"{spec.sound_lat(plan.frames_lat)} audio latents make {seconds} s of sound: what a preset changes is "
            "the video's noise, its latents and its attention to itself; the audio attends to all of itself, and each of the two "
            "to all of the other, at their real times")  # fmt: skip
    native_s = spec.native_px / spec.fps
    if plan.frames_px > spec.native_px:
        said += f", beyond the {short(native_s)} s of a native clip without any technique"
    past = plan.conditions.past
    if past is None:
        return [said]
    return [said, f"the sound begins anew: {spec.name} is given frames of {past.name} and none of its sound; what it makes for "
                  "these frames is left out of the file, as they are"]  # fmt: skip
