"""Measures a model of the laboratory, such as the built-in ones, on the sentences that were held out of its training.

    python -m longgen.backbones.tiny.check [--image] [--backbone tiny] [--frames 81] [--preset direct] [--seed 0] [--json]

At the native 81 frames and with no technique it prints, against the aims of the project:

    colour       share of frames whose object has the colour of the prompt; none where it says none
    background   share of frames with the background of the prompt
    one_object   share of frames with exactly one object
    motion       share of clips whose tracked motion is that of the prompt
    speed_px     mean speed of the object in pixels a frame, and that of rendered clips of the same sentences
    psnr_db      of the VAE, over rendered clips of the same sentences

With `--image` each clip starts from the first frame of the rendered clip of its sentence, and it also prints

    first_frame  share of clips whose first frame is that picture, as nearly as the VAE alone gives it
    picture_db   PSNR of the first frame against the picture
    start        how much more the picture changes to the second frame than from frame to frame after it

`longgen.metrics.tiny_reading` and `longgen.backbones.tiny.start` say how each is read off the frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from longgen import planner, preset
from longgen.backbones import defaults, settings
from longgen.backbones.tiny import start
from longgen.backbones.tiny.models import SPECS, held_out
from longgen.conditions import NOTHING
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.metrics import tiny_reading
from longgen.pipelines import loading

AIMS = {"colour": 0.95, "background": 0.98, "one_object": 0.90, "motion": 0.80, "psnr_db": 27.0}
IMAGE_AIMS = {"first_frame": 0.95, "colour": 0.95, "background": 0.95, "one_object": 0.90, "motion": 0.75, "psnr_db": 27.0}


def check(
    model: str,
    asked: preset.Sample,
    preset_name: str,
    seed: int,
    image: bool = False,
    source: Path | None = None,
    count: int | None = None,
) -> dict[str, float]:
    """The measures over the first `count` held-out sentences, or all; progress goes to stderr."""
    spec = SPECS[model]
    if source is not None:
        place = str(source)
        spec = dataclasses.replace(spec, checkpoint=place) if spec.causal else dataclasses.replace(spec, source=place)
    backbone = loading.load(spec, settings.ModelSettings(defaults.default_device(), "fp32"))
    scores: list[dict[str, float]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, words in enumerate(asked_of := held_out(model)[:count]):
            given = start.conditions_of(words, seed + number, Path(folder)) if image else NOTHING
            plan = planner.build(preset.load(preset_name, sample=asked), spec, conditions=given)
            generator = torch.Generator().manual_seed(seed + number)
            denoiser = Denoiser(backbone, plan, words.prompt, backbone.given(plan, generator))
            latents = sample(denoiser, denoiser.initial_noise(generator), generator)
            frames = np.concatenate(list(backbone.decode(latents)))
            truth, vae = start.rendered(words, 81, seed + number), backbone.pipe.vae
            score = start.score(frames, given, vae) if image else {}
            score |= tiny_reading.score(tiny_reading.read(frames), words) | {"psnr_db": start.vae_psnr_db(vae, truth)}
            score["rendered_speed_px"] = tiny_reading.score(tiny_reading.read(start.to_bytes(truth)), words)["speed_px"]
            scores.append(score)
            shown = ", ".join(f"{key} {value:.2f}" for key, value in score.items())
            print(f"{number + 1}/{len(asked_of)} {words.prompt}: {shown}", file=sys.stderr, flush=True)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    columns = {key: np.array([score[key] for score in scores]) for key in scores[0]}
    return {key: round(float(np.nanmean(values)), 4) for key, values in columns.items() if np.isfinite(values).any()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=tuple(SPECS), default="tiny")
    parser.add_argument("--image", action="store_true", help="start each clip from a picture")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--preset", default="direct")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--flow-shift", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path, help="a folder that an export of train wrote, in place of the shipped model")
    parser.add_argument("--count", type=int, help="only so many of the sentences")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    asked = {name: getattr(args, name) for name in ("frames", "steps", "guidance_scale", "flow_shift")}
    means = check(args.backbone, preset.Sample(**asked), args.preset, args.seed, args.image, args.source, args.count)
    if args.json:
        given = {name: value for name, value in asked.items() if value is not None}
        print(json.dumps({"name": args.backbone, "image": args.image, "preset": args.preset, "seed": args.seed} | given | means))
        return
    aims = IMAGE_AIMS if args.image else AIMS
    for key, value in means.items():
        print(f"{key:<18}{value:>8.3f}" + (f"   aim {aims[key]}" if key in aims else ""))


if __name__ == "__main__":
    main()
