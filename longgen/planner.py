"""Preset + backbone + length -> Plan: refuses what cannot be, before any weight is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from longgen import frames
from longgen.backbones.spec import CAPABILITIES, SPECS, BackboneSpec
from longgen.catalog import rank
from longgen.catalog import technique as technique_class
from longgen.errors import UsageError, shown
from longgen.frameplan import Geometry, full_attention
from longgen.plan import PlacedTechnique, Plan, programs_of
from longgen.preset import Preset, Sample, name_of
from longgen.schedule import PromptSchedule, by_chunk, check, weights
from longgen.technique import VERDICTS, FrameTechnique, FrequencyTechnique, NoiseTechnique, Refine, Sampling, Technique


def build(preset: Preset, spec: BackboneSpec, schedule: PromptSchedule | None = None, said: Sequence[str] = ()) -> Plan:
    """Decides one generation, with a `schedule` in place of one prompt. said: notes on how `preset` came to be.

    Raises UsageError for what the backbone cannot do or the stack contradicts.
    """
    notes = [*said]
    own = preset.sample_on(spec)
    sample = own.over(
        Sample(frames=spec.native_px, size=spec.size, steps=spec.steps, guidance_scale=spec.guidance_scale,
               negative_prompt=spec.negative_prompt, fps=spec.fps)
    )  # fmt: skip
    size, asked_px = sample.size or spec.size, sample.frames or spec.native_px
    frames_px = frames.round_up(asked_px, spec.stride_t)
    if frames_px != asked_px:
        notes.append(f"{asked_px} frames asked, {frames_px} made: {spec.name} makes {spec.stride_t}n+1")
        sample = sample.model_copy(update={"frames": frames_px})
    frames_lat = frames.latent_frames(frames_px, spec.stride_t)
    techniques = _completed(preset, spec)
    sampling = next((technique for technique in techniques if isinstance(technique, Sampling)), None)
    seen_lat = sampling.frames_per_call(frames_lat, spec.native_lat) if sampling else frames_lat
    asked = own.steps
    if (asked or 0) > MOST_STEPS:
        raise UsageError(f"{shown(asked)} steps are more than the noise levels that models are trained on",
                         expected=f"1 to {MOST_STEPS} steps", hint="take fewer --steps")  # fmt: skip
    steps = (sampling.schedule_steps(frames_lat, spec.native_lat, asked) if sampling else asked) or spec.steps
    sample = sample.model_copy(update={"steps": steps})
    _check_geometry(spec, size, asked_px, seen_lat)
    if steps < spec.least_steps:
        raise UsageError(f"{steps} step is too few for {spec.name}: its scheduler divides by zero",
                         expected=f"{spec.least_steps} or more", hint="take more --steps")  # fmt: skip
    if sample.flow_shift is not None and spec.fixed_shift is not None:
        able = ", ".join(known.name for known in SPECS.values() if known.fixed_shift is None)
        raise UsageError(f"a flow shift of {sample.flow_shift:g} is asked, and {spec.name} takes none: {spec.fixed_shift}",
                         expected=f"no --flow-shift, and none in the preset; or one of {able}", hint="leave it out")  # fmt: skip
    if spec.embedded_guidance and sample.negative_prompt:
        raise UsageError(f"{spec.name} reads no negative prompt: its guidance is an input of the model",
                         expected="no --negative-prompt", hint="leave it out")  # fmt: skip
    if schedule is not None:
        check(schedule, frames_px, sample.fps or spec.fps)
        shares = weights(schedule, frames_px, spec.stride_t, sample.fps or spec.fps)  # refuses a shot that no latent frame shows
        if sampling and sampling.in_chunks:  # or no chunk
            by_chunk(schedule, shares, seen_lat, Fraction(spec.stride_t, sample.fps or spec.fps))
        if seen_lat == frames_lat and spec.joint_text:
            able = ", ".join(s.name for s in SPECS.values() if not s.joint_text)
            raise UsageError(f"--schedule needs clips on {spec.name}, whose text is in self-attention and the same for all frames",
                             expected=f"a preset that samples clip by clip, as gen-l-video; or one of {able}",
                             hint="--preset gen-l-video or glc-diffusion")  # fmt: skip
    in_chunks = sampling is not None and sampling.in_chunks
    geometry = Geometry(frames_lat, spec.native_lat, spec.frequencies, spec.intrinsic_component, in_chunks=in_chunks)
    seen = replace(geometry, frames_lat=seen_lat, in_clips=seen_lat < frames_lat)
    placed = tuple(sorted((_placed(technique, spec, steps) for technique in techniques), key=_turn))
    _refuse_contradictions(placed)
    for act in placed:
        if isinstance(act.technique, NoiseTechnique) and act.technique.noise:
            act.technique.check_noise(geometry)
    if sampling and sampling.in_chunks:
        rolled_lat = seen_lat * sampling.rounds(frames_lat, spec.native_lat, steps)
        seen = replace(seen, in_clips=False)
        programs, table, inert = programs_of(placed, replace(geometry, frames_lat=rolled_lat), full_attention(rolled_lat, seen_lat),
                                           spec.layers, steps)  # fmt: skip
    else:
        programs, table, inert = programs_of(placed, seen, full_attention(seen.frames_lat), spec.layers, steps)
    for act in placed:
        given = act.technique in preset.techniques
        if given and act.name in inert and not _acts_besides(act.technique, geometry, seen):
            notes.append(f"{act.name} changes nothing at {frames_px} frames of {spec.name}: it is the identity there")
    edits = [act.name for act in placed if isinstance(act.technique, Refine)]
    if sampling and sampling.frame_levels and seen_lat < frames_lat:
        queue = name_of(sampling)
        if edits:
            raise UsageError(f"{' and '.join(edits)} edits the latent after a step, and with {queue} no step is all frames'",
                             expected="one of them", hint=f"take a preset without {queue} or without {edits[0]}")  # fmt: skip
        notes.append(f"{queue} keeps a noise level for every frame: {steps} steps where {spec.name} has {spec.steps}, "
                     f"by {spec.first_order}")  # fmt: skip
    if edits:
        notes.append(f"{' and '.join(edits)} edits the latent, which some schedulers would undo: {spec.first_order} steps")
    if seen_lat > spec.native_lat and not table.any():
        notes.append(f"{frames_px} frames is {frames_px / spec.native_px:.1f} times what {spec.name} was trained on, and no "
                     "technique acts: expect slow or frozen motion; longgen presets list shows what there is")  # fmt: skip
    if sample.flow_shift is None and spec.script_shift is not None and spec.name in SPECS:
        notes.append(f"the flow shift is the checkpoint's own; the authors' script takes {spec.script_shift:g}: --flow-shift "
                     f"{spec.script_shift:g}")  # fmt: skip
    if own.negative_prompt and not spec.embedded_guidance and (sample.guidance_scale or 0.0) <= 1:
        notes.append(f"the negative prompt is not read: guidance is off at a guidance scale of {sample.guidance_scale:g}; "
                      "it takes more than 1")  # fmt: skip
    if size != spec.size:
        width, height = spec.size
        notes.append(f"{size[0]}x{size[1]} is not the size {spec.name} was trained at ({width}x{height})")
    return Plan(spec, preset, sample, frames_px, frames_lat, geometry, seen, placed, programs, table, tuple(notes), schedule)


def _completed(preset: Preset, spec: BackboneSpec) -> tuple[Technique, ...]:
    """The stack, and on a causal backbone what it leaves unsaid: a rollout, and a window of the native length."""
    techniques = preset.techniques
    for name in ("rollout", "window") if spec.causal else ():
        own = technique_class(name)()
        if not any(claim in technique.exclusive for technique in techniques for claim in own.exclusive):
            techniques = (*techniques, own)
    return techniques


MOST_STEPS = 1000  # every scheduler here has so many noise levels to choose from


LONG = 4  # times the native length: where costs are compared


def on_every_backbone(preset: Preset) -> dict[str, Plan | UsageError]:
    """By backbone, the plan of `preset` at LONG times the native length, or why that backbone cannot take it."""
    plans: dict[str, Plan | UsageError] = {}
    for name, spec in SPECS.items():
        frames_px = frames.pixel_frames(LONG * spec.native_lat - LONG + 1, spec.stride_t)
        try:
            plans[name] = build(
                preset.model_copy(update={"sample": Sample(frames=frames_px), "backbone_samples": {}}), as_if_probed(spec)
            )
        except UsageError as error:
            plans[name] = error
    return plans


def as_if_probed(spec: BackboneSpec) -> BackboneSpec:
    """`spec` with verdicts: as after a probe, which may find any layer."""
    return spec if spec.verdicts else replace(spec, verdicts=dict.fromkeys(VERDICTS, tuple(range(spec.layers))))


def _check_geometry(spec: BackboneSpec, size: tuple[int, int], asked_px: int, frames_lat: int) -> None:
    most_px = frames.pixel_frames(spec.most_lat, spec.stride_t)
    if frames_lat > spec.most_lat:
        raise UsageError(f"{asked_px} frames are more than {spec.name} can address", expected=f"1 to {most_px} frames",
                         hint="make it shorter, or several videos")  # fmt: skip
    for side, length, multiple in zip(("width", "height"), size, spec.size_multiple, strict=True):
        if length % multiple:
            below = length // multiple * multiple
            near = " or ".join(str(n) for n in (below, below + multiple) if n)
            raise UsageError(f"{side} {length} does not fit {spec.name}", expected=f"multiples of {multiple}", hint=f"take {near}")


def _placed(technique: Technique, spec: BackboneSpec, steps: int) -> PlacedTechnique:
    name = name_of(technique)
    for need in technique.requires:
        if need not in spec.capabilities:
            able = ", ".join(s.name for s in SPECS.values() if need in s.capabilities)
            raise UsageError(f"{name} needs {need} ({CAPABILITIES[need]}), which {spec.name} does not have",
                             expected=f"backbones that have it: {able}",
                             hint="choose one of them, or a preset without it")  # fmt: skip
    if technique.layers == "all":
        layers = tuple(range(spec.layers))
    elif isinstance(technique.layers, tuple):
        layers = tuple(sorted(set(technique.layers)))
    elif technique.layers in spec.verdicts:
        layers = spec.verdicts[technique.layers]
    else:
        raise UsageError(f"{name}.layers = {technique.layers!r}: nobody has probed which layers of {spec.name} are, at this length",
                         expected="a probe of it, all, or a list of layers",
                         hint=f"longgen probe --backbone {spec.name} --frames N, --probe run, or --layers all")  # fmt: skip
    if layers and layers[-1] >= spec.layers:
        raise UsageError(f"{name}.layers has {layers[-1]}, but {spec.name} has {spec.layers} layers",
                         expected=f"0 to {spec.layers - 1}", hint=f"--set {name}.layers=[0,1] or leave it out")  # fmt: skip
    for key in {"noise": ("layers", "steps"), "sampling": ("layers", "steps"), "refine": ("layers",)}.get(technique.slot, ()):
        if getattr(technique, key) != type(technique).model_fields[key].default:
            raise UsageError(f"{name}.{key} is given, and a technique of {technique.slot} acts on all of them",
                             expected=f"{key} left out", hint=f"leave {name}.{key} out")  # fmt: skip
    return PlacedTechnique(name, technique, layers, tuple(technique.step_range(steps)))


def _turn(act: PlacedTechnique) -> tuple[int, int, str]:
    """When `act` applies: noise, times, fusion, context, times by it, frequencies, sampling, refinement; then by the catalog."""
    turns = ("noise", "positions", "fusion", "context", "after context", "frequencies", "sampling", "refine")
    late = isinstance(act.technique, FrameTechnique) and act.technique.after_context
    turn = "frequencies" if isinstance(act.technique, FrequencyTechnique) else "after context" if late else act.technique.slot
    return turns.index(turn), *rank(act.name)


def _acts_besides(technique: Technique, geometry: Geometry, seen: Geometry) -> bool:
    """Whether `technique` does something besides frame plans."""
    if isinstance(technique, NoiseTechnique) and technique.noise and geometry.ratio > 1:
        return True
    return isinstance(technique, Refine) or (isinstance(technique, Sampling) and seen.frames_lat < geometry.frames_lat)


def _refuse_contradictions(placed: tuple[PlacedTechnique, ...]) -> None:
    for one, other in itertools.combinations(placed, 2):
        both = [claim for claim in one.technique.exclusive if claim in other.technique.exclusive]
        if both and set(one.layers) & set(other.layers) and set(one.steps) & set(other.steps):
            raise UsageError(f"{one.name} and {other.name} both decide {' and '.join(both)} in the same layers and steps",
                             expected="one of them there", hint="remove one, or give them different layers or steps")  # fmt: skip
    makers = [act.name for act in placed if isinstance(act.technique, NoiseTechnique) and act.technique.noise]
    if len(makers) > 1:
        raise UsageError(f"{' and '.join(makers)} both make the initial noise", expected="one of them",
                         hint=f"--set {makers[0]}.noise=false")  # fmt: skip
