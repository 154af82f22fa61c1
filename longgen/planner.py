"""Preset + backbone + length -> Plan. Raises UsageError for whatever cannot run, before any weight is loaded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from longgen import conditioning, distilled, frames, pictures, repeats, soundtrack
from longgen.backbones.registry import SPECS
from longgen.backbones.spec import CAPABILITIES, WHOLE_CLIP, BackboneSpec
from longgen.catalog import name_of, rank
from longgen.catalog import technique as technique_class
from longgen.conditions import NOTHING, Conditions, picture_notes
from longgen.errors import UsageError, shown
from longgen.frameplan import Geometry, full_attention
from longgen.plan import Plan
from longgen.preset import Preset, Sample
from longgen.sampling.chain import Chain
from longgen.sampling.rollout import Rollout
from longgen.schedule import PromptSchedule, by_chunk, check, settled, since_switch, weights, weights_after
from longgen.stack import PlacedTechnique, programs_of
from longgen.technique import (
    VERDICTS,
    FrameTechnique,
    FrequencyTechnique,
    HeadTechnique,
    NoiseTechnique,
    Refine,
    Sampling,
    Technique,
)
from longgen.textfile import on_one_line
from longgen.units import short

MOST_STEPS = 1000  # every scheduler here has so many noise levels to choose from
MOST_SHIFT = 1e7  # flow shift, near which sigma = s t / (1 + (s - 1) t) is 1 in float32 for every t
GREY = Path(__file__).with_name("grey.png")
LONG = 4  # times the native length: where the costs of presets are compared


def build(
    preset: Preset,
    spec: BackboneSpec,
    schedule: PromptSchedule | None = None,
    notes: Sequence[str] = (),
    conditions: Conditions = NOTHING,
) -> Plan:
    """The plan of one generation, by `schedule` or by a single prompt. notes: on how `preset` came to be; they come first.

    Raises UsageError for what the backbone cannot do, and for a stack that contradicts itself.
    """
    schedule, conditions = settled(schedule, conditions)
    requested, past = preset.sample_on(spec), conditions.past
    preset.lora_on(spec)  # refused here where it has none for this backbone
    run = past if past is not None and past.latents is not None else None
    sample = requested.over(
        Sample(size=run.size if run else spec.size, steps=spec.steps, guidance_scale=spec.guidance_scale,
               negative_prompt=spec.negative_prompt, fps=round(run.fps) if run else spec.fps)
    )  # fmt: skip
    conditioning.check(spec, conditions, sample)
    techniques = tuple(_settled(technique, spec) for technique in _with_implied(preset.techniques, spec))
    sampling = next((technique for technique in techniques if isinstance(technique, Sampling)), None)
    given_lat = conditioning.given_lat(spec, conditions, sample.fps or spec.fps)
    if isinstance(sampling, Chain) and sampling.overlap is not None:  # the first clip begins as the later ones do
        given_lat = min(given_lat, sampling.overlap)
    requested_px = sample.frames or spec.native_px
    frames_lat = frames.latent_frames(requested_px, spec.stride_t)
    if past is not None:
        if sample.frames is None:  # a clip of native length, and of a rollout as many new frames
            requested_px = spec.stride_t * max(1, spec.native_lat - given_lat * (not spec.causal))
        past_lat = past.shown_lat if run and spec.causal else given_lat
        frames_lat = past_lat - (-requested_px // spec.stride_t)
        given_lat = min(given_lat, frames_lat)
    frames_px = frames.pixel_frames(frames_lat, spec.stride_t)
    call_lat = sampling.frames_per_call(frames_lat, spec.native_lat) if sampling else frames_lat
    steps = _steps(requested.steps, sampling, frames_lat, spec)
    made_px = frames_px if past is None else spec.stride_t * (frames_lat - past_lat)
    sample = sample.model_copy(update={"frames": made_px, "steps": steps})
    _check_size(spec, sample.size or spec.size, requested_px, call_lat)
    _check_sample(spec, sample)
    in_chunks = sampling is not None and sampling.in_chunks
    if schedule is not None:
        _check_schedule(schedule, spec, sample, (frames_lat, call_lat, given_lat), in_chunks, past is not None)
        _check_shot_pictures(schedule, spec, sampling)
        _check_cuts(schedule, spec, sampling)

    known = spec.frequencies, spec.intrinsic_component, spec.repetition_lat
    geometry = Geometry(frames_lat, spec.native_lat, *known, chunk_lat=call_lat if in_chunks else None)
    in_turn = isinstance(sampling, Chain)
    call_geometry = replace(geometry, frames_lat=call_lat, in_clips=call_lat < frames_lat and not in_chunks and not in_turn)
    stack = tuple(sorted((_place(technique, spec, steps) for technique in techniques), key=_order))
    _check_stack(stack, call_geometry if in_turn else geometry, call_lat, bool(conditions))
    if sampling is not None and in_chunks:
        all_lat = given_lat + call_lat * sampling.rounds(frames_lat - given_lat, spec.native_lat, steps)
        table_geometry, stock = replace(geometry, frames_lat=all_lat), full_attention(all_lat, min(call_lat, all_lat))
    else:
        table_geometry, stock = call_geometry, full_attention(call_lat)
    programs, table, without_effect = programs_of(stack, table_geometry, stock, spec.layers, steps)
    plan = Plan(spec, preset, sample, frames_px, frames_lat, geometry, call_geometry, stack, programs, table, (), schedule,
                conditions, given_lat)  # fmt: skip
    soundtrack.check(plan)
    _check_shift(plan)
    _check_chain(plan)
    _check_heads(plan)
    _check_memory(plan)
    for start in plan.cut_starts:  # refuses those whose times cannot be
        plan.programs_for_cut(start)
    if in_chunks:
        plan, without_effect = _after_switches(plan, without_effect)
    said = (*notes, *_notes(plan, requested, requested_px, without_effect))
    return replace(plan, notes=tuple(map(on_one_line, said)))  # names of files may hold anything


def _with_implied(techniques: tuple[Technique, ...], spec: BackboneSpec) -> tuple[Technique, ...]:
    """The stack, and on a causal backbone what it leaves out: a rollout, and a window of the native length."""
    for name in ("rollout", "window") if spec.causal else ():
        implied = technique_class(name)()
        if not any(claim in technique.exclusive for technique in techniques for claim in implied.exclusive):
            techniques = (*techniques, implied)
    return techniques


def _after_switches(plan: Plan, without_effect: list[str]) -> tuple[Plan, list[str]]:
    """A rollout's plan, whose last chunk comes as long after a change of prompt as it will; and which techniques have no effect
    right after one either.
    """
    since = since_switch(plan.chunk_texts("")[1])
    if not since or set(since) == {None}:
        return plan, without_effect
    start, count = plan.chunks[-1]
    programs, table = plan.programs_for_chunk(start + count, count, None, since[-1] if plan.schedule else None)
    geometry, stock = replace(plan.geometry, frames_lat=start + count, since_switch=0), full_attention(start + count, count)
    _, _, also = programs_of(plan.techniques, geometry, stock, plan.spec.layers, plan.steps)
    return replace(plan, programs=programs, table=table), [name for name in without_effect if name in also]


# Checks


def _steps(requested: int | None, sampling: Sampling | None, frames_lat: int, spec: BackboneSpec) -> int:
    """The number of denoising steps."""
    if (requested or 0) > MOST_STEPS:
        raise UsageError(f"{shown(requested)} steps exceed the number of noise levels that models are trained on",
                         expected=f"1 to {MOST_STEPS} steps", hint="use fewer --steps")  # fmt: skip
    steps = (sampling.schedule_steps(frames_lat, spec.native_lat, requested) if sampling else requested) or spec.steps
    if steps < spec.least_steps:
        raise UsageError(f"{steps} step is too few for {spec.name}: its scheduler would divide by zero",
                         expected=f"{spec.least_steps} or more", hint="use more --steps")  # fmt: skip
    return steps


def _check_size(spec: BackboneSpec, size: tuple[int, int], requested_px: int, call_lat: int) -> None:
    if call_lat > spec.most_lat:
        raise UsageError(f"{requested_px} frames are more than {spec.name} can address",
                         expected=f"1 to {frames.pixel_frames(spec.most_lat, spec.stride_t)} frames",
                         hint="make it shorter, or split it into several videos")  # fmt: skip
    if spec.fixed_size and size != spec.size:
        given, only = ("x".join(map(str, sides)) for sides in (size, spec.size))
        raise UsageError(f"{given} does not fit {spec.name}, which learned the places of {only} alone", expected=f"--size {only}",
                         hint="leave --size out")  # fmt: skip
    if spec.most_size is not None and any(side > most for side, most in zip(size, spec.most_size, strict=True)):
        given, most = ("x".join(map(str, sides)) for sides in (size, spec.most_size))
        raise UsageError(f"{given} is beyond the positions that {spec.name} has", expected=f"at most {most}",
                         hint="use a smaller --size")  # fmt: skip
    for side, length, multiple in zip(("width", "height"), size, spec.size_multiple, strict=True):
        if length % multiple:
            below = length // multiple * multiple
            nearest = " or ".join(str(n) for n in (below, below + multiple) if n)
            raise UsageError(f"{side} {length} does not fit {spec.name}", expected=f"multiples of {multiple}",
                             hint=f"use {nearest}")  # fmt: skip


def _check_sample(spec: BackboneSpec, sample: Sample) -> None:
    if sample.flow_shift is not None and spec.fixed_shift is not None:
        able = ", ".join(known.name for known in SPECS.values() if known.fixed_shift is None)
        raise UsageError(f"{spec.name} does not accept a flow shift ({sample.flow_shift:g} was requested): {spec.fixed_shift}",
                         expected=f"no --flow-shift and none in the preset; or one of {able}", hint="leave it out")  # fmt: skip
    if spec.embedded_guidance and sample.negative_prompt:
        raise UsageError(f"{spec.name} reads no negative prompt: its guidance is an input of the model",
                         expected="no --negative-prompt", hint="leave it out")  # fmt: skip


def _check_shift(plan: Plan) -> None:
    """Where a shift by the number of tokens makes all noise levels 1 in float32, the scheduler goes on to divide by zero."""
    by_tokens, spec = plan.token_shift, plan.spec
    if plan.sample.flow_shift is None and by_tokens is not None and by_tokens > MOST_SHIFT:
        native = _native_shift(spec)
        option = f"--flow-shift {native:.3g}" if native <= MOST_SHIFT else ""
        raise UsageError(f"{plan.tokens:,} tokens are too many for {spec.name}'s own noise levels, which it shifts by their number",
                         expected=f"{option and f'{option} (that of its native size and length) or another, or '}fewer frames",
                         hint=f"add {option}" if option else "fewer --frames or a smaller --size")  # fmt: skip


def _native_shift(spec: BackboneSpec) -> float:
    """The shift by the number of tokens at the native size and length."""
    assert spec.token_shift is not None
    return spec.token_shift.at(spec.native_lat * math.prod(spec.frame_grid(spec.size)))


def _check_schedule(
    schedule: PromptSchedule, spec: BackboneSpec, sample: Sample, counts_lat: tuple[int, int, int], in_chunks: bool, goes_on: bool
) -> None:
    """Every shot must be visible in some latent frame, in a rollout also in some chunk, as `Plan.chunk_texts` reads them."""
    frames_px, fps = sample.frames or spec.native_px, sample.fps or spec.fps
    frames_lat, call_lat, given_lat = counts_lat
    check(schedule, frames_px, fps)
    shares = (weights_after if goes_on else weights)(schedule, frames_px, spec.stride_t, fps)
    if in_chunks and (sampled_lat := frames_lat - given_lat):
        by_chunk(schedule, shares[:, -sampled_lat:], call_lat, Fraction(spec.stride_t, fps))
    if call_lat == frames_lat and spec.joint_text:
        able = ", ".join(known.name for known in SPECS.values() if not known.joint_text)
        raise UsageError(f"--schedule requires clips on {spec.name}, whose self-attention includes one text for all frames",
                         expected=f"a preset that samples clip by clip, such as gen-l-video; or one of {able}",
                         hint="use --preset gen-l-video or glc-diffusion")  # fmt: skip


def _check_shot_pictures(schedule: PromptSchedule, spec: BackboneSpec, sampling: Sampling | None) -> None:
    """A later shot may begin with a picture only where clips begin one after the other."""
    if schedule.pictures and not (sampling is not None and sampling.shot_pictures):
        how = "direct sampling" if sampling is None else name_of(sampling)
        raise UsageError(f"the schedule's {', '.join(schedule.pictures)}: {how} begins no clip there, which could begin with it",
                         expected="a preset that samples clip after clip, such as chain",
                         hint=f"leave image out{' or use --preset chain' * (WHOLE_CLIP in spec.capabilities)}")  # fmt: skip


def _check_cuts(schedule: PromptSchedule, spec: BackboneSpec, sampling: Sampling | None) -> None:
    """A cut is a jump in the times of a rollout's chunk."""
    cuts = [f"shot {number}: cut" for number, shot in enumerate(schedule.shots, 1) if shot.cut]
    if cuts and not (sampling is not None and sampling.in_chunks):
        how = "direct sampling" if sampling is None else name_of(sampling)
        instead = "give the shot an image, with which a clip begins" if sampling is not None and sampling.shot_pictures else (
            "leave cut out: without blend the text changes at once" + ", or use --preset chain and give the shot an image"
            * (WHOLE_CLIP in spec.capabilities))  # fmt: skip
        able = ", ".join(known.name for known in SPECS.values() if known.causal)
        raise UsageError(f"the schedule's {', '.join(cuts)}: a cut sets a rollout's chunk apart in time from those before, and "
                         f"{how} makes no chunks", expected=f"a rollout, on {able}", hint=instead)  # fmt: skip


def _check_chain(plan: Plan) -> None:
    """A chain's last clip has frames beyond the video's end, which are dropped, and a last picture would be among them."""
    if plan.clips and plan.conditions.last_image is not None:
        raise UsageError(f"--last-image: {plan.preset.name} makes the video clip after clip, and drops what its last clip makes "
                         "beyond the end", expected="a preset that makes all frames together, or no last picture",
                         hint="leave --last-image out, or choose another --preset")  # fmt: skip


def _check_heads(plan: Plan) -> None:
    """Heads are measured by what they make of the past, and by one technique."""
    measuring = [placed for placed in plan.techniques if isinstance(placed.technique, HeadTechnique)]
    if len(measuring) > 1:
        raise UsageError(f"{' and '.join(placed.name for placed in measuring)} both put heads into groups", expected="one of them",
                         hint=f"remove {measuring[-1].name}")  # fmt: skip
    if plan.head_groups and plan.columns_lat is not None:
        raise UsageError(f"{measuring[0].name} has caches by groups of heads, in which a frame has its own place only",
                         expected="a stack that places no frame elsewhere in the cache, and no memory there",
                         hint=f"remove {measuring[0].name}, or what places them")  # fmt: skip
    for placed in measuring:
        assert isinstance(placed.technique, HeadTechnique)
        after, (_, first) = placed.technique.measured_lat, plan.chunks[0]
        if after <= first:
            raise UsageError(f"{placed.name} measures heads after {after} latent frames, but the first chunk has {first}, and no "
                             "past to tell them apart by",
                             expected=f"{first + 1} or more", hint=f"--set {placed.name}.after={2 * first}")  # fmt: skip


def _check_memory(plan: Plan) -> None:
    """A memory in a rollout's cache is of the very frames that a flush is to drop."""
    if isinstance(plan.sampling, Rollout) and plan.sampling.switch == "flush" and plan.memory is not None:
        raise UsageError("rollout.switch = flush drops all but the sink and the last frames, but what it would drop has a memory "
                         f"in {plan.preset.name}", expected="recache, or keep",
                         hint="--set rollout.switch=recache")  # fmt: skip


def _settled(technique: Technique, spec: BackboneSpec) -> Technique:
    """`technique` with what a way of sampling leaves to the backbone filled in. Raises UsageError."""
    if not isinstance(technique, Sampling):
        return technique
    _check_capabilities(technique, spec)
    return technique.settled(spec)


def _check_capabilities(technique: Technique, spec: BackboneSpec) -> None:
    """Raises UsageError where `spec` lacks what `technique` needs."""
    name = name_of(technique)
    for need in technique.requires:
        if need not in spec.capabilities:
            able = ", ".join(known.name for known in SPECS.values() if need in known.capabilities)
            raise UsageError(f"{name} needs {need} ({CAPABILITIES[need]}), which {spec.name} does not have",
                             expected=f"backbones that have it: {able}",
                             hint="choose one of them, or a preset without it")  # fmt: skip


def _place(technique: Technique, spec: BackboneSpec, steps: int) -> PlacedTechnique:
    """The technique with the layers and steps it acts in. Raises UsageError where `spec` cannot serve it."""
    name = name_of(technique)
    _check_capabilities(technique, spec)
    if technique.layers == "all":
        layers = tuple(range(spec.layers))
    elif isinstance(technique.layers, tuple):
        layers = tuple(sorted(set(technique.layers)))
    elif technique.layers in spec.verdicts:
        layers = spec.verdicts[technique.layers]
    else:
        raise UsageError(f"{spec.name} has not been probed at this length, so its {technique.layers} layers are unknown "
                         f"({name}.layers)", expected="a probe of it, all, or a list of layers",
                         hint=f"longgen probe --backbone {spec.name} --frames N, --probe run, or --layers all")  # fmt: skip
    if layers and layers[-1] >= spec.layers:
        raise UsageError(f"{name}.layers has {layers[-1]}, but {spec.name} has {spec.layers} layers",
                         expected=f"0 to {spec.layers - 1}", hint=f"--set {name}.layers=[0,1] or leave it out")  # fmt: skip
    for key in {"noise": ("layers", "steps"), "sampling": ("layers", "steps"), "refine": ("layers",)}.get(technique.slot, ()):
        if getattr(technique, key) != type(technique).model_fields[key].default:
            raise UsageError(f"{name}.{key} cannot be set: a technique of the slot {technique.slot} applies to all {key}",
                             expected=f"{key} left out", hint=f"leave {name}.{key} out")  # fmt: skip
    if technique.everywhere and (technique.layers != "all" or technique.steps != (0, 1)):
        raise UsageError(f"{name} acts in all layers and steps: what it keeps in the cache is of all of them",
                         expected="layers and steps left out", hint=f"leave {name}.layers and {name}.steps out")  # fmt: skip
    return PlacedTechnique(name, technique, layers, tuple(technique.step_range(steps)))


def _order(placed: PlacedTechnique) -> tuple[int, bool, int, str]:
    """The order in which a stack applies (see `longgen.technique`), within it what decides on cache slots, then the catalog's."""
    order = ("noise", "positions", "fusion", "context", "after context", "frequencies", "sampling", "refine")
    late = isinstance(placed.technique, FrameTechnique) and placed.technique.after_context
    frequencies = isinstance(placed.technique, FrequencyTechnique)
    phase = "frequencies" if frequencies else "after context" if late else placed.technique.slot
    return order.index(phase), late and not placed.technique.everywhere, *rank(placed.name)


def _check_stack(stack: tuple[PlacedTechnique, ...], geometry: Geometry, call_lat: int, given: bool) -> None:
    """No two techniques may decide the same thing."""
    for first, second in itertools.combinations(stack, 2):
        shared = [claim for claim in first.technique.exclusive if claim in second.technique.exclusive]
        if shared and set(first.layers) & set(second.layers) and set(first.steps) & set(second.steps):
            raise UsageError(f"{first.name} and {second.name} both decide {' and '.join(shared)} in the same layers and steps",
                             expected="one of them there", hint="remove one, or give them different layers or steps")  # fmt: skip
    makers = [placed.name for placed in stack if placed.makes_noise]
    if len(makers) > 1:
        raise UsageError(f"{' and '.join(makers)} both make the initial noise", expected="one of them",
                         hint=f"--set {makers[0]}.noise=false")  # fmt: skip
    for placed in stack:
        if isinstance(placed.technique, NoiseTechnique) and placed.technique.noise:
            placed.technique.check_noise(geometry)
    edits = [placed.name for placed in stack if isinstance(placed.technique, Refine)]
    queue = _frame_level_sampling(stack) if call_lat < geometry.frames_lat else None
    if given and queue:
        raise UsageError(f"{queue} moves every frame from noise through its queue, and the first ones are given here",
                         expected="a preset without it, or no --image and no --continue",
                         hint="use another preset, as freespec or chain")  # fmt: skip
    if edits and queue:
        raise UsageError(f"{' and '.join(edits)} edits the latent after a step, but with {queue} frames are never at the same step",
                         expected="one of them", hint=f"use a preset without {queue} or without {edits[0]}")  # fmt: skip


def _frame_level_sampling(stack: tuple[PlacedTechnique, ...]) -> str | None:
    """The name of the technique that gives every frame a noise level of its own."""
    return next((p.name for p in stack if isinstance(p.technique, Sampling) and p.technique.frame_levels), None)


# Notes


def _notes(plan: Plan, requested: Sample, requested_px: int, without_effect: list[str]) -> list[str]:
    """What a person should know before starting."""
    spec, sample, frames_px, notes = plan.spec, plan.sample, plan.frames_px, list[str]()
    call_lat = plan.call_geometry.frames_lat
    past = plan.conditions.past
    if past is not None:
        notes += conditioning.past_notes(plan, past)
        if plan.new_px != requested_px:
            notes.append(f"rounded {requested_px} new frame{'s' * (requested_px != 1)} up to {plan.new_px} ({spec.name} goes on "
                         f"by {spec.stride_t} at a time)")  # fmt: skip
    elif frames_px != requested_px:
        notes.append(f"rounded {requested_px} frames up to {frames_px} ({spec.name} generates {spec.stride_t}n+1)")
    if spec.token_lat > 1:
        notes.append(f"a token of {spec.name} holds {spec.token_lat} latent frames of its VAE: what is called a latent frame here "
                     f"is that many, {spec.stride_t} frames of video, and nothing cuts between them")  # fmt: skip
    for placed in plan.techniques:
        noised = plan.call_geometry if plan.clips else plan.geometry
        acts_outside_attention = (isinstance(placed.technique, Refine) or (placed.makes_noise and noised.ratio > 1)
                                  or (isinstance(placed.technique, Sampling) and (plan.in_clips or plan.in_parts)))  # fmt: skip
        implied = placed.name not in map(name_of, plan.preset.techniques)
        if not implied and placed.name in without_effect and not acts_outside_attention:
            length = f"{frames_px} frame{'s' * (frames_px != 1)}"
            notes.append(f"{placed.name} changes nothing at {length} of {spec.name}: it is the identity there")
    edits = [placed.name for placed in plan.techniques if isinstance(placed.technique, Refine)]
    queue = _frame_level_sampling(plan.techniques) if call_lat < plan.frames_lat else None
    if queue:
        notes.append(f"{queue} keeps a noise level for every frame: {plan.steps} steps instead of {spec.steps} on {spec.name}, "
                     f"with {spec.first_order}")  # fmt: skip
    if plan.conditions and plan.in_clips:
        also = " and what attention reads of the pictures" if spec.image_tokens else ""
        notes.append(f"{plan.preset.name} denoises clips of {call_lat} latent frames together: what the video starts from is seen "
                     f"by those that hold its frames; the others have the frames that clips share{also}")  # fmt: skip
    if edits:
        notes.append(f"{' and '.join(edits)} edits the latent, which some schedulers would undo: sampling with {spec.first_order}")
    if call_lat > spec.native_lat and not plan.table.any():
        notes.append(f"{frames_px} frames is {frames_px / spec.native_px:.1f} times the length {spec.name} was trained on, and no "
                     "technique is active: expect slow or frozen motion; longgen presets list shows the alternatives")  # fmt: skip
    if plan.head_groups is not None:
        technique, layers = plan.head_groups
        notes.append(f"{technique.describe(len(layers) * spec.heads)}: who is in which is measured while sampling, after "
                     f"{technique.measured_lat} latent frames, and costs are what they are at most")  # fmt: skip
    notes += [*spec.file_notes, *plan.conditions.notes(plan.size)]
    if spec.picture_crf and plan.conditions.image is not None:
        notes.append(f"--image {plan.conditions.image.name} is compressed first, as H.264 with a rate factor of "
                     f"{spec.picture_crf}: such pictures {spec.name} was trained on")  # fmt: skip
    for name, picture in plan.schedule.pictures.items() if plan.schedule else ():
        notes += picture_notes(picture, name, plan.size, plan.conditions.fit)
    if isinstance(plan.sampling, Chain) and plan.sampling.zero_padded:
        notes.append("its clips are conditioned as the LoRAs of SVI 2.0 Pro were trained, which are to be given with --lora: "
                     "longgen presets show svi names them")  # fmt: skip
    surplus = sum(call_lat - clip.given - clip.new for clip in plan.clips)
    if surplus:
        notes.append(f"every clip has {call_lat} latent frames: {surplus} of them, beyond the video's end or a cut, are dropped")
    notes += distilled.of_backbone(plan)
    notes += repeats.notes(plan)
    notes += soundtrack.notes(plan)
    notes += _shift_notes(plan)
    advised = {name: value for name, value in spec.advised if getattr(requested, name) is None} if spec.name in SPECS else {}
    if advised:
        ours = {"flow_shift": spec.checkpoint_shift or plan.token_shift, "guidance_scale": spec.guidance_scale}
        words = {name: name.partition("_scale")[0].replace("_", " ") for name in advised}
        flags = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in advised.items())
        theirs, default = (" and ".join(f"{words[name]} {values[name]:.4g}" for name in advised) for values in (advised, ours))
        notes.append(f"the publisher takes {theirs} in {spec.advised_in}: {flags}; the default is {default}")
    if requested.negative_prompt and not spec.embedded_guidance and not plan.guided:
        notes.append(f"the negative prompt is ignored: guidance is off at a guidance scale of {sample.guidance_scale:g}; "
                      "it needs more than 1")  # fmt: skip
    if plan.size != spec.size:
        width, height = spec.size
        notes.append(f"{plan.size[0]}x{plan.size[1]} is not the size {spec.name} was trained at ({width}x{height})")
    return notes


def _shift_notes(plan: Plan) -> list[str]:
    """Where the backbone shifts its noise levels by the number of tokens, which grows with the length."""
    spec, sample = plan.spec, plan.sample
    if spec.token_shift is None:
        return []
    native = _native_shift(spec)
    by_tokens = plan.token_shift or native
    if sample.flow_shift is not None:
        return [f"flow shift {sample.flow_shift:g} replaces {spec.name}'s own, which follows from the number of tokens and is "
                f"{short(by_tokens)} here"]  # fmt: skip
    if by_tokens <= native * 1.01:
        return []
    return [f"{spec.name} shifts its noise levels by the number of tokens: {short(by_tokens)} here, {short(native)} at its native "
            f"size and length, which --flow-shift {native:.3g} keeps"]  # fmt: skip


# On every backbone


def length_px(spec: BackboneSpec, times: int) -> int:
    """The length, in pixel frames, of `times` the native length."""
    return frames.pixel_frames(times * (spec.native_lat - 1) + 1, spec.stride_t)


def on_every_backbone(preset: Preset, only: BackboneSpec | None = None) -> dict[str, Plan | UsageError]:
    """By backbone, the plan of `preset` at LONG times the native length, or why that backbone cannot run it. only: on this one."""
    plans: dict[str, Plan | UsageError] = {}
    for name, spec in SPECS.items() if only is None else [(only.name, only)]:
        long = preset.model_copy(update={"sample": Sample(frames=length_px(spec, LONG)), "backbone_samples": {}})
        try:
            plans[name] = build(long, as_if_probed(spec), conditions=stand_in(spec))
        except UsageError as error:
            plans[name] = error
    return plans


def stand_in(spec: BackboneSpec) -> Conditions:
    """Grey pictures for a backbone that cannot do without any: what plans and measurements have where none are given."""
    picture = pictures.read(GREY) if spec.picture_needed else None
    return Conditions(picture, picture if spec.last_picture_needed else None)


def as_if_probed(spec: BackboneSpec) -> BackboneSpec:
    """`spec` with verdicts on its layers, as after a probe, which may name any layer."""
    return spec if spec.verdicts else replace(spec, verdicts=dict.fromkeys(VERDICTS, tuple(range(spec.layers))))
