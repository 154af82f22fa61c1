"""What presets do to a built-in model at a length it was not trained for, as a table.

    python -m longgen.backbones.tiny.effect --preset direct --preset freespec ... [--image] [--backbone tiny] [--frames 321]
        [--prompts 8] [--seeds 2] [--set technique.key=value ...] [--output effect.jsonl] [--json]

A preset may be followed by values of its own, `--preset flex,ans.noise=false`, and by `@all`, `@none` or `@random:1` for the layers
that it leaves to a probe. Every preset makes the same clips: the first
held-out sentences, and the same seeds. A line of `--output` is one clip; existing clips are not generated again, so
that a run can be stopped, or shared by several processes. Columns:

    colour kept   share of clips whose object has one and the same colour, that of the prompt if it says one, in the first and in
                  the last second, of the eight that have a name
    shift         how far the object's colour in the last second is from that in the first, in levels of 255
    one object    share of frames with exactly one object
    motion        share of clips whose tracked motion is that of the prompt
    speed         the object's mean speed, against the model's own 81-frame clips of the same sentences and seeds
    still         share of clips slower than half of that clip's 81-frame counterpart
    drift         mean change of brightness, either way, from the first to the last 81 frames, in levels of 255

With `--image` every clip of a sentence starts from one picture, the first frame of a rendered clip of it, and further columns are

    first frame   share of clips whose first frame is the picture, as nearly as the VAE alone gives it
    start         how much more the picture changes to the second frame than from frame to frame beside it
    seam          the same at the technique's own boundaries, as in `longgen compare`; empty where it has none

`--against NAME` also lists where a preset differs from that one by more than chance makes of its clips, and how many such findings
chance alone would make: a signed-rank test of the pairs of one sentence and seed, at p below 0.01.

`--json` also has the median sampling time of a clip, in seconds.

`longgen.metrics.tiny_reading` and `longgen.backbones.tiny.start` say how each is read off the frames. The models are those
of `longgen.backbones.tiny.models`; nothing follows for others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from longgen import catalog, planner, preset
from longgen.backbones import defaults, settings, tiny_grammar
from longgen.backbones.tiny import start
from longgen.backbones.tiny.models import SPECS, held_out
from longgen.compare.grid import seams
from longgen.conditions import NOTHING
from longgen.errors import UsageError
from longgen.layers import selection
from longgen.loops import sample
from longgen.metrics import tiny_reading
from longgen.pipelines import base, loading
from longgen.plan import Plan

NATIVE = "81 frames"  # the row of the model's own clips, which speed is measured against
NATIVE_PX = 81
MEANS = ("kept", "shift", "one_object", "motion", "drift", "first_frame", "picture_db", "start", "seam")
COLUMNS = {  # of the table: title and format
    "first_frame": ("first frame", ".1%"), "kept": ("colour kept", ".1%"), "one_object": ("one object", ".1%"),
    "motion": ("motion", ".1%"), "start": ("start", ".2f"), "seam": ("seam", ".2f"), "speed": ("speed", ".2f"),
    "still": ("still", ".0%"), "drift": ("drift", ".2f"), "shift": ("shift", ".1f"),
}  # fmt: skip
TESTED, LEAST_P = ("kept", "shift", "one_object", "motion", "speed_px", "drift"), 0.01
KEY = ("backbone", "preset", "frames", "prompt", "seed", "image")  # what tells one clip from another


def clip(backbone: base.PipelineBackbone, plan: Plan, words: tiny_grammar.Words, seed: int) -> dict[str, Any]:
    """Generates and measures one clip."""
    import torch

    from longgen.loops.denoiser import Denoiser

    generator = torch.Generator().manual_seed(seed)
    denoiser = Denoiser(backbone, plan, words.prompt, backbone.given(plan, generator))
    noise, began = denoiser.initial_noise(generator), time.monotonic()
    latents = sample(denoiser, noise, generator)
    seconds = time.monotonic() - began
    frames = np.concatenate(list(backbone.decode(latents)))
    reading = tiny_reading.read(frames)
    levels = frames.mean(axis=(1, 2, 3))
    drift = abs(float(levels[-NATIVE_PX:].mean() - levels[:NATIVE_PX].mean()))
    second = plan.spec.fps
    ends = [Counter(part).most_common(1)[0][0] for part in (reading.colour[:second], reading.colour[-second:])]
    kept = float(ends == [words.colour or ends[0] or "an object"] * 2)
    measures = tiny_reading.score(reading, words) | {"kept": kept, "drift": drift, "seconds": round(seconds, 2)}
    measures["shift"] = tiny_reading.colour_shift(reading, second)
    if plan.conditions:
        measures |= start.score(frames, plan.conditions, backbone.pipe.vae) | {"seam": start.seam(frames, seams(plan))}
    return measures


def measured(
    model: str, names: list[str], frames_px: int, prompts: int, seeds: int, sets: list[str], output: Path, image: bool = False
) -> dict[str, list[dict]]:
    """Every clip's measures by preset, those of `NATIVE` first; clips that `output` lacks are generated and appended to it."""
    spec = SPECS[model]
    presets: dict[str, tuple[preset.Preset, tuple[str, ...]]] = {NATIVE: (preset.load("direct"), ())}
    for name in names:
        base, *overrides = name.split(",")
        base, how = selection.split_name(base)
        techniques = {catalog.name_of(technique) for technique in preset.load(base).techniques}
        overrides += [override for override in sets if override.split(".")[0] in techniques]
        presets[name] = selection.resolve_layers(preset.load(base, overrides, preset.Sample(frames=frames_px)), spec, how)
    done = {}
    if output.is_file():
        for line in output.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            done[tuple({"image": False, **row}[key] for key in KEY)] = row
    backbone = None
    rows: dict[str, list[dict]] = {name: [] for name in presets}
    with tempfile.TemporaryDirectory() as folder:
        for number, words in enumerate(held_out(model)[:prompts]):
            given = start.conditions_of(words, 1000 * number, Path(folder)) if image else NOTHING
            plans = {name: planner.build(made, spec, notes=notes, conditions=given) for name, (made, notes) in presets.items()}
            for seed in range(1000 * number, 1000 * number + seeds):
                for name, plan in plans.items():
                    key = (model, name, plan.frames_px, words.prompt, seed, image)
                    if key not in done:
                        backbone = backbone or loading.load(spec, settings.ModelSettings(defaults.default_device(), "fp32"))
                        row = dict(zip(KEY, key, strict=True)) | clip(backbone, plan, words, seed)
                        with output.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
                        print(json.dumps(row), file=sys.stderr, flush=True)
                        done[key] = row
                    rows[name].append(done[key])
    return rows


def summary(rows: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """One line of the table for each preset."""
    native = np.array([row["speed_px"] for row in rows[NATIVE]])
    lines = []
    for name, clips in rows.items():
        speed = np.array([row["speed_px"] for row in clips])
        values = {key: np.array([row[key] for row in clips], dtype=float) for key in MEANS if key in clips[0]}
        mean = {key: float(np.nanmean(value)) for key, value in values.items() if np.isfinite(value).any()}
        lines.append({"name": name, **mean, "speed": float(np.nanmean(speed) / np.nanmean(native)),
                      "still": float(np.mean(speed < native / 2)), "clips": len(clips),
                      "seconds": float(np.median([row["seconds"] for row in clips]))})  # fmt: skip
    return lines


def differences(rows: dict[str, list[dict]], against: str) -> list[str]:
    """Where the clips of a preset differ from those of `against`, a sentence each, and last how many tests there were."""
    from scipy.stats import wilcoxon

    lines, tests = [], 0
    for name in [name for name in rows if name not in (NATIVE, against)]:
        for key in TESTED:
            values, base = (np.array([row.get(key, np.nan) for row in rows[which]], dtype=float) for which in (name, against))
            change = (values - base)[np.isfinite(values - base)]
            if not change.any():
                continue
            tests += 1
            p = wilcoxon(change).pvalue
            if p < LEAST_P:
                lines.append(f"{name}: {key} {np.nanmean(values):.3f}, {against} {np.nanmean(base):.3f}; p = {p:.4f}")
    return [*lines, f"{tests} tests at p below {LEAST_P}: chance alone makes {tests * LEAST_P:.1f} such lines"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", required=True, metavar="NAME[,technique.key=value]")
    parser.add_argument("--backbone", choices=tuple(SPECS), default="tiny")
    parser.add_argument("--image", action="store_true", help="start every clip from a picture")
    parser.add_argument("--frames", type=int, default=321)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="applied to the presets that have the technique")
    parser.add_argument("--against", metavar="NAME", help="one of the presets: lists what differs from it")
    parser.add_argument("--output", type=Path, default=Path("effect.jsonl"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.against not in (None, *args.preset):
        parser.error(f"--against {args.against}: it is none of --preset {', '.join(args.preset)}")
    try:
        asked = (args.frames, args.prompts, args.seeds, args.set, args.output, args.image)
        rows = measured(args.backbone, args.preset, *asked)
    except UsageError as error:
        sys.exit(f"effect: {error}")
    lines = summary(rows)
    if args.json:
        print(json.dumps(lines))
        return
    columns = {key: title for key, (title, _) in COLUMNS.items() if any(key in line for line in lines)}
    print(f"| preset | {' | '.join(columns.values())} |\n{'|---' * (1 + len(columns))}|")
    for line in lines:
        values = (format(line[key], COLUMNS[key][1]) if key in line else "" for key in columns)
        print(f"| `{line['name']}` | {' | '.join(values)} |")
    if args.against:
        print("", *differences(rows, args.against), sep="\n")


if __name__ == "__main__":
    main()
