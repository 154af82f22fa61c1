"""What a loaded backbone is, which one serves, and where. Nothing heavy is imported before a model is loaded."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from longgen import arguments
from longgen.backbones.spec import BackboneSpec
from longgen.errors import UsageError, shown, unknown_name
from longgen.technique import Step

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
    from typing_extensions import Self

    from longgen.attention.glimpse import Observer
    from longgen.attention.kvcache import Cache
    from longgen.plan import Plan


@dataclass(frozen=True)
class Setup:
    """How a backbone is loaded; every part is diffusers' own. Raises UsageError for a name or a value that there is not.

    device: as torch names it. dtype: of the transformer, fp32, bf16 or fp16. offload: none, model, group or sequential.
    lora: files or hub ids, each with an optional `:scale`. quantize: fp8 or int8 weights. attention: a backend of
    diffusers. cache: a step cache, as `first-block:0.05`. compile: the transformer's blocks go through torch.compile.
    vae_tiling: the VAE decodes in tiles. clip_batch: clips that are denoised in one call, where sampling goes by clips.
    """

    device: str
    dtype: str
    offload: str = "none"
    lora: tuple[str, ...] = ()
    quantize: str | None = None
    attention: str | None = None
    cache: str | None = None
    compile: bool = False
    vae_tiling: bool = False
    clip_batch: int = 1

    def __new__(cls, *values: Any, **given: Any) -> Self:
        """Before the fields are set: `Setup(quantise="int8")` is a usage error, and names the nearest."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown_name("model setting", name, known, "correct the name, or leave it out")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if isinstance(self.lora, list):
            object.__setattr__(self, "lora", tuple(self.lora))
        if not isinstance(self.device, str) or not re.fullmatch(r"[a-z]+(:\d+)?", self.device):
            raise _no_setting("device", self.device, "cpu, cuda or cuda:1")
        for name, accepted in CHOICES.items():
            value = getattr(self, name)
            if type(value) not in (str, bool, type(None)) or value not in accepted:
                raise _no_setting(name, value, ", ".join(str(one) for one in accepted))
        arguments.whole_number("clip_batch", self.clip_batch, 1)
        if not isinstance(self.lora, tuple) or not all(isinstance(text, str) and text.strip() for text in self.lora):
            raise _no_setting("lora", self.lora, 'texts in a list, as ["style.safetensors:0.8"]')
        for text in self.lora:
            parse_lora(text)
        if self.attention is not None:
            _check_attention(self.attention)
        if not isinstance(self.cache, str | None):
            raise _no_setting("cache", self.cache, "first-block or mag, or NAME:THRESHOLD, as first-block:0.05")
        if self.cache is not None and _cache_name(self.cache) not in BROKEN_CACHES:  # why those are refused depends on the backbone
            parse_cache(self.cache)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the latents, where they are not the plain ones."""
        plain = Setup(self.device, self.dtype)
        names = ("lora", "quantize", "attention", "cache", "compile", "clip_batch")
        given = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


CHOICES: dict[str, tuple[str | bool | None, ...]] = {
    "dtype": ("fp32", "bf16", "fp16"),
    "offload": ("none", "model", "group", "sequential"),
    "quantize": (None, "fp8", "int8"),
    "compile": (False, True),
    "vae_tiling": (False, True),
}


def _no_setting(name: str, value: Any, accepted: str) -> UsageError:
    return UsageError(f"model setting {name} = {shown(value)} is none that there is", accepted=accepted,
                      do=f"take one of them, or leave {name} out")  # fmt: skip


def _check_attention(name: Any) -> None:
    if not isinstance(name, str):
        raise _no_setting("attention", name, "a backend of diffusers, as native")
    from diffusers.models.attention_dispatch import AttentionBackendName  # here: it costs seconds, and loading needs it anyway

    names = [backend.value for backend in AttentionBackendName]
    if name not in names:
        raise UsageError(f"--attention {name} is no backend of diffusers", accepted=", ".join(names), do="choose one of them")


@dataclass
class Company:
    """The clips of one model call. rows: for each sample of its batch the clip, the clip's anchor, and the sample's number.

    kept: keys and values [T n, H, D] of anchors, by layer, anchor and sample, for the calls that follow.
    """

    rows: list[tuple[int, int, int]]
    kept: dict[tuple[int, int, int], tuple[Tensor, Tensor]]


@dataclass
class Clock:
    """Where the schedule of the pipeline stands; the sampling loop moves it, the attention processors read it."""

    pipe: Any
    index: int = 0
    company: Company | None = None
    observer: Observer | None = None  # sees each call of each layer that does not run the stock attention
    shares: Tensor | None = None  # [shots, frames]: the texts of this call, one after the other, and each frame's share of them
    _read: tuple[Any, tuple[float, ...]] = (None, ())

    @property
    def step(self) -> Step:
        timesteps = self.pipe.scheduler.timesteps
        if self._read[0] is not timesteps:  # read once a schedule: they may be on a GPU
            self._read = (timesteps, tuple(timesteps.tolist()))
        return Step(self.index, self._read[1])


class Backbone(Protocol):
    """A loaded diffusers pipeline `pipe`, and what longgen adds to it. Every family implements this.

    notes: what a person should know of how it was loaded.
    """

    spec: BackboneSpec
    pipe: Any
    setup: Setup
    clock: Clock
    notes: tuple[str, ...]

    @property
    def device(self) -> torch.device: ...

    @property
    def transformers(self) -> list[torch.nn.Module]:
        """The transformer, or the two experts."""
        ...

    def layers(self, transformer: Any) -> list[Any]:
        """The self-attention modules of `transformer`, in the order in which layers are counted."""
        ...

    def text(self, prompt: str) -> dict[str, Tensor]:
        """The transformer's text arguments for `prompt`, [1, ...] each, as the pipeline makes them."""
        ...

    def latent_shape(self, plan: Plan) -> tuple[int, ...]:
        """The shape of the latents of `plan`, [1, C, T, h, w]."""
        ...

    def noise(self, plan: Plan, generator: torch.Generator) -> Tensor:
        """Independent noise [1, C, T, h, w], as the pipeline itself would draw it."""
        ...

    def packed(self, latents: Tensor) -> Tensor:
        """Latents [1, C, T, h, w] as the pipeline lays them out."""
        ...

    def unpacked(self, latents: Tensor, plan: Plan) -> Tensor:
        """The pipeline's latents as [1, C, T, h, w]."""
        ...

    def predicted(self, before: Tensor, after: Tensor, index: int, plan: Plan) -> tuple[Tensor, float]:
        """The clean latent [1, C, T, h, w] that step `index` predicted, from the latents around it, and d clean / d latent."""
        ...

    def frame_schedule(self, plan: Plan) -> Any:
        """A scheduler of first order with `plan`'s timesteps set, for the frames that the model sees at a time."""
        ...

    def velocity(self, clips: Tensor, timesteps: Tensor, text: Any, away: Any, plan: Plan) -> Tensor:
        """What the model predicts for `clips` [K, C, L, h, w] whose frames stand at `timesteps` [K, L]; of that shape.

        text, away: what `text` made of the prompt and of the negative prompt; without the latter there is no guidance.
        """
        ...

    def by_frame(self, x: Tensor, frames_lat: int) -> Tensor:
        """The transformer's input or output as a view [B, T, ...], with `frames_lat` frames on the second axis."""
        ...

    def from_frames(self, x: Tensor) -> Tensor:
        """The inverse of `by_frame`."""
        ...

    def clip_arguments(self, arguments: dict[str, Any], part: Tensor, count: int) -> dict[str, Any]:
        """The arguments of a call for T frames as those of a call for `count` clips: `part` [count B, L, ...] of its input."""
        ...

    def installed(self, plan: Plan) -> AbstractContextManager[None]:
        """Within the context, the transformers' self-attention follows `plan`; afterwards it is as it was."""
        ...

    def rolling(self, plan: Plan) -> AbstractContextManager[Cache]:
        """Within the context, a causal backbone's transformer sees its frames through the cache; afterwards it is as it was."""
        ...

    def call_arguments(self, plan: Plan, prompt: str) -> dict[str, Any]:
        """The arguments of the pipeline's call that `plan` and `prompt` decide."""
        ...

    def decode(self, latents: Tensor | Iterator[Tensor]) -> Iterator[np.ndarray]:
        """Frames [few, height, width, 3] uint8 of latents [1, C, T, h, w], or of their frames [1, C, 1, h, w] as they come.

        A few at a time where the VAE can.
        """
        ...


def has_gpu() -> bool:
    """Whether torch can use an NVIDIA GPU here. torch is asked only where there is a driver."""
    if shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()


def default_backbone() -> str:
    """`wan2.1-1.3b` where there is a GPU, the built-in `tiny` elsewhere."""
    return "wan2.1-1.3b" if has_gpu() else "tiny"


def default_device() -> str:
    return "cuda" if has_gpu() else "cpu"


def default_dtype(spec: BackboneSpec, device: str) -> str:
    """The backbone's own dtype on a GPU, fp32 on a CPU."""
    return "fp32" if device == "cpu" else spec.dtype


def check_setup(spec: BackboneSpec, setup: Setup) -> list[str]:
    """Raises UsageError where the device is not there, or `spec` on it cannot do what is asked. Loads no weights of the model.

    Returns notes. Raises MissingError where a LoRA or a library is not there, LonggenError where a file is damaged.
    """
    import torch

    try:
        place = torch.device(setup.device)
        torch.zeros(1, device=place).cpu()  # meta makes tensors, and gives none back
        if place.type == "cpu" and setup.device != "cpu":
            raise RuntimeError("a CPU has no number")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:160]
        cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise UsageError(f"--device {setup.device} is not there: {reason}", accepted=", ".join(["cpu", *cuda]),
                         do="leave --device out for the best one") from None  # fmt: skip
    if setup.offload != "none" and place.type == "cpu":
        raise UsageError(f"--offload {setup.offload} moves weights between a GPU and the host, and the device is cpu",
                         accepted="--offload none", do="leave --offload out")  # fmt: skip
    if setup.dtype == "fp16" and place.type == "cpu":
        raise UsageError("--dtype fp16 cannot run on a CPU", accepted="fp32 or bf16", do="leave --dtype out")
    for text in setup.lora:
        if parse_lora(text)[2] == (2,) and spec.experts == 1:
            raise UsageError(f"--lora {text} is for a second expert, and {spec.name} has one transformer",
                             accepted="PATH or PATH:scale", do="leave 2= out")  # fmt: skip
    if setup.cache is not None and spec.causal:
        raise UsageError(f"--cache {setup.cache} compares a step with the step before, and {spec.name} takes few, far apart",
                         accepted="no --cache", do="leave it out")  # fmt: skip
    if setup.cache is not None:
        parse_cache(setup.cache, spec)
    if not (setup.lora or setup.attention or setup.compile or setup.quantize):
        return []
    from longgen.backbones import loading  # takes seconds

    return loading.check(spec, setup)


def idle(plan: Plan, setup: Setup) -> tuple[str, ...]:
    """Notes on what of `setup` does nothing for `plan`."""
    if setup.clip_batch > 1 and not plan.in_clips:
        return (f"--clip-batch {setup.clip_batch} does nothing: {plan.preset.name} shows {plan.spec.name} no clips at this length",)
    return ()


def parse_lora(text: str) -> tuple[str, float, tuple[int, ...]]:
    """`[1=|2=]PATH[:scale]` as the path, the scale, and the experts that it is for: 1 and 2 unless it says one.

    A path may hold colons, as `C:\\loras\\style.safetensors` does. Raises UsageError where there is no path, or no scale.
    """
    experts: tuple[int, ...] = (1, 2)
    given = text
    if text[:2] in ("1=", "2=") and not os.path.exists(text):
        experts, text = (int(text[0]),), text[2:]
    path, colon, scale = text.rpartition(":")
    drive = len(path) == 1 and path.isalpha() and scale[:1] in ("\\", "/")
    if not colon or drive or os.path.exists(os.path.expanduser(text)):
        path, scale = text, "1"
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    reason = "there is no path" if not path.strip() else "the scale after the colon is missing" if not scale.strip() else ""
    if reason or not math.isfinite(value):
        raise UsageError(f"--lora {given}: {reason or f'{scale!r} is no scale'}",
                         accepted="PATH or PATH:scale, a finite number, as style.safetensors:0.8", do="write it so")  # fmt: skip
    return path, value, experts


BROKEN_CACHES = {  # name -> families and reason; measured on diffusers 0.42.1
    "pyramid-attention-broadcast": (("wan",), "it gives the unconditioned branch the attention of the conditioned one"),
    "fastercache": (("wan", "ltx", "hunyuan"), "it assumes that both guidance branches are one batch of unpacked latents"),
    "taylorseer": (("wan", "ltx", "cogvideox"), "its patterns match none of the model's attention layers, so that it does nothing"),
    "seacache": (("ltx", "cogvideox", "hunyuan"), "it needs the step and sigma, which only WanPipeline tells it"),
}
CACHES = {"first-block": 0.05, "mag": 0.06}  # name -> diffusers' own threshold


def parse_cache(text: str, spec: BackboneSpec | None = None) -> tuple[str, float]:
    """`first-block[:threshold]` or `mag[:threshold]` as its name and threshold.

    Raises UsageError, with the reason where a cache is known to be broken on `spec`.
    """
    name, threshold = _cache_name(text), text.partition(":")[2]
    families, reason = BROKEN_CACHES.get(name, ((), ""))
    if name not in CACHES:
        why = f": on {spec.name} {reason}" if spec is not None and spec.family in families else ": longgen has not tried it"
        raise UsageError(f"--cache {text} is refused{why}", accepted="first-block or mag, or NAME:THRESHOLD, as first-block:0.05",
                         do="take that, or leave --cache out")  # fmt: skip
    try:
        value = float(threshold or CACHES[name])
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UsageError(f"--cache {text}: {threshold!r} is no threshold", accepted="a number between 0 and 1", do="write 0.05")
    return name, value


def _cache_name(text: str) -> str:
    return text.lower().replace("_", "-").partition(":")[0]


def load(spec: BackboneSpec, setup: Setup) -> Backbone:
    """Loads the weights of `spec`. Importing diffusers costs seconds.

    Raises UsageError, MissingError where the weights cannot be had, LonggenError where a file is damaged.
    """
    notes = check_setup(spec, setup)
    _set_threads(spec, setup.device)
    from longgen.backbones import loading

    backbone = loading.load(spec, setup)
    backbone.notes = tuple(notes)
    return backbone


def decoder(spec: BackboneSpec, device: str, vae_tiling: bool = False) -> Callable[[Tensor], Iterator[np.ndarray]]:
    """`Backbone.decode` with nothing but the VAE of `spec` loaded. Raises as `load` does."""
    setup = Setup(device, default_dtype(spec, device), vae_tiling=vae_tiling)
    check_setup(spec, setup)
    _set_threads(spec, device)
    from longgen.backbones import loading

    return loading.decoder(spec, setup)


def _set_threads(spec: BackboneSpec, device: str) -> None:
    """The threads that serve `spec` best on a CPU, unless OMP_NUM_THREADS says otherwise; sums then repeat on any machine."""
    import torch

    if device == "cpu" and spec.cpu_threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(spec.cpu_threads)
