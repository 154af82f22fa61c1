"""The options that several commands share, each with its one name, variable and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes; errors only.")]
Preset = Annotated[str, typer.Option("--preset", envvar="LONGGEN_PRESET", help="A preset's name, or a TOML file.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="TECHNIQUE.KEY=VALUE", help="Change a preset's parameter; repeatable.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Import techniques that a preset names as package.module:Class. This runs their code.")
]
Backbone = Annotated[
    str | None,
    typer.Option("--backbone", "-m", envvar="LONGGEN_BACKBONE", metavar="NAME|HUB-ID|DIR",
                 help="The model (default: wan2.1-1.3b with a GPU, else tiny)."),
]  # fmt: skip
ScheduleFile = Annotated[
    Path | None,
    typer.Option("--schedule", metavar="FILE.toml", help="Prompts that change over time, in place of --prompt."),
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", "-f", "--num-frames", min=1, envvar="LONGGEN_FRAMES",
                 help="Pixel frames, rounded up to what the model makes (default: its native length; "
                      "of probe 4 times it, of bench 321)."),
]  # fmt: skip
Duration = Annotated[str | None, typer.Option("--duration", help="Length as 20s or 1m30s, in place of --frames.")]
Size = Annotated[str | None, typer.Option("--size", envvar="LONGGEN_SIZE", metavar="WxH", help="Picture size, as 832x480.")]
Steps = Annotated[
    int | None, typer.Option("--steps", "--num-inference-steps", min=1, envvar="LONGGEN_STEPS", help="Denoising steps.")
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance-scale", "--cfg", min=0, max=100, envvar="LONGGEN_GUIDANCE_SCALE", help="Strength of the prompt."),
]  # fmt: skip
FlowShift = Annotated[
    float | None,
    typer.Option("--flow-shift", min=0, max=1000, envvar="LONGGEN_FLOW_SHIFT",
                 help="Shift of the noise levels, as the authors' scripts name it (default: the model's own)."),
]  # fmt: skip
Negative = Annotated[str | None, typer.Option("--negative-prompt", envvar="LONGGEN_NEGATIVE_PROMPT", help="What to keep out.")]
Fps = Annotated[
    int | None, typer.Option("--fps", min=1, max=240, envvar="LONGGEN_FPS", help="Of the file only; the motion stays as it is.")
]
Dtype = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option("--dtype", envvar="LONGGEN_DTYPE", help="Of the transformer (default: the model's own on a GPU, fp32 on a CPU)."),
]  # fmt: skip
Device = Annotated[
    str | None, typer.Option("--device", envvar="LONGGEN_DEVICE", help="cpu, cuda or cuda:1 (default: the GPU if any).")
]
Offload = Annotated[
    Literal["none", "model", "group", "sequential"],
    typer.Option("--offload", envvar="LONGGEN_OFFLOAD", help="What diffusers keeps in host memory; slower from left to right."),
]
Lora = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="PATH[:SCALE]", help="A LoRA with its strength; repeatable; 1= or 2= before it: one expert."),
]
Quantize = Annotated[
    Literal["fp8", "int8"] | None,
    typer.Option("--quantize", envvar="LONGGEN_QUANTIZE", help="Keep weights in 8 bits; int8 needs torchao."),
]
Attention = Annotated[
    str | None,
    typer.Option("--attention", envvar="LONGGEN_ATTENTION", metavar="BACKEND", help="Attention backend of diffusers, as flash."),
]
Cache = Annotated[
    str | None,
    typer.Option("--cache", envvar="LONGGEN_CACHE", metavar="NAME[:X]",
                 help="Step cache of diffusers: first-block or mag, as first-block:0.05."),
]  # fmt: skip
Compile = Annotated[
    bool, typer.Option("--compile", envvar="LONGGEN_COMPILE", help="Compile the model's blocks; the first step waits for it.")
]
ClipBatch = Annotated[
    int,
    typer.Option(
        "--clip-batch", min=1, envvar="LONGGEN_CLIP_BATCH", help="Clips denoised in one call, where sampling goes by clips."
    ),
]
Tiling = Annotated[
    bool, typer.Option("--vae-tiling", envvar="LONGGEN_VAE_TILING", help="Decode in tiles: less memory, faint seams.")
]
Seeds = Annotated[str, typer.Option("--seeds", metavar="N,N", help="One video or run for each, as 0,1.")]
Layers = Annotated[
    str | None,
    typer.Option("--layers", metavar="probed|all|none|random:N", help="Where a preset acts that leaves its layers to a probe."),
]
Probe = Annotated[
    str | None,
    typer.Option("--probe", metavar="FILE|run|published", help="The probe that says which layers (default: the one kept)."),
]
