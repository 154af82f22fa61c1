"""How a backbone is loaded: the model settings, each checked."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from longgen import arguments
from longgen.backbones.registry import family_of
from longgen.backbones.spec import BackboneSpec
from longgen.errors import UsageError, shown, unknown_name

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ModelSettings:
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
        for name, expected in CHOICES.items():
            value = getattr(self, name)
            if type(value) not in (str, bool, type(None)) or value not in expected:
                raise _no_setting(name, value, ", ".join(str(one) for one in expected))
        arguments.whole_number("clip_batch", self.clip_batch, 1)
        if not isinstance(self.lora, tuple) or not all(isinstance(text, str) and text.strip() for text in self.lora):
            raise _no_setting("lora", self.lora, 'texts in a list, as ["style.safetensors:0.8"]')
        for text in self.lora:
            parse_lora(text)
        if self.attention is not None:
            _check_attention(self.attention)
        if not isinstance(self.cache, str | None):
            raise _no_setting("cache", self.cache, "first-block or mag, or NAME:THRESHOLD, as first-block:0.05")
        if self.cache is not None and _cache_name(self.cache) not in CACHE_FAULTS:  # why those are refused depends on the backbone
            parse_cache(self.cache)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the latents, where they are not the plain ones."""
        plain = ModelSettings(self.device, self.dtype)
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


def _no_setting(name: str, value: Any, expected: str) -> UsageError:
    return UsageError(f"model setting {name} = {shown(value)} is none that there is", expected=expected,
                      hint=f"take one of them, or leave {name} out")  # fmt: skip


def _check_attention(name: Any) -> None:
    if not isinstance(name, str):
        raise _no_setting("attention", name, "a backend of diffusers, as native")
    from diffusers.models.attention_dispatch import AttentionBackendName  # here: it costs seconds, and loading needs it anyway

    names = [backend.value for backend in AttentionBackendName]
    if name not in names:
        raise UsageError(f"--attention {name} is no backend of diffusers", expected=", ".join(names), hint="choose one of them")


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
                         expected="PATH or PATH:scale, a finite number, as style.safetensors:0.8", hint="write it so")  # fmt: skip
    return path, value, experts


CACHE_FAULTS = {  # of diffusers 0.42.1, on the families that list them in Family.broken_caches
    "pyramid-attention-broadcast": "it gives the unconditioned branch the attention of the conditioned one",
    "fastercache": "it assumes that both guidance branches are one batch of unpacked latents",
    "taylorseer": "its patterns match none of the model's attention layers, so that it does nothing",
    "seacache": "it needs the step and sigma, which only WanPipeline tells it",
}


CACHES = {"first-block": 0.05, "mag": 0.06}  # name -> diffusers' own threshold


def parse_cache(text: str, spec: BackboneSpec | None = None) -> tuple[str, float]:
    """`first-block[:threshold]` or `mag[:threshold]` as its name and threshold.

    Raises UsageError, with the reason where a cache is known to be broken on `spec`.
    """
    name, threshold = _cache_name(text), text.partition(":")[2]
    if name not in CACHES:
        broken = spec is not None and name in family_of(spec).broken_caches
        why = f": on {spec.name} {CACHE_FAULTS[name]}" if spec is not None and broken else ": longgen has not tried it"
        raise UsageError(f"--cache {text} is refused{why}", expected="first-block or mag, or NAME:THRESHOLD, as first-block:0.05",
                         hint="take that, or leave --cache out")  # fmt: skip
    try:
        value = float(threshold or CACHES[name])
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UsageError(f"--cache {text}: {threshold!r} is no threshold", expected="a number between 0 and 1", hint="write 0.05")
    return name, value


def _cache_name(text: str) -> str:
    return text.lower().replace("_", "-").partition(":")[0]
