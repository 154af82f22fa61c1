"""What presets do to a built-in model at a length it was not trained for, as a table.

    python -m longgen.backbones.tiny.effect --preset direct --preset freespec ... [--backbone tiny] [--frames 321] [--prompts 8]
                                            [--seeds 2] [--set technique.key=value ...] [--output effect.jsonl] [--json]

A preset may be followed by values of its own, `--preset flex,ans.noise=false`, and by `@all`, `@none` or `@random:1` for the layers
that it leaves to a probe. Every preset makes the same clips: the first
held-out sentences, and the same seeds. A line of `--output` is one clip; existing clips are not generated again, so
that a run can be stopped, or shared by several processes. Columns:

    colour kept   share of clips whose object has one and the same colour, that of the prompt, in the first and in the last second
    one object    share of frames with exactly one object
    motion        share of clips whose tracked motion is that of the prompt
    speed         the object's mean speed, against the model's own 81-frame clips of the same sentences and seeds
    still         share of clips slower than half of that clip's 81-frame counterpart
    drift         mean change of brightness, either way, from the first to the last 81 frames, in levels of 255

`--json` also has the median sampling time of a clip, in seconds.

`longgen.metrics.tiny_reading` says how each is read off the frames. The models are `tiny` and `tiny-causal`; nothing follows
for others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from longgen import catalog, planner, preset
from longgen.backbones import defaults, settings, tiny_grammar
from longgen.backbones.registry import SPECS
from longgen.errors import UsageError
from longgen.layers import selection
from longgen.loops import sample
from longgen.metrics import tiny_reading
from longgen.pipelines import base, loading
from longgen.plan import Plan

NATIVE = "81 frames"  # the row of the model's own clips, which speed is measured against
NATIVE_PX = 81
KEY = ("backbone", "preset", "frames", "prompt", "seed")  # what tells one clip from another


def clip(backbone: base.PipelineBackbone, plan: Plan, words: tiny_grammar.Words, seed: int) -> dict[str, Any]:
    """Generates and measures one clip."""
    import torch

    from longgen.loops.denoiser import Denoiser

    generator = torch.Generator().manual_seed(seed)
    denoiser = Denoiser(backbone, plan, words.prompt)
    noise, began = denoiser.initial_noise(generator), time.monotonic()
    latents = sample(denoiser, noise, generator)
    seconds = time.monotonic() - began
    frames = np.concatenate(list(backbone.decode(latents)))
    reading = tiny_reading.read(frames)
    levels = frames.mean(axis=(1, 2, 3))
    drift = abs(float(levels[-NATIVE_PX:].mean() - levels[:NATIVE_PX].mean()))
    second = plan.spec.fps
    ends = [Counter(part).most_common(1)[0][0] for part in (reading.colour[:second], reading.colour[-second:])]
    kept = float(ends == [words.colour, words.colour])
    return tiny_reading.score(reading, words) | {"kept": kept, "drift": drift, "seconds": round(seconds, 2)}


def measured(
    model: str, names: list[str], frames_px: int, prompts: int, seeds: int, sets: list[str], output: Path
) -> dict[str, list[dict]]:
    """Every clip's measures by preset, those of `NATIVE` first; clips that `output` lacks are generated and appended to it."""
    spec = SPECS[model]
    plans = {NATIVE: planner.build(preset.load("direct"), spec)}
    for name in names:
        base, *overrides = name.split(",")
        base, how = selection.split_name(base)
        techniques = {catalog.name_of(technique) for technique in preset.load(base).techniques}
        overrides += [override for override in sets if override.split(".")[0] in techniques]
        selected, notes = selection.resolve_layers(preset.load(base, overrides, preset.Sample(frames=frames_px)), spec, how)
        plans[name] = planner.build(selected, spec, notes=notes)
    done = {}
    if output.is_file():
        for line in output.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            done[tuple(row[key] for key in KEY)] = row
    backbone = None
    rows: dict[str, list[dict]] = {name: [] for name in plans}
    for number, words in enumerate(tiny_grammar.HELD_OUT[:prompts]):
        for seed in range(1000 * number, 1000 * number + seeds):
            for name, plan in plans.items():
                key = (model, name, plan.frames_px, words.prompt, seed)
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
        mean = {key: float(np.mean([row[key] for row in clips])) for key in ("kept", "one_object", "motion", "drift")}
        lines.append({"name": name, **mean, "speed": float(np.nanmean(speed) / np.nanmean(native)),
                      "still": float(np.mean(speed < native / 2)), "clips": len(clips),
                      "seconds": float(np.median([row["seconds"] for row in clips]))})  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", required=True, metavar="NAME[,technique.key=value]")
    parser.add_argument("--backbone", choices=("tiny", "tiny-causal"), default="tiny")
    parser.add_argument("--frames", type=int, default=321)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="applied to the presets that have the technique")
    parser.add_argument("--output", type=Path, default=Path("effect.jsonl"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        lines = summary(measured(args.backbone, args.preset, args.frames, args.prompts, args.seeds, args.set, args.output))
    except UsageError as error:
        sys.exit(f"effect: {error}")
    if args.json:
        print(json.dumps(lines))
        return
    print("| preset | colour kept | one object | motion | speed | still | drift |\n|---|---|---|---|---|---|---|")
    for line in lines:
        shares = " | ".join(f"{line[key]:.1%}" for key in ("kept", "one_object", "motion"))
        print(f"| `{line['name']}` | {shares} | {line['speed']:.2f} | {line['still']:.0%} | {line['drift']:.2f} |")


if __name__ == "__main__":
    main()
