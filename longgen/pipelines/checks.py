"""Whether the model settings fit the backbone and this machine, before any weight is loaded."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from longgen import distilled
from longgen.backbones.settings import ModelSettings, parse_cache, parse_lora
from longgen.backbones.spec import BackboneSpec
from longgen.errors import MissingError, UsageError

if TYPE_CHECKING:
    from longgen.plan import Plan


def check_settings(spec: BackboneSpec, model_settings: ModelSettings) -> list[str]:
    """Raises UsageError where the device does not exist or `spec` cannot run with these settings on it. Returns notes.

    Loads no weights of the model. Raises MissingError for a LoRA or a library, LonggenError where a file is damaged.
    """
    import torch

    try:
        device = torch.device(model_settings.device)
        torch.zeros(1, device=device).cpu()  # fails on the meta device, which has no data to give back
        if device.type == "cpu" and model_settings.device != "cpu":
            raise RuntimeError("a CPU has no number")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:160]
        cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise UsageError(f"--device {model_settings.device} is not available: {reason}", expected=", ".join(["cpu", *cuda]),
                         hint="leave --device out for the best one") from None  # fmt: skip
    if model_settings.offload != "none" and device.type == "cpu":
        raise UsageError(f"--offload {model_settings.offload} moves weights between a GPU and the host, and the device is cpu",
                         expected="--offload none", hint="leave --offload out")  # fmt: skip
    if model_settings.dtype == "fp16" and device.type == "cpu":
        raise UsageError("--dtype fp16 cannot run on a CPU", expected="fp32 or bf16", hint="leave --dtype out")
    for text in model_settings.lora:
        if parse_lora(text)[2] == (2,) and spec.experts == 1:
            raise UsageError(f"--lora {text} is for a second expert, and {spec.name} has one transformer",
                             expected="PATH or PATH:scale", hint="leave 2= out")  # fmt: skip
    if model_settings.cache is not None:
        if spec.causal:
            raise UsageError(f"--cache {model_settings.cache} compares a step with the previous one, and {spec.name} takes few "
                             "steps, far apart", expected="no --cache", hint="leave it out")  # fmt: skip
        parse_cache(model_settings.cache, spec)
    notes = []
    if spec.files or model_settings.vae or model_settings.text_encoder:
        from longgen.pipelines import file_parts  # here and below: diffusers takes seconds

        notes += file_parts.check(spec, model_settings)
    if model_settings.lora:
        from longgen.pipelines import lora

        notes += lora.check(spec, model_settings.lora)
    if model_settings.quantize == "int8":
        int8_config(spec)
    if model_settings.attention is not None:
        from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements

        try:
            _check_attention_backend_requirements(AttentionBackendName(model_settings.attention))
        except (ImportError, RuntimeError, ValueError) as error:
            raise no_attention_backend(model_settings.attention, error) from error
    if model_settings.compile:
        _check_compiler(model_settings.device)
    return notes


def check_plan(plan: Plan, model_settings: ModelSettings) -> tuple[str, ...]:
    """Notes on settings that do not fit `plan`. Raises MissingError where a library that it needs is not installed."""
    from longgen.pipelines import compressed

    compressed.check(plan)
    notes = list[str]()
    if model_settings.clip_batch != 1 and not plan.in_clips:
        where = f"{plan.preset.name} gives {plan.spec.name} no clips at this length"
        notes.append(f"--clip-batch {model_settings.clip_batch} has no effect: {where}")
    branches = (branch for program in plan.programs if program for branch in program.branches.values())
    if model_settings.attention is not None and any(branch.by_sign for branch in branches):
        where = f"{plan.preset.name} multiplies logits by their sign, which no attention backend does"
        notes.append(f"--attention {model_settings.attention} has no effect where {where}")
    notes += distilled.notes(plan, (parse_lora(lora)[0] for lora in model_settings.lora))
    return tuple(notes)


def int8_config(spec: BackboneSpec) -> Any:
    """diffusers' configuration of int8 weights by torchao, for the transformers; activations keep their dtype."""
    from diffusers import PipelineQuantizationConfig, TorchAoConfig

    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError:
        raise MissingError("--quantize int8 needs the library torchao, which is not installed",
                           expected="pip install 'longgen[quantize]'", hint="install it, or take fp8") from None  # fmt: skip
    config = TorchAoConfig(Int8WeightOnlyConfig())
    parts = ("transformer", "transformer_2") if spec.experts == 2 else ("transformer",)
    return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(parts, config))


def no_attention_backend(name: str, error: Exception) -> UsageError:
    return UsageError(f"--attention {name} cannot run here: {' '.join(str(error).split())[:300]}",
                      expected="one whose library is installed; native always is", hint="choose another")  # fmt: skip


def _check_compiler(device: str) -> None:
    """Compiles one line, so that a missing compiler is reported early and in plain words."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own modules, on their first import
            torch.compile(torch.nn.functional.silu)(torch.zeros(8, device=device))
    except Exception as error:  # of many types
        reason = " ".join(str(error).partition("Set TORCH")[0].split())[:300]  # what follows is how to debug torch
        raise UsageError(f"--compile cannot run here: {reason}", hint="install it, or leave --compile out",
                         expected="a C++ compiler, as g++, for a CPU; a C compiler and triton for a GPU") from error  # fmt: skip
