"""Measures a shipped model, `tiny` or `tiny-causal`, on the 48 sentences that were held out of its training.

    python -m longgen.backbones.tiny.check [--backbone tiny] [--frames 81] [--preset direct] [--seed 0] [--json]

At the native 81 frames and with no technique it prints, against the aims of the project:

    colour       share of frames whose object has the colour of the prompt
    background   share of frames with the background of the prompt
    one_object   share of frames with exactly one object
    motion       share of clips whose tracked motion is that of the prompt
    speed_px     mean speed of the object in pixels a frame, and that of rendered clips of the same sentences
    psnr_db      of the VAE, over rendered clips of the same sentences

`longgen.metrics.tiny_reading` says how each is read off the frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange

from longgen import planner, preset
from longgen.backbones import defaults, settings, tiny_grammar
from longgen.backbones.registry import SPECS
from longgen.backbones.tiny import clips
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.metrics import tiny_reading
from longgen.pipelines import loading

AIMS = {"colour": 0.95, "background": 0.98, "one_object": 0.90, "motion": 0.80, "psnr_db": 27.0}


def rendered(words: tiny_grammar.Words, frames_px: int, seed: int) -> torch.Tensor:
    """A rendered clip [3, F, S, S] in [-1, 1]."""
    scene = clips.draw_scene(words, torch.Generator().manual_seed(seed))
    video, _ = clips.render(scene, torch.arange(frames_px, dtype=torch.float32))
    return video.transpose(0, 1)


def to_bytes(video: torch.Tensor) -> np.ndarray:
    return (rearrange(video, "c f h w -> f h w c") * 127.5 + 127.5).round().clamp(0, 255).byte().numpy()


def psnr_db(vae: AutoencoderKLWan, video: torch.Tensor) -> float:
    """PSNR of one clip [3, F, S, S] after the VAE's encoding and decoding, on 8-bit pixels."""
    with torch.no_grad():
        again = vae.decode(vae.encode(video[None].to(vae.device)).latent_dist.mode()).sample[0].cpu()
    error = to_bytes(video).astype(np.float64) - to_bytes(again.clamp(-1, 1))
    return 10 * math.log10(255**2 / np.square(error).mean())


def check(
    model: str, frames_px: int, preset_name: str, seed: int, source: Path | None = None, count: int | None = None
) -> dict[str, float]:
    """The measures over the held-out sentences; progress goes to stderr."""
    spec = SPECS[model]
    if source is not None:
        place = str(source)
        spec = dataclasses.replace(spec, checkpoint=place) if spec.causal else dataclasses.replace(spec, source=place)
    plan = planner.build(preset.load(preset_name, sample=preset.Sample(frames=frames_px)), spec)
    backbone = loading.load(spec, settings.ModelSettings(defaults.default_device(), "fp32"))
    scores: list[dict[str, float]] = []
    began = time.monotonic()
    for number, words in enumerate(tiny_grammar.HELD_OUT[:count]):
        generator = torch.Generator().manual_seed(seed + number)
        denoiser = Denoiser(backbone, plan, words.prompt)
        latents = sample(denoiser, denoiser.initial_noise(generator), generator)
        frames = np.concatenate(list(backbone.decode(latents)))
        truth = rendered(words, 81, seed + number)
        score = tiny_reading.score(tiny_reading.read(frames), words) | {"psnr_db": psnr_db(backbone.pipe.vae, truth)}
        score["rendered_speed_px"] = tiny_reading.score(tiny_reading.read(to_bytes(truth)), words)["speed_px"]
        scores.append(score)
        shown = ", ".join(f"{key} {value:.2f}" for key, value in score.items())
        print(f"{number + 1}/{count or len(tiny_grammar.HELD_OUT)} {words.prompt}: {shown}", file=sys.stderr, flush=True)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return {key: round(float(np.nanmean([score[key] for score in scores])), 4) for key in scores[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=("tiny", "tiny-causal"), default="tiny")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--preset", default="direct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path, help="a folder that an export of train wrote, in place of the shipped model")
    parser.add_argument("--count", type=int, help="only so many of the sentences")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    means = check(args.backbone, args.frames, args.preset, args.seed, args.source, args.count)
    if args.json:
        print(json.dumps({"name": args.backbone, "frames": args.frames, "preset": args.preset, "seed": args.seed} | means))
        return
    for key, value in means.items():
        print(f"{key:<18}{value:>8.3f}" + (f"   aim {AIMS[key]}" if key in AIMS else ""))


if __name__ == "__main__":
    main()
