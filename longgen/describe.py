"""Plans, presets, backbones and techniques as text for people and as plain data for JSON. Prints nothing."""

from __future__ import annotations

import inspect
import itertools
import json
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longgen import catalog, cost, measured, naming
from longgen import preset as presets
from longgen.attention.lowering import lower
from longgen.backbones.registry import SPECS
from longgen.backbones.spec import BackboneSpec
from longgen.cards import Card
from longgen.conditions import options
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Pass, full_attention
from longgen.memory import Memory
from longgen.pictures import Picture
from longgen.plan import Plan
from longgen.planner import LONG, on_every_backbone
from longgen.preset import Preset
from longgen.run_settings import STORED_MODEL_SETTINGS
from longgen.sampling.chain import SEED_STRIDE
from longgen.sight import row_label, slot_lines
from longgen.stack import PlacedTechnique
from longgen.technique import LONGEST, FrameTechnique, Technique
from longgen.terminal import aligned, cut_to_width, fitted, hanging, refilled
from longgen.textfile import on_one_line, visible
from longgen.units import about_time, count_label, human_bytes, short

SHADES = " ░▒▓█"
WIDTH = 80  # columns of what is said of a technique
MAP_SIDE = 40  # characters across a picture of a table
PICTURED = 1  # passes of a branch whose table is drawn; the others look like it, shifted


def frames_of(spec: BackboneSpec) -> str:
    """What the frames are called that attention sees."""
    return "latent frames" if spec.token_lat == 1 else f"token frames of {spec.token_lat} latent frames"


def plan_text(plan: Plan, dtype: str, offload: str, tables: bool = True, notes: bool = True, card: Card | None = None) -> str:
    """What would run: techniques, tables, cost and memory; and the time that sampling may take on `card`."""
    spec, sample = plan.spec, plan.sample
    width, height = plan.size
    shift = flow_shift_label(spec, sample.flow_shift, plan.token_shift)
    lines = [
        on_one_line(f"{plan.preset.name} on {spec.name}"),
        f"  {plan.written_px} frames, {plan.duration_s:.1f} s at {sample.fps} fps, {width}x{height}",
        f"  {plan.frames_lat} {frames_of(spec)} ({spec.native_lat} native), {plan.tokens:,} tokens,"
        f" {plan.steps} step{'s' * (plan.steps != 1)}, guidance {sample.guidance_scale:g}{', ' * bool(shift)}{shift}",
        *_start_lines(plan),
        "",
    ]
    for placed in plan.techniques:
        slot = placed.technique.slot
        slots = f"noise and {slot}" if placed.makes_noise and slot != "noise" else slot
        lines.append(f"technique {placed.name} ({slots}; {placed.technique.paper})")
        if slot not in ("sampling", "noise"):
            lines.append(f"  layers {count_label(placed.layers, spec.layers)}; steps {count_label(placed.steps, plan.steps)}")
        lines.append("  " + ", ".join(
            f"{key} = {'auto' if value is None else str(value).lower() if isinstance(value, bool) else value}"
            for key, value in _parameters(placed).items()))  # fmt: skip
    if not plan.techniques:
        lines.append("no technique: the backbone's own attention")
    lines += [on_one_line(f"LoRA of the preset: {text}") for text in plan.preset.lora_on(spec)]
    for number, shot in enumerate(plan.schedule.shots if plan.schedule else (), start=1):
        begins = "cut: " * shot.cut if shot.image is None else f"with {_picture_label(shot.image)}: "
        lines.append(f"shot {number} from {float(shot.at):g} s: {begins}{on_one_line(shot.prompt)}")
    if plan.chunk_lat is not None:
        lines += [
            "",
            f"{plan.rounds} chunk{'s' * (plan.rounds != 1)} of {plan.chunk_lat} latent frame{'s' * (plan.chunk_lat != 1)}"
            + f" after {plan.given_lat} that are given" * bool(plan.given_lat)
            + f", the first in {plan.first_steps} steps" * (plan.first_steps != plan.steps)
            + f", {plan.slots_lat} frames{_memory_label(plan.memory)} in the cache; the last chunk:",
        ]
    elif plan.clips:
        lines += ["", *_chain_lines(plan, tables)]
    elif plan.sampling is not None:
        lines += ["", f"the model sees {plan.call_geometry.frames_lat} latent frames at a time, {plan.calls:.3g} times a step"]
    for name, (frame_plan, layers, steps), others in _branches_drawn(plan):
        lines += ["", f"branch {name}: layers {count_label(tuple(layers), spec.layers)};"
                      f" steps {count_label(tuple(steps), plan.steps)}"]  # fmt: skip
        if others:
            densities = [each.density for each in (frame_plan, *others.values())]
            lines.append(f"  the first of {len(densities)} tables, which follow one another step by step (to {[*others][-1]}):")
            lines.append(f"  {min(densities):.3f} to {max(densities):.3f} of all token pairs")
        lines += ["  " + line for line in branch_lines(frame_plan, tables)]
    if plan.chunk_lat is not None and tables and not (plan.table == 0).all():
        program = plan.programs[plan.table[0, 0]]
        for name in ["main"] if program is None else program.branches:
            heads = "" if name == "main" else f", by heads of {name}"
            lines += ["", f"what the chunks see, in the first layer and step{heads}:"]
            lines += ["  " + row for row in picture(_history(plan, name))]
    for start in plan.cut_starts:
        programs, table = plan.programs_for_cut(start)
        cut = programs[table[0, 0]]
        assert cut is not None
        lines += ["", f"the cut at latent frame {start}, in the first layer and step; the times are those of this chunk alone:"]
        for name, frame_plan in cut.branches.items():
            lines += [f"  heads of {name}:"] if cut.heads else []
            lines += ["  " + line for line in branch_lines(frame_plan, tables)]
    memory = cost.memory_bytes(plan, dtype, offload)
    lines += [
        "",
        f"floor: {cost.ratio(plan):.2f} ({cost.FLOOR}; of attention alone {cost.attention_ratio(plan):.2f})",
        f"memory estimate ({dtype}, offload {offload}): {human_bytes(memory['peak'])}"
        f" = transformer {human_bytes(memory['weights'])}, activations {human_bytes(memory['activations'])},"
        f" text encoder and VAE {human_bytes(memory['companions'])}",
        *([] if card is None else [f"time estimate: about {about_time(cost.seconds(plan, card, dtype))} on {card.title}, estimated "
                                   f"from its rates and not measured; sampling alone{', without offload' * (offload != 'none')}"]),
        *(f"note: {note}" for note in (plan.notes if notes else ())),
    ]  # fmt: skip
    return "\n".join(lines)


def _branches_drawn(plan: Plan) -> Iterator[tuple[str, tuple[FramePlan, list[int], list[int]], dict[str, FramePlan]]]:
    """The branches of `plan`, and with each those like it which are not drawn: a technique moves them on from step to step."""
    branches = plan.branches()
    moving = any(isinstance(placed.technique, FrameTechnique) and placed.technique.at_step(step, plan.call_geometry)
                 is not placed.technique for placed in plan.techniques for step in placed.steps)  # fmt: skip
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, (_, layers, steps) in branches.items():
        active = tuple(placed.name for placed in plan.techniques if steps[0] in placed.steps)
        alike.setdefault((name.partition("-")[0], *layers, *active) if moving else (name,), []).append(name)
    for first, *others in alike.values():
        yield first, branches[first], {name: branches[name][0] for name in others}


def _chain_lines(plan: Plan, drawn: bool) -> list[str]:
    """The clips of a chain: how many, what each begins with, and a picture, given frames in a light shade."""
    clips, length = plan.clips, plan.call_geometry.frames_lat
    later = next((clip for clip in clips if not clip.begins), None)
    past = f"{plan.given_lat} latent frame{'s' * (plan.given_lat != 1)} of the earlier video" if plan.given_lat else "noise"
    start = "its picture" if plan.conditions.image else past
    lines = [f"{len(clips)} clips of {length} latent frames, one after the other; the first begins with {start}"]
    if later is not None:
        first, last = "the first frame of the video and " * later.reference, f"{later.carried} " * (later.carried > 1)
        lines.append(f"a later one begins with {first}the last {last}of the one before, and adds {length - later.given}")
    if plan.cuts:
        lines.append(f"shots with a picture begin clips of their own: latent frames {', '.join(map(str, plan.cuts))}")
    lines.append(f"seed of a clip: the run's, and {SEED_STRIDE} more with each")
    if drawn:
        rows = np.zeros((2 * min(len(clips), MAP_SIDE), plan.frames_lat))
        for row, clip in zip(rows[::2], clips, strict=False):
            row[clip.start - clip.carried : clip.start] = row[: clip.reference] = 0.25
            row[clip.start : clip.start + clip.new] = 1
            row[: plan.given_lat * (clip.start == 0)] = 0.25
        rows[1::2] = rows[::2]
        lines += ["  " + row for row in picture(rows)]
    return lines


def flow_shift_label(spec: BackboneSpec, chosen: float | None = None, by_tokens: float | None = None) -> str:
    """The flow shift that sampling uses, and whose it is; empty where there is none. by_tokens: the backbone's for a clip."""
    if chosen is None and spec.fixed_shift is not None:
        return ""
    if chosen is None and spec.sigmas:
        return "noise levels of its own"
    if chosen or spec.flow_shift:
        return f"flow shift {chosen or spec.flow_shift:g}"
    if spec.checkpoint_shift is not None:
        return f"flow shift {spec.checkpoint_shift:g} (the checkpoint's own)"
    if spec.token_shift is not None:
        return f"flow shift {short(by_tokens)} (by the number of tokens)" if by_tokens else "flow shift by the number of tokens"
    return "the checkpoint's own flow shift"


def _start_lines(plan: Plan) -> list[str]:
    """What the video starts from, and how much of it that gives."""
    conditions = plan.conditions
    named = [f"{option} {_picture_label(picture)}" for option, picture in conditions.pictures.items()]
    if conditions.past is not None:
        past = conditions.past
        width, height = past.size
        count = f"{past.frames_px} frame{'s' * (past.frames_px != 1)}"
        named.append(on_one_line(f"--continue {past.name} ({count}, {width}x{height}, {past.sha256[:12]})"))
    if not named:
        return []
    given = f"; {plan.given_lat} of {plan.frames_lat} latent frames are given" if plan.given_lat else ""
    return [f"  starts from {', '.join(named)}; fit {conditions.fit}{', joined' * conditions.join}{given}"]


def _picture_label(picture: Picture) -> str:
    """Name, size and the beginning of the hash of a picture."""
    width, height = picture.size
    return on_one_line(f"{picture.name} ({f'{width}x{height}, ' * bool(width)}{picture.sha256[:12]})")


def start_dict(plan: Plan) -> dict[str, Any] | None:
    """What the video starts from, as plain data; None where that is text alone."""
    conditions = plan.conditions
    if not conditions:
        return None
    past = conditions.past
    described: dict[str, Any] = {
        option.lstrip("-").replace("-", "_"): {"name": picture.name, "sha256": picture.sha256, "size": list(picture.size)}
        for option, picture in conditions.pictures.items()
    }
    if past is not None:
        described["continue"] = {"name": past.name, "sha256": past.sha256, "size": list(past.size), "frames": past.frames_px}
    return described | {"fit": conditions.fit, "join": conditions.join, "given_latent_frames": plan.given_lat}


def plan_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain data, with its cost but without its tables."""
    return {
        "name": plan.preset.name,
        "backbone": plan.spec.name,
        "frames": plan.written_px,
        "latent_frames": plan.frames_lat,
        **({"given_latent_frames": plan.given_lat} if plan.given_lat else {}),
        "native_latent_frames": plan.spec.native_lat,
        "duration_s": round(plan.duration_s, 3),
        "sample": plan.sample.model_dump(mode="json"),
        "techniques": [
            {"name": placed.name, "slot": placed.technique.slot, "paper": placed.technique.paper, "layers": list(placed.layers),
             "steps": list(placed.steps), "parameters": _parameters(placed)}
            for placed in plan.techniques
        ],
        "schedule": None if plan.schedule is None else plan.schedule.as_dict(),
        "starts_from": start_dict(plan),
        "seen_latent_frames": plan.call_geometry.frames_lat,
        "calls_per_step": round(plan.calls, 3),
        **({"clips": [clip._asdict() for clip in plan.clips]} if plan.clips else {}),
        "branches": [
            {"name": name, "layers": layers, "steps": steps, "passes": len(frame_plan.passes),
             "density": round(frame_plan.density, 6)}
            for name, (frame_plan, layers, steps) in plan.branches().items()
        ],
        "cost_ratio": round(cost.ratio(plan), 4),
        "attention_ratio": round(cost.attention_ratio(plan), 4),
        "notes": list(plan.notes),
    }  # fmt: skip


def _parameters(placed: PlacedTechnique) -> dict[str, Any]:
    return placed.technique.model_dump(mode="json", exclude={"layers", "steps"})


def branch_lines(plan: FramePlan, tables: bool) -> list[str]:
    """One frame plan: what a few query frames see, and a picture of `visible`."""
    rows, frames = plan.shape
    if plan.is_stock:
        sees = "every frame sees every frame" if rows == frames else "a chunk sees itself and all before"
        return [f"the backbone's own attention: {sees}, relative time i - j"]
    lines = []
    if plan.frequency_scale is not None:
        changed = np.flatnonzero(plan.frequency_scale != 1)
        named = [f"component {i + 1} x {plan.frequency_scale[i]:.4g}" for i in changed]
        few = named if len(named) <= 4 else [*named[:2], f"... {len(named) - 3} more ...", named[-1]]
        lines.append(f"temporal rotary frequencies: {', '.join(few)}")
    if plan.logit_scale != 1:
        lines.append(f"attention logits x {plan.logit_scale:.4g}")
    if plan.centred:
        lines.append("logits count from their query's mean")
    if plan.anchor:
        lines.append(f"keys and values with {plan.anchor:g} of those of the first clip")
    if plan.key_frames is not None:
        count = plan.key_frames.count(plan.frames_lat)
        lines.append(f"and {count} key frames for every frame, chosen from the layer's input as it runs")
    for index, pass_ in enumerate(plan.passes):
        if plan.sources is not None:
            lines += slot_lines(plan, pass_)
        elif rows < frames:
            chunk = f"frame {frames - 1} sees" if rows == 1 else f"frames {frames - rows} to {frames - 1} see"
            lines.append(f"{chunk} {row_label(pass_, 0)}")
        else:
            lines += _pass_lines(pass_, index, picture_it=tables and index < PICTURED and not pass_.visible.all())
    return lines


def _memory_label(memory: Memory | None) -> str:
    return "" if memory is None else f" and {memory.slots} slot{'s' * (memory.slots != 1)} of memory"


def _pass_lines(pass_: Pass, index: int, picture_it: bool) -> list[str]:
    """One pass: what its first, middle and last query frames see, and a picture."""
    calls = len(lower(pass_).calls)
    lines = [f"pass {index}: {pass_.density:.3f} of all token pairs, {calls} attention call{'s' * (calls != 1)}"]
    computed = np.flatnonzero(pass_.weight > 0)
    for i in sorted({int(computed[0]), int(computed[len(computed) // 2]), int(computed[-1])}):
        weighted = f", weight {pass_.weight[i]:.3g}" if pass_.weight[i] != 1 else ""
        lines.append(f"  frame {i:>3} sees {row_label(pass_, i)}{weighted}")
    if picture_it:
        share = 1 if pass_.band is None else np.minimum(pass_.band, 1)
        lines += ["  " + row for row in picture(pass_.visible * share)]
    return lines


def _history(plan: Plan, branch: str) -> np.ndarray:
    """What evenly spaced chunks of a rollout see in `branch`, one row per chunk: `visible` [chunks, T]."""
    chunks = plan.chunks
    table = np.zeros((min(len(chunks), MAP_SIDE), plan.rounds_lat))
    for row, index in enumerate(np.linspace(1, len(chunks), len(table)).round().astype(int).tolist()):
        start, count = chunks[index - 1]
        programs, steps = plan.programs_for_chunk(start + count, count)
        program = programs[steps[0, 0]]
        branches = {"main": full_attention(start + count, count)} if program is None else program.branches
        table[row, : start + count] = branches.get(branch, next(iter(branches.values()))).frames_shown
    return table


def picture(visible: np.ndarray) -> list[str]:
    """`visible` [Q, T], 0 to 1, drawn in characters, query frames downwards; the shade is the share of a cell that is visible."""
    across, down = (np.linspace(0, n, min(n, MAP_SIDE) + 1).round().astype(int) for n in reversed(visible.shape))
    rows = []
    for top, bottom in zip(down[:-1:2], [*down[2::2], len(visible)], strict=False):
        shares = [visible[top:bottom, a:b].mean() for a, b in itertools.pairwise(across)]
        rows.append("".join(SHADES[int(np.ceil(share * (len(SHADES) - 1)))] for share in shares).rstrip())
    return rows


# Backbones that costs are quoted for: the first that can run the preset.
COSTED = ("wan2.1-1.3b", "self-forcing", "wan2.2-ti2v-5b", "wan2.2-i2v-a14b")


def preset_row(preset: Preset, only: BackboneSpec | None = None) -> dict[str, Any]:
    """What `longgen presets list` says of a preset. cost_ratio: of all arithmetic, on COSTED, or on `only`, at LONG times its
    length.
    """
    plans, quality = on_every_backbone(preset, only), measured.presets().get(preset.name)
    if only is not None and quality is not None and quality["causal"] != only.causal:
        quality = None  # of a model of another kind
    costed = next((plan for plan in (plans[name] for name in (COSTED if only is None else plans)) if isinstance(plan, Plan)), None)
    return {
        "techniques": [catalog.name_of(technique) for technique in preset.techniques],
        "backbones": [name for name, plan in plans.items() if isinstance(plan, Plan)],
        "refused": {name: error.given for name, error in plans.items() if isinstance(error, UsageError)},
        "cost_ratio": None if costed is None else round(cost.ratio(costed), 3),
        "quality": quality,
    }


def presets_text(
    presets: list[dict[str, Any]], only: BackboneSpec | None = None, left_out: Sequence[str] = (), columns: int | None = None
) -> str:
    """A table of presets, each as its tables and `preset_row`, those to try first above. only: the backbone that they run on;
    left_out: those that do not. columns: of a terminal, on which lines are cut, and columns for which no room is left dropped.
    """
    rows: list[tuple[str, ...]] = [("preset", "cost", "quality", "techniques", "backbones", "paper")]
    for row in presets:
        ratio = "" if row["cost_ratio"] is None else f"{row['cost_ratio']:.2f}"
        techniques, source = " + ".join(row["techniques"]) or "none", row["source"].split(";")[0]
        rows.append((row["name"], ratio, measured.label(row["quality"]), techniques, backbones_label(row), source))
    if only is not None:
        rows = [(*row[:4], *row[5:]) for row in rows]
    if not any(row["quality"] for row in presets):
        rows = [(*row[:2], *row[3:]) for row in rows]
    hidden: list[str] = []
    while columns is not None and len(rows[0]) > 4 and len(aligned([row[:-1] for row in rows], left=6)[0]) + 12 > columns:
        hidden.insert(0, rows[0][-1])
        rows = [row[:-1] for row in rows]
    header, *lines = [line.rstrip() if columns is None else cut_to_width(line.rstrip(), columns) for line in aligned(rows, left=6)]
    first = sum(row["try_first"] for row in presets)
    facts = [f"cost: {cost.FLOOR} at {LONG} times the native length, on {only.name if only else ' or else '.join(COSTED)}"]
    if any(row["quality"] for row in presets):
        facts.append("quality: clips that keep the kind of motion and the colour asked for, on tiny at 4 times its length, of "
                     "rollouts on tiny-causal-unsaid at 12; empty: not measured (longgen docs experiments/rivals)")  # fmt: skip
    if left_out:
        facts.append(f"not on {only.name if only else 'it'}: {', '.join(left_out)}")
    if hidden:
        facts.append(f"no room here for {' and '.join(hidden)}: a wider terminal or --json shows more")
    facts = [hanging("", fact, columns) for fact in facts]
    return "\n".join(["to try first", header, *lines[:first], "", "the others", *lines[first:], "", *facts])


def backbones_label(row: Mapping[str, Any]) -> str:
    """The backbones that can run the preset of `preset_row`, in few words."""
    able, refused = row["backbones"], row["refused"]
    causal = {name for name, spec in SPECS.items() if spec.causal}
    if causal.issuperset(able):
        return "causal" if causal.isdisjoint(refused) else ", ".join(able) or "none"
    if len(able) < 3:
        return ", ".join(able)
    left_out = ["causal"] if causal.issubset(refused) else sorted(causal.intersection(refused))
    left_out += [name for name in refused if name not in causal]
    texts = [", ".join(able), "all but " + ", ".join(left_out)]
    return min(texts, key=len) if left_out else "all"


def command_again(settings: Mapping[str, Any], video: Path) -> str:
    """The shell command that reproduces `video` from the settings stored in it and a preset in THIS.toml.

    Every setting is a flag, so that no LONGGEN_* variable can override it.
    """
    words = ["longgen generate", "--preset THIS.toml", _flag("seed", settings["seed"]), _flag("backbone", settings["backbone"])]
    words += [_flag(name, value) for name, value in settings["sample"].items() if value is not None]
    words += [_flag(name, value) for name, value in options(settings, naming.run_folder(video.absolute()))]
    for name in STORED_MODEL_SETTINGS:
        for value in settings[name] if name == "lora" and name in settings else [settings.get(name)]:
            words += [] if value is None or value is False else [_flag(name, value)]
    if settings.get("schedule") is None:
        return " ".join([words[0], _flag("prompt", settings["prompt"]), *words[1:]])
    shots = f"longgen inspect {_quoted(str(video.absolute()))} --shots"
    return " ".join([f"{shots} | {words[0]} --schedule -", *words[1:]])


def _flag(name: str, value: Any) -> str:
    """`--name VALUE` for a shell."""
    text = "x".join(map(str, value)) if name == "size" else str(value)
    option = f"--{name.replace('_', '-')}"
    return option if value is True else f"{option}{'=' if text.startswith('-') else ' '}{_quoted(text)}"


def _quoted(text: str) -> str:
    """`text` quoted as one word for a POSIX shell, on one line and without control characters."""
    if visible(text) == text and "\n" not in text and "\t" not in text:
        return shlex.quote(text)
    strips = text.endswith("\n")  # which command substitution would do
    special, byte = ("'\\", "\\x{:02x}") if strips else ("\\", "\\0{:03o}")
    escaped = ""
    for character in text:
        shown = character not in "\n\t" and visible(character) == character
        escaped += "\\" * (character in special) + character if shown else "".join(map(byte.format, character.encode()))
    return f"$'{escaped}'" if strips else f'"$(printf %b {shlex.quote(escaped)})"'


# Techniques


def header(technique: type[Technique]) -> str:
    """The docstring of the technique's module: paper, equations, constants and their sources."""
    return inspect.cleandoc(inspect.getmodule(technique).__doc__ or technique.__doc__ or "")


def technique_row(name: str, technique: type[Technique]) -> dict[str, Any]:
    """What `longgen techniques list` shows of a technique."""
    summary = " ".join(header(technique).partition("\n\n")[0].split())
    return {"name": name, "slot": technique.slot, "paper": technique.paper, "summary": summary, "origin": catalog.origin(name)}


def technique_rows() -> list[dict[str, Any]]:
    """A row for each technique that a preset can name; one that cannot be imported has the error in place of a summary."""
    rows = []
    for name in catalog.names():
        try:
            rows.append(technique_row(name, catalog.technique(name)))
        except UsageError as error:
            rows.append({"name": name, "slot": "unusable", "paper": "", "summary": error.given, "origin": catalog.origin(name)})
    return rows


def techniques_text(rows: list[dict[str, Any]], columns: int | None = None) -> str:
    """`technique_rows` by slot, in lines of at most WIDTH columns, or those of a narrower terminal."""
    indent = " " * (4 + max(len(row["name"]) for row in rows))
    lines = []
    for slot in dict.fromkeys([*catalog.SLOTS, *(row["slot"] for row in rows)]):
        lines.append(slot)
        for row in (row for row in rows if row["slot"] == slot):
            source = row["paper"] + ("" if row["origin"] == "built in" else f" [{row['origin']}]")
            lines += [hanging(f"  {row['name']:<{len(indent) - 2}}", source, columns), *_wrapped(row["summary"], indent, columns)]
    return "\n".join(lines)


def technique_dict(name: str, allow_code: bool = False) -> dict[str, Any]:
    """Everything that `longgen techniques show` shows of the technique `name`. Raises UsageError."""
    technique = catalog.technique(name, allow_code)
    tables = {shipped: presets.parse_file(presets.folder() / f"{shipped}.toml") for shipped in presets.names()}  # none imported
    alone = preset_row(Preset(name=name, techniques=(technique(),)))
    return technique_row(name, technique) | {
        "header": header(technique),
        "parameters": _parameter_rows(technique),
        "exclusive": list(technique.exclusive),
        "requires": list(technique.requires),
        "backbones": alone["backbones"],
        "unsupported": alone["refused"],
        "presets": [shipped for shipped, table in tables.items() if any(row["name"] == name for row in table.get("technique", []))],
        "cost_ratio": alone["cost_ratio"],
    }


def technique_text(shown: dict[str, Any], columns: int | None = None) -> str:
    """`technique_dict` for people."""
    title = f"{shown['name']} ({shown['slot']}; {shown['paper']}; {shown['origin']})"
    lines = [refilled(title, columns), "", *fitted(shown["header"], columns), "", "parameters"]
    settings = {f"  {key} = {row['default']}": row for key, row in shown["parameters"].items()}
    column = 2 + max(map(len, settings))
    for setting, row in settings.items():
        about = "; ".join(filter(None, (row["type"], row["description"])))
        lines += _wrapped(about, " " * column, columns, f"{setting:<{column}}")
    auto = any(setting.endswith("auto") for setting in settings)
    lines.append(refilled("  auto: decided by the clip's length and the backbone", columns) if auto else "")
    costed = next((name for name in COSTED if name in shown["backbones"]), None)
    ratio = shown["cost_ratio"]
    cost = "" if ratio is None else f"{ratio:.2f} times direct sampling, at {LONG} times the native length of {costed}"
    facts = {
        "decides alone": ", ".join(shown["exclusive"]) or "nothing",
        "in presets": ", ".join(shown["presets"]) or "none",
        "cost": cost or f"unknown: it runs on neither {' nor '.join(COSTED)}",
        "runs on": ", ".join(shown["backbones"]) or "none",
    }
    lines += [""] if lines[-1] else []
    for key, value in facts.items():
        lines += _wrapped(value, " " * 15, columns, f"{key:<15}")
    by_reason: dict[str, list[str]] = {}
    for backbone, reason in shown["unsupported"].items():
        by_reason.setdefault(reason.replace(backbone, "the backbone"), []).append(backbone)
    for number, (reason, backbones) in enumerate(by_reason.items()):
        lines += _wrapped(f"{', '.join(backbones)}: {reason}", " " * 15, columns, f"{'' if number else 'not on':<15}")
    return "\n".join(lines)


def _parameter_rows(technique: type[Technique]) -> dict[str, dict[str, str]]:
    """By name, each parameter's type with its range, default and description; the technique's own before those of all."""
    schema = technique.model_json_schema()
    fields = sorted(technique.model_fields.items(), key=lambda field: field[0] in Technique.model_fields)
    return {
        key: {
            "type": _type(schema["properties"][key]),
            "default": "auto" if field.default is None else json.dumps(field.default),
            "description": field.description or "",
        }
        for key, field in fields
    }


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema as words: "integer, 1 to 8"."""
    if "anyOf" in schema:
        return " or ".join(_type(inner) for inner in schema["anyOf"] if inner.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        items = schema.get("prefixItems")
        return f"[{', '.join(map(_type, items))}]" if items else f"[{_type(schema['items'])}, ...]"
    bounds = {"minimum": "from {:g}", "exclusiveMinimum": "above {:g}", "maximum": "to {:g}", "exclusiveMaximum": "below {:g}"}
    limits = [text.format(schema[key]) for key, text in bounds.items() if key in schema and schema[key] != LONGEST]
    return " ".join([schema["type"], *limits])


def _wrapped(text: str, indent: str, columns: int | None, first: str | None = None) -> list[str]:
    width = max(40, min(columns or WIDTH, WIDTH))
    indent = indent if len(indent) <= width // 2 else "    "
    return textwrap.wrap(text, width, initial_indent=indent if first is None else first, subsequent_indent=indent,
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip
