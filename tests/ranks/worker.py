"""One rank of `tests/test_parallel.py`: samples every case on all ranks and, on rank 0, alone, and writes how far they are apart.

    torchrun --nproc-per-node 2 tests/ranks/worker.py FOLDER

FOLDER/NAME: small pipelines by name. FOLDER/apart.json: case -> [largest difference, largest latent], or the error's text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from longgen import planner, preset, ranks
from longgen.backbones.find import find
from longgen.backbones.settings import ModelSettings
from longgen.errors import UsageError
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import loading
from longgen.plan import Plan
from longgen.schedule import PromptSchedule, Shot
from tests.models import wan
from tests.stacks import STACKS

PROMPT = "a large red circle"
TWO_SHOTS = PromptSchedule((Shot(Fraction(0), "a large red circle"), Shot(Fraction(1, 2), "a small blue square")), Fraction(1, 4))
WHOLE = {"wan": (33, (48, 32)), "ltx": (65, (64, 64))}  # pipeline -> frames, more than twice native; size
AGAIN = ("direct", "chain", "fifo", "gen-l-video", "glc-diffusion", "riflex", "keyframes", "freeloc", "freelong", "freespec")
PRESETS = {"wan": STACKS, "ltx": AGAIN}  # of every combination of slots one: what is exchanged does not depend on a technique
CLIPS = ("hunyuan", "cogvideox")
OTHERS = {"wan-experts": "freespec", "wan-ti2v": "sliding-window", "wan-i2v": "freespec", "ltx-condition": "yarn", "ltx2": "yarn"}
SIZES = {"wan-ti2v": (64, 64), "ltx-condition": (64, 64), "ltx2": (64, 64)}  # the others': 48 x 32
PICTURED = ("ltx2",)  # with a timestep for each token, as wan-ti2v has anyway
GUIDED = {"wan": "freespec", "wan-experts": "direct", "ltx": "sliding-window", "cogvideox": "direct"}


def pair(folder: Path, size: int) -> tuple[Any, Any]:
    """The pipeline of `folder` on one rank, and on `size`."""
    spec = find(str(folder))
    alone, split = (loading.load(spec, ModelSettings("cpu", "fp32", gpus=gpus)) for gpus in (1, size))
    for backbone in (alone, split):
        backbone.spec = planner.as_if_probed(replace(spec, native_px=4 * spec.stride_t + 1))
    return alone, split


def cases(folder: Path, size: int) -> Iterator[tuple[str, Any, Any, Plan]]:
    for name, (frames, pixels) in WHOLE.items():
        alone, split = pair(folder / name, size)
        given = preset.Sample(frames=frames, size=pixels, steps=2)
        for stack in PRESETS[name]:
            asked = preset.Sample(frames=frames, size=pixels) if stack == "fifo" else given
            try:
                sets = ("fifo.frames=4", "fifo.partitions=2") if stack == "fifo" else ()  # 21 rounds of 4 calls; else 44 of 8
                yield f"{name} {stack}", alone, split, planner.build(preset.load(stack, sets, asked), split.spec)
            except UsageError:
                continue  # a rollout, or what the model cannot do
        for stack in ("direct", "sliding-window"):
            yield (
                f"{name} {stack} of two prompts",
                alone,
                split,
                planner.build(preset.load(stack, (), given), split.spec, TWO_SHOTS),
            )
    for name, stack in OTHERS.items():
        alone, split = pair(folder / name, size)
        asked = preset.Sample(frames=65 if "ltx" in name else 33, size=SIZES.get(name, (48, 32)), steps=4)
        if name == "ltx2":  # of the audio all take the first rank's prediction, however another one's kernels round
            split.pipe.transformer.audio_proj_out.weight.data *= 1 + ranks.current().rank / 1000
        given = planner.stand_in(replace(split.spec, picture_needed=True) if name in PICTURED else split.spec)
        yield (
            f"{name} {stack}",
            alone,
            split,
            planner.build(preset.load(stack, (), asked), split.spec, conditions=given),
        )
    for name in CLIPS:
        alone, split = pair(folder / name, size)
        for stack in ("gen-l-video", "glc-diffusion"):
            asked = preset.Sample(frames=8 * split.spec.stride_t + 1, size=(64, 64), steps=2)
            yield f"{name} {stack}", alone, split, planner.build(preset.load(stack, (), asked), split.spec)
    for name, stack in GUIDED.items():
        alone, split = pair(folder / name, size)
        split.model_settings = split.model_settings.replace(guidance_parallel=True)
        asked = preset.Sample(frames=8 * split.spec.stride_t + 1, size=(64, 64), steps=4, guidance_scale=3.0)
        shots = None if name == "cogvideox" else TWO_SHOTS  # whose attention has one text for all frames
        yield f"{name} {stack} guided apart", alone, split, planner.build(preset.load(stack, (), asked), split.spec, shots)
    alone, split = wan.causal(), wan.causal()
    split.model_settings = split.model_settings.replace(gpus=size)
    for stack in STACKS:
        try:
            made = planner.build(preset.load(stack, (), preset.Sample(frames=93, steps=2)), split.spec)
        except UsageError:
            continue
        if made.memory is None or not made.memory.over_heads:  # refused on several ranks
            yield f"causal {stack}", alone, split, made


def sampled(backbone: Any, made: Plan) -> torch.Tensor:
    """The latents, and those of the sound, in one row."""
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(backbone, made, PROMPT, backbone.given(made, generator))
    latents = sample(denoiser, denoiser.initial_noise(generator), generator)
    return torch.cat([latents.flatten(), *(stream.flatten() for stream in denoiser.streams.values())])


def main(folder: Path) -> None:
    here = ranks.start("cpu")
    torch.set_num_threads(1)
    apart: dict[str, Any] = {}
    for name, alone, split, made in cases(folder, here.size):
        latents = sampled(split, made)
        others = [torch.empty_like(latents) for _ in range(here.size)]
        distributed.all_gather(others, latents)
        between = max(float((latents - other).abs().max()) for other in others)
        if here.writes:
            expected = sampled(alone, made)
            apart[name] = max(between, float((latents - expected).abs().max())), float(expected.abs().max())
    if here.writes:
        (folder / "apart.json").write_text(json.dumps(apart))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
