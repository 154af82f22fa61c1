"""How a model is loaded and run: the model settings, each with what it changes and a check of its value."""

from __future__ import annotations

import math
import operator
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, SupportsIndex, get_args

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from longgen.backbones.registry import family_of
from longgen.backbones.spec import BackboneSpec
from longgen.closed import ClosedModel
from longgen.errors import UsageError, shown, unknown_name

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from typing_extensions import Self


@dataclass(frozen=True)
class Setting:
    """What a field of `ModelSettings` (or of `longgen.run_settings.RunSettings`) changes, declared in its annotation.

    changes_latents: another value makes another run, whose checkpoints and latents cannot be mixed with this one's.
    changes_pixels: another value changes the decoded frames although the latents are equal.
    changes_step_ratios: of what changes the latents, whether it also changes the ratios that MagCache measures; not what changes
    rounding only. expected: the values that are accepted, for messages; by default those of the annotation.
    """

    changes_latents: bool
    changes_pixels: bool = False
    changes_step_ratios: bool = True
    expected: str = ""


NotBlank = Annotated[str, Field(pattern=r"\S")]
CACHE_EXPECTED = "first-block or mag, or NAME:THRESHOLD, as first-block:0.05"


class ModelSettings(ClosedModel):
    """How a model is loaded and run; every feature is diffusers' own. Raises UsageError for an unknown name or a wrong value.

    device: as torch names it. dtype: of the transformer. offload: what diffusers keeps in host memory. lora: files or hub ids,
    each with an optional `:scale`. quantize: 8-bit weights. attention: an attention backend of diffusers. cache: a step cache, as
    `first-block:0.05`. compile: torch.compile of the transformer's blocks. clip_batch: clips denoised in one forward pass, where
    sampling is multidiffusion or FIFO. vae_tiling: the VAE decodes in tiles. vae: a file, and text_encoder: a folder, in place
    of what the backbone has. gpus: the ranks (`longgen.ranks`) that make one video.
    guidance_parallel: the two calls of guidance run on two halves of the ranks.
    """

    model_config = ConfigDict(strict=True)

    device: Annotated[str, Field(pattern=r"^[a-z]+(:\d+)?$"), Setting(changes_latents=False, expected="cpu, cuda or cuda:1")]
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], Setting(changes_latents=True)]
    offload: Annotated[Literal["none", "model", "group", "sequential"], Setting(changes_latents=False)] = "none"
    lora: Annotated[tuple[NotBlank, ...], Setting(True, expected='texts in a list, as ["style.safetensors:0.8"]')] = ()
    quantize: Annotated[Literal[None, "fp8", "int8"], Setting(changes_latents=True)] = None
    attention: Annotated[
        NotBlank | None, Setting(True, changes_step_ratios=False, expected="an attention backend of diffusers, as native")
    ] = None
    cache: Annotated[NotBlank | None, Setting(True, changes_step_ratios=False, expected=CACHE_EXPECTED)] = None
    compile: Annotated[bool, Setting(changes_latents=True, changes_step_ratios=False, expected="False, True")] = False
    clip_batch: Annotated[int, Field(ge=1), Setting(changes_latents=True, changes_step_ratios=False, expected="1 or more")] = 1
    vae_tiling: Annotated[bool, Setting(changes_latents=False, changes_pixels=True, expected="False, True")] = False
    vae: Annotated[NotBlank | None, Setting(True, changes_step_ratios=False, expected="a .safetensors file of a VAE")] = None
    text_encoder: Annotated[NotBlank | None, Setting(True, expected="a folder with a text encoder and its tokenizer")] = None
    gpus: Annotated[int, Field(ge=1), Setting(changes_latents=False, expected="1 or more")] = 1
    guidance_parallel: Annotated[bool, Setting(changes_latents=False, expected="False, True")] = False

    def __init__(self, device: str, dtype: str, **others: Any) -> None:
        values = {"device": device, "dtype": dtype} | others
        known = type(self).model_fields
        for name in others.keys() - known.keys():
            raise unknown_name("model setting", name, known, "correct the name, or leave it out")
        try:
            super().__init__(**values)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            expected = effect_of(known[name]).expected or ", ".join(map(str, get_args(known[name].annotation)))
            raise UsageError(f"model setting {name} = {shown(values[name])} is not supported", expected=expected,
                             hint=f"choose such a value, or leave {name} out") from None  # fmt: skip

    @field_validator("lora", mode="before")
    @classmethod
    def _lists_become_tuples(cls, lora: Any) -> Any:
        return tuple(lora) if isinstance(lora, list) else lora

    @field_validator("vae", "text_encoder", mode="before")
    @classmethod
    def _paths_become_absolute(cls, path: Any) -> Any:
        """So that a run is continued from anywhere."""
        return os.path.abspath(os.path.expanduser(path)) if isinstance(path, str | os.PathLike) and str(path) else path

    @field_validator("clip_batch", mode="before")
    @classmethod
    def _numpy_integers_become_python_s(cls, clip_batch: Any) -> Any:
        is_integer = isinstance(clip_batch, SupportsIndex) and not isinstance(clip_batch, bool)
        return operator.index(clip_batch) if is_integer else clip_batch

    @model_validator(mode="after")
    def _texts_can_be_parsed(self) -> Self:
        for text in self.lora:
            parse_lora(text)
        name = None if self.cache is None else _cache_name(self.cache)
        if self.cache is not None and (name in CACHES or name not in CACHE_FAULTS):  # the backbone decides about the others
            parse_cache(self.cache)
        if self.attention is not None:
            from diffusers.models.attention_dispatch import AttentionBackendName  # here: it costs seconds

            names = [backend.value for backend in AttentionBackendName]
            if self.attention not in names:
                raise UsageError(f"--attention {self.attention}: diffusers has no such attention backend",
                                 expected=", ".join(names), hint="choose one of them")  # fmt: skip
        return self

    def replace(self, **changes: Any) -> Self:
        """These settings with `changes`, checked. Raises UsageError."""
        return type(self)(**dict(self) | changes)

    def stored(self) -> dict[str, Any]:
        """The settings that a video stores, as JSON: those that change its latents or its pixels, unless at their default."""
        return self.model_dump(mode="json", include={*LATENT_SETTINGS, *PIXEL_SETTINGS}, exclude_defaults=True)


def effect_of(field: FieldInfo) -> Setting:
    """The `Setting` in the annotation of a field."""
    return next(part for part in field.metadata if isinstance(part, Setting))


LATENT_SETTINGS = tuple(name for name, field in ModelSettings.model_fields.items() if effect_of(field).changes_latents)
STEP_RATIO_SETTINGS = tuple(name for name in LATENT_SETTINGS if effect_of(ModelSettings.model_fields[name]).changes_step_ratios)
PIXEL_SETTINGS = tuple(name for name, field in ModelSettings.model_fields.items() if effect_of(field).changes_pixels)


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
    "first-block": "diffusers has no entry for the blocks of its transformer",
    "mag": "diffusers has no entry for the blocks of its transformer",
}
CACHES = {"first-block": 0.05, "mag": 0.06}  # name -> diffusers' own threshold


def parse_cache(text: str, spec: BackboneSpec | None = None) -> tuple[str, float]:
    """`first-block[:threshold]` or `mag[:threshold]` as its name and threshold. Raises UsageError, also if broken on `spec`."""
    name, threshold = _cache_name(text), text.partition(":")[2]
    broken = () if spec is None else family_of(spec).broken_caches
    if name not in CACHES or name in broken:
        why = f": on {spec.name} {CACHE_FAULTS[name]}" if spec is not None and name in broken else ": longgen has not tried it"
        left = [cache for cache in CACHES if cache not in broken]
        expected = f"{' or '.join(left)}, or NAME:THRESHOLD, as {left[0]}:0.05" if left else "no --cache"
        raise UsageError(f"--cache {text} is refused{why}", expected=expected,
                         hint="take that, or leave --cache out" if left else "leave --cache out")  # fmt: skip
    try:
        value = float(threshold or CACHES[name])
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UsageError(f"--cache {text}: {threshold!r} is no threshold", expected="a number between 0 and 1", hint="write 0.05")
    return name, value


def _cache_name(text: str) -> str:
    return text.lower().replace("_", "-").partition(":")[0]
