"""Plans, presets and backbones as text for people. Makes strings; prints nothing."""

from __future__ import annotations

import itertools

import numpy as np

from longgen.attention.structure import analyse
from longgen.backbones.spec import TINY, BackboneSpec
from longgen.backbones.tiny import grammar
from longgen.frameplan import FramePlan
from longgen.plan import Plan, count_label, human_bytes
from longgen.preset import Preset, name_of

SHADES = " ░▒▓█"
MAP_SIDE = 40  # characters across a picture of a table


def plan_text(plan: Plan, dtype: str, offload: str, tables: bool = True) -> str:
    """What would run: techniques, tables, cost and memory."""
    spec, sample = plan.spec, plan.sample
    width, height = plan.size
    lines = [
        f"{plan.preset.name} on {spec.name}",
        f"  {plan.frames_px} frames, {plan.duration_s:.1f} s at {sample.fps} fps, {width}x{height}",
        f"  {plan.frames_lat} latent frames ({spec.native_lat} native), {plan.tokens:,} tokens,"
        f" {plan.steps} steps, guidance {sample.guidance_scale:g}",
        "",
    ]
    for act in plan.acting:
        lines.append(f"technique {act.name} ({act.technique.slot}; {act.technique.paper})")
        lines.append(f"  layers {count_label(act.layers, spec.layers)}; steps {count_label(act.steps, plan.steps)}")
        parameters = act.technique.model_dump(mode="json", exclude={"layers", "steps"})
        lines.append("  " + ", ".join(f"{key} = {value if value is not None else 'native'}" for key, value in parameters.items()))
    if not plan.acting:
        lines.append("no technique: the backbone's own attention")
    for name, (frame_plan, layers, steps) in plan.branches().items():
        lines += ["", f"branch {name}: layers {count_label(tuple(layers), spec.layers)};"
                      f" steps {count_label(tuple(steps), plan.steps)}"]  # fmt: skip
        lines += ["  " + line for line in branch_lines(frame_plan, tables)]
    memory = plan.memory_bytes(dtype, offload)
    lines += [
        "",
        f"cost against direct sampling: {plan.cost:.2f} of all arithmetic, {plan.attention_cost:.2f} of attention",
        f"memory estimate ({dtype}, offload {offload}): {human_bytes(memory['peak'])}"
        f" = transformer {human_bytes(memory['weights'])}, activations {human_bytes(memory['activations'])},"
        f" text encoder and VAE {human_bytes(memory['companions'])}",
        *(f"note: {note}" for note in plan.notes),
    ]
    return "\n".join(lines)


def branch_lines(plan: FramePlan, tables: bool) -> list[str]:
    """One frame plan: what a few query frames see, and a picture of `visible`."""
    if plan.is_neutral:
        return ["the backbone's own attention: every frame sees every frame, relative time i - j"]
    lines = []
    if plan.scale is not None:
        changed = ", ".join(f"component {i + 1} x {plan.scale[i]:.4g}" for i in np.flatnonzero(plan.scale != 1))
        lines.append(f"temporal rotary frequencies: {changed}")
    for index, one in enumerate(plan.passes):
        calls = len(analyse(one).calls)
        lines.append(f"pass {index}: {one.visible.mean():.3f} of all frame pairs, {calls} attention call{'s' * (calls != 1)}")
        frames = plan.frames_lat
        for i in sorted({0, frames // 2, frames - 1}):
            seen = tuple(np.flatnonzero(one.visible[i]).tolist())
            rel = one.rel[i, one.visible[i]]
            lines.append(f"  frame {i:>3} sees {count_label(seen, frames)}, at relative times {rel.max():g} to {rel.min():g}")
        if tables and not one.visible.all():
            lines += ["  " + row for row in picture(one.visible)]
    return lines


def picture(visible: np.ndarray) -> list[str]:
    """`visible` [T, T] as rows of characters, query frames downwards; the shade is the share of a cell that is visible."""
    frames = len(visible)
    edges = np.linspace(0, frames, min(frames, MAP_SIDE) + 1).round().astype(int)
    rows = []
    for top, bottom in zip(edges[:-1:2], [*edges[2::2], frames], strict=False):
        shares = [visible[top:bottom, a:b].mean() for a, b in itertools.pairwise(edges)]
        rows.append("".join(SHADES[int(np.ceil(share * (len(SHADES) - 1)))] for share in shares).rstrip())
    return rows


def backbone_text(spec: BackboneSpec) -> str:
    """What is known of a backbone; for `tiny` also the sentences that it knows."""
    rows = {
        "what": spec.about,
        "weights": "in the package" if spec is TINY else spec.source,
        "license": spec.license,
        "native": f"{spec.native_px} frames ({spec.native_lat} latent), {spec.size[0]}x{spec.size[1]}, {spec.fps} fps",
        "lengths": f"{spec.stride_t}n+1 frames",
        "sizes": "width a multiple of {}, height of {}".format(*spec.size_multiple),
        "defaults": f"{spec.steps} steps, guidance {spec.guidance_scale:g}, {spec.dtype}",
        "transformer": f"{spec.layers} layers, {spec.heads} heads x {spec.head_dim}, {spec.parameters / 1e6:,.0f}M parameters",
        "can": ", ".join(spec.capabilities),
    }
    text = "\n".join([spec.name, *(f"  {key:<12}{value}" for key, value in rows.items())])
    if spec.name == "tiny":
        text += "\n\nprompts it knows:\n" + grammar.describe()
    return text


def preset_line(preset: Preset) -> str:
    techniques = " + ".join(name_of(technique) for technique in preset.techniques)
    return f"{preset.name:<16}{techniques or 'no technique':<16}{preset.description}"
