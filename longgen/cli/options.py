"""The options that several commands share, each with its name, variable, default and help in one place.

An option alone is an Annotated type; options that go together are a dataclass, which `App.command` expands.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from longgen.cli import complete
from longgen.errors import UsageError, conflict

if TYPE_CHECKING:
    from longgen.conditions import Conditions
    from longgen.preset import Sample
    from longgen.shards import Shard

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes; errors only.")]
LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log-file", metavar="FILE", help="Append what is said on stderr, and progress each minute, each line with its time."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", envvar="LONGGEN_PRESET", metavar="NAME|FILE.toml", autocompletion=complete.presets,
                 help="A preset's name, or a TOML file (default: direct; above the native length a recommended one)."),
]  # fmt: skip
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="TECHNIQUE.KEY=VALUE",
        autocompletion=complete.overrides,
        help="Change a parameter of the preset; repeatable.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option("--layers", metavar="probed|all|none|random:N", help="The layers in which a preset acts that depends on a probe."),
]
Probe = Annotated[
    str | None,
    typer.Option("--probe", metavar="FILE|run|published", help="The probe that selects the layers (default: the stored one)."),
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Import techniques that a preset names as package.module:Class. This runs their code.")
]
Backbone = Annotated[
    str | None,
    typer.Option("--backbone", "-m", envvar="LONGGEN_BACKBONE", metavar="NAME|HUB-ID|DIR|FILE", autocompletion=complete.backbones,
                 help="The model (default: wan2.1-1.3b with a GPU, else tiny)."),
]  # fmt: skip
PromptsFile = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="One prompt a line in .txt; a table in .csv; .jsonl.")
]
ScheduleFile = Annotated[
    Path | None,
    typer.Option("--schedule", metavar="FILE.toml", help="Prompts that change over time, in place of --prompt."),
]


def frames_option(default: str) -> Any:
    """--frames, whose default is another in commands that measure."""
    return typer.Option("--frames", "-f", "--num-frames", min=1, envvar="LONGGEN_FRAMES", metavar="N",
                        help=f"Pixel frames, rounded up to a length the model can generate (default: {default}).")  # fmt: skip


Frames = Annotated[int | None, frames_option("its native length")]
Duration = Annotated[
    str | None, typer.Option("--duration", metavar="TIME", help="Length as 20s, 1m30s or 1:30, in place of --frames.")
]
Size = Annotated[str | None, typer.Option("--size", envvar="LONGGEN_SIZE", metavar="WxH", help="Frame size, such as 832x480.")]
FlowShift = Annotated[
    float | None,
    typer.Option("--flow-shift", min=0, max=1000, envvar="LONGGEN_FLOW_SHIFT",
                 help="Timestep shift of the noise schedule, as in the authors' scripts (default: the model's own)."),
]  # fmt: skip
Negative = Annotated[
    str | None, typer.Option("--negative-prompt", envvar="LONGGEN_NEGATIVE_PROMPT", help="What the video should not show.")
]
Fps = Annotated[
    int | None,
    typer.Option("--fps", min=1, max=240, envvar="LONGGEN_FPS",
                 help="Playback rate of the output file. Does not change the generated motion."),
]  # fmt: skip
Device = Annotated[
    str | None, typer.Option("--device", envvar="LONGGEN_DEVICE", help="cpu, cuda or cuda:1 (default: the GPU if there is one).")
]
Dtype = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option("--dtype", envvar="LONGGEN_DTYPE",
                 help="Precision of the transformer (default: the model's own on a GPU, fp32 on a CPU)."),
]  # fmt: skip
Card = Annotated[
    str | None,
    typer.Option("--card", envvar="LONGGEN_CARD", metavar="NAME",
                 help="The GPU whose time is estimated: h100, h200, a100 or 4090; in bench several, with commas (default: this "
                      "machine's, else h100)."),
]  # fmt: skip
Offload = Annotated[
    Literal["none", "model", "group", "sequential"],
    typer.Option("--offload", envvar="LONGGEN_OFFLOAD", help="What diffusers keeps in host memory; slower from left to right."),
]
Lora = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="PATH[:SCALE]",
                 help="A LoRA and its strength; repeatable; prefix 1= or 2= for one expert only."),
]  # fmt: skip
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention", envvar="LONGGEN_ATTENTION", metavar="BACKEND", help="Attention backend of diffusers, such as flash."
    ),
]
Cache = Annotated[
    str | None,
    typer.Option("--cache", envvar="LONGGEN_CACHE", metavar="NAME[:X]",
                 help="Step cache of diffusers: first-block or mag, with an optional threshold, as first-block:0.05."),
]  # fmt: skip
Compile = Annotated[
    bool, typer.Option("--compile", envvar="LONGGEN_COMPILE", help="Compile the model's blocks; delays the first step.")
]
ClipBatch = Annotated[
    int,
    typer.Option("--clip-batch", min=1, envvar="LONGGEN_CLIP_BATCH",
                 help="Clips per model call, where a preset samples clip by clip."),
]  # fmt: skip
Tiling = Annotated[
    bool, typer.Option("--vae-tiling", envvar="LONGGEN_VAE_TILING", help="Decode in tiles: less memory, faint seams.")
]
Vae = Annotated[
    str | None,
    typer.Option("--vae", envvar="LONGGEN_VAE", metavar="FILE", help="A VAE in a .safetensors file, for the model's own."),
]
TextEncoder = Annotated[
    str | None,
    typer.Option("--text-encoder", envvar="LONGGEN_TEXT_ENCODER", metavar="DIR",
                 help="A folder with a text encoder and its tokenizer, for the model's own."),
]  # fmt: skip
Image = Annotated[Path | None, typer.Option("--image", metavar="FILE", help="The first frame: a PNG, JPEG or WebP file.")]
Fit = Annotated[
    Literal["crop", "pad"],
    typer.Option("--fit", envvar="LONGGEN_FIT", help="How a picture or an earlier video is brought to the size; never stretched."),
]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", min=1, envvar="LONGGEN_GPUS", metavar="N",
                 help="GPUs that make one video together, or processes on a CPU (default: those of torchrun or srun, else 1)."),
]  # fmt: skip
GuidanceParallel = Annotated[
    bool,
    typer.Option("--guidance-parallel", envvar="LONGGEN_GUIDANCE_PARALLEL",
                 help="With --gpus: the two calls of guidance run on two halves of the GPUs."),
]  # fmt: skip
Seeds = Annotated[str, typer.Option("--seeds", metavar="N,N", help="One video or run per seed, as 0,1.")]


@dataclass(frozen=True)
class PresetOptions:
    """The preset, its overrides, and the layers that it leaves to a probe."""

    preset: Preset = None
    overrides: Set = None
    layers: Layers = None
    probe: Probe = None
    allow_code: AllowCode = False


@dataclass(frozen=True)
class SampleOptions:
    """Length, size and denoising; see `longgen.preset.Sample`."""

    frames: Frames = None
    duration: Duration = None
    size: Size = None
    steps: Annotated[
        int | None, typer.Option("--steps", "--num-inference-steps", min=1, envvar="LONGGEN_STEPS", help="Denoising steps.")
    ] = None
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", "--cfg", min=0, max=100, envvar="LONGGEN_GUIDANCE_SCALE",
                     help="Strength of the prompt (classifier-free guidance)."),
    ] = None  # fmt: skip
    flow_shift: FlowShift = None

    def sample(self, fps: int | None, negative_prompt: str | None = None) -> Sample:
        """All but the duration. Raises UsageError for a size that is none."""
        from longgen.preset import Sample

        return Sample(frames=self.frames, size=parse_size(self.size), steps=self.steps, guidance_scale=self.guidance_scale,
                      negative_prompt=negative_prompt, flow_shift=self.flow_shift, fps=fps)  # fmt: skip


@dataclass(frozen=True)
class StartOptions:
    """What videos start from; see `longgen.conditions`."""

    image: Image = None
    last_image: Annotated[Path | None, typer.Option("--last-image", metavar="FILE", help="The last frame, with --image.")] = None
    continue_from: Annotated[
        Path | None,
        typer.Option("--continue", metavar="VIDEO|RUN_DIR", help="Go on from this video; --frames counts the new frames."),
    ] = None
    join: Annotated[bool, typer.Option("--join", help="With --continue: write the earlier video and the new frames.")] = False
    fit: Fit = "crop"

    def conditions(self, resumed: str | None = None) -> Conditions:
        """The files, read. resumed: the --output of a run that goes on. Raises LonggenError and its kinds."""
        from longgen import naming, start

        run = Path(resumed) if resumed is not None and naming.is_video(resumed) else None
        return start.read(self.image, self.last_image, self.continue_from, self.join, self.fit, run)


@dataclass(frozen=True)
class DeviceOptions:
    """Where and in which precision the model runs. The fields have the names of those of `ModelSettings`."""

    dtype: Dtype = None
    device: Device = None
    offload: Offload = "none"

    def settings(self) -> dict[str, Any]:
        """The fields for `inputs.model_settings`; LoRAs as a tuple."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: tuple(value or ()) if name == "lora" else value for name, value in values.items()}


@dataclass(frozen=True)
class ModelOptions(DeviceOptions):
    """Everything about how the model is loaded."""

    lora: Lora = None
    quantize: Annotated[
        Literal["fp8", "int8"] | None,
        typer.Option("--quantize", envvar="LONGGEN_QUANTIZE", help="Store weights in 8 bits; int8 needs torchao."),
    ] = None
    attention: Attention = None
    cache: Cache = None
    compile: Compile = False
    vae_tiling: Tiling = False
    vae: Vae = None
    text_encoder: TextEncoder = None
    clip_batch: ClipBatch = 1


@dataclass(frozen=True)
class RankOptions:
    """The GPUs that make one video together; see `longgen.ranks`."""

    gpus: Gpus = None
    guidance_parallel: GuidanceParallel = False

    def settings(self) -> dict[str, Any]:
        """Fields of `ModelSettings`. Raises UsageError where the ranks that are there are not those that are asked for."""
        from longgen import ranks

        present = ranks.from_environment().size
        size = present if self.gpus is None else self.gpus
        if present not in (1, size):
            raise UsageError(f"--gpus {size}, and {present} ranks were started", expected=f"--gpus {present}, or none",
                             hint="leave --gpus out, or start as many by torchrun or srun")  # fmt: skip
        if self.guidance_parallel and size == 1:
            raise UsageError("--guidance-parallel needs two GPUs or more, and this is one", expected="--gpus 2 with it",
                             hint="add it, or leave --guidance-parallel out")  # fmt: skip
        return {"gpus": size, "guidance_parallel": self.guidance_parallel}


Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="[ADDRESS]", help="Spread the work over a Ray cluster; alone: over this machine. Needs ray."),
]
RayWorkers = Annotated[
    int | None,
    typer.Option("--ray-workers", min=1, metavar="N", help="Workers of Ray (default: one a GPU, or as many as fit the cores)."),
]


@dataclass(frozen=True)
class RayOptions:
    """Whether the work is spread over a Ray cluster."""

    ray: Ray = None
    ray_workers: RayWorkers = None

    def check_workers(self) -> None:
        """Raises UsageError for a number of workers without a cluster."""
        if self.ray_workers is not None and self.ray is None:
            raise UsageError("--ray-workers has no effect without --ray", expected="both, or none", hint="add --ray")


@dataclass(frozen=True)
class ClusterOptions(RayOptions):
    """Where a grid is made: here, on a Ray cluster, or a share of it in a job array."""

    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Make the I-th of N shares; longgen compare FOLDERS joins them.")
    ] = None

    def checked(self) -> Shard | None:
        """The shard, if one is asked for. Raises UsageError."""
        from longgen import shards

        self.check_workers()
        if self.ray is not None and self.shard is not None:
            raise conflict("--ray", "--shard", "a cluster shares out the whole grid by itself")
        return None if self.shard is None else shards.parse(self.shard)


Export = Annotated[
    list[str] | None,
    typer.Option("--export", metavar="FORMAT,FORMAT", help="Write tables for papers too (csv, latex, markdown), and vector figures "
                 "(svg, pdf). Repeatable."),
]  # fmt: skip


@dataclass(frozen=True)
class OutputOptions:
    """What happens to existing files, and what is printed."""

    overwrite: Overwrite = False
    as_json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True)
class LoggedOptions(OutputOptions):
    """Of commands that work for long. log_file: `longgen.cli.app.Command` opens it."""

    log_file: LogFile = None


def parse_size(size: str | None) -> tuple[int, int] | None:
    """`832x480` as (width, height). Raises UsageError."""
    from longgen import prompts

    return None if size is None else prompts.parse_size(size)


def given_options(context: typer.Context) -> dict[str, str]:
    """By parameter, the options that stand on the command line; those of variables and defaults are left out."""
    return {
        str(parameter.name): next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
        for parameter in context.command.params
        if str(context.get_parameter_source(str(parameter.name))).endswith("COMMANDLINE")
    }
