"""Loads a pipeline with diffusers and hands it the flags: offload, LoRA, quantization, attention, step cache, compiling, tiling."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from longgen.backbones import checkpoints
from longgen.backbones.defaults import default_dtype
from longgen.backbones.settings import ModelSettings, parse_cache, parse_lora
from longgen.backbones.spec import SPECS, BackboneSpec
from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.pipelines import integrity, lora
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.checks import check_settings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FAMILIES = {  # a family's file is imported when it is asked for: diffusers takes seconds for each
    "wan": "longgen.pipelines.wan:Wan",
    "causal-wan": "longgen.pipelines.causal_wan:CausalWan",
    "ltx": "longgen.pipelines.ltx:Ltx",
    "cogvideox": "longgen.pipelines.cogvideox:CogVideoX",
    "hunyuan": "longgen.pipelines.hunyuan:Hunyuan",
}


def family_of(spec: BackboneSpec) -> type[PipelineBackbone]:
    """The class that drives `spec`."""
    module, name = FAMILIES[spec.family].split(":")
    return getattr(importlib.import_module(module), name)


def load(spec: BackboneSpec, model_settings: ModelSettings) -> PipelineBackbone:
    """Loads the pipeline of `spec` from its folder, the local cache or the hub. Importing diffusers costs seconds.

    Raises MissingError where the weights or a library cannot be had, LonggenError where a file is damaged, UsageError
    where diffusers cannot do what is asked.
    """
    notes = check_settings(spec, model_settings)
    _set_threads(spec, model_settings.device)
    family = family_of(spec)
    diffusers_logging.set_verbosity_error()  # what they warn of on loading, the error below says
    diffusers_logging.disable_progress_bar()  # the command line shows its own
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for text in model_settings.lora:  # before gigabytes are read
        lora.fetched(parse_lora(text)[0])
    kinds = {"default": DTYPES[model_settings.dtype], "vae": _vae_dtype(spec, model_settings)}
    quantization = _quantization(spec) if model_settings.quantize == "int8" else None
    try:
        own = checkpoints.convert(spec) if spec.checkpoint is not None else None
    except MissingError as error:
        raise _missing(spec, error.given) from None
    without = {} if own is None else {"transformer": None}  # neither downloaded nor read: another takes its place
    quantized = {} if quantization is None else quantization.quant_mapping
    try:
        parts = integrity.components(family.kind, spec.source, kinds, quantized, {*without})
        pipe = family.kind.from_pretrained(spec.source, dtype=kinds, **parts, **without)
    except LonggenError:
        raise
    except Exception as error:
        raise _explain_load(spec, error) from error
    if own is not None:
        pipe.register_modules(transformer=checkpoints.load(own, DTYPES[model_settings.dtype], quantized.get("transformer")))
    pipe.set_progress_bar_config(disable=True)
    lora.load(pipe, spec, model_settings.lora)
    backbone = family(spec, pipe, model_settings)
    set_up(backbone)
    backbone.notes = tuple(notes)
    return backbone


def check(spec: BackboneSpec, model_settings: ModelSettings) -> list[str]:
    """Before gigabytes are loaded: whether what the flags name is there, and fits `spec`. Returns notes for the user.

    Raises MissingError, UsageError, or LonggenError where a file is damaged.
    """
    notes = lora.check(spec, model_settings.lora) if model_settings.lora else []
    if model_settings.quantize == "int8":
        _quantization(spec)
    if model_settings.attention is not None:
        try:
            _check_attention_backend_requirements(AttentionBackendName(model_settings.attention))
        except (ImportError, RuntimeError, ValueError) as error:
            raise _no_attention(model_settings.attention, error) from error
    if model_settings.compile:
        _check_compiler(model_settings.device)
    return notes


def set_up(backbone: PipelineBackbone) -> None:
    """Hands the pipeline the flags that act on a loaded model, and brings it to its device. Raises UsageError."""
    pipe, model_settings, spec = backbone.pipe, backbone.model_settings, backbone.spec
    for transformer in backbone.transformers:
        if model_settings.compile:
            _compile(transformer, backbone.layers(transformer))
        if model_settings.quantize == "fp8":
            transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=DTYPES[model_settings.dtype])
        if model_settings.attention is not None:
            _set_attention(transformer, model_settings.attention)
        if (
            model_settings.cache is not None and (cache := parse_cache(model_settings.cache, spec))[0] == "first-block"
        ):  # the other needs the plan
            transformer.enable_cache(FirstBlockCacheConfig(threshold=cache[1]))
    if model_settings.vae_tiling and pipe.vae is not None:
        _tile(pipe.vae)
    if model_settings.offload == "model":
        pipe.enable_model_cpu_offload(device=model_settings.device)
    elif model_settings.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=model_settings.device)
    elif model_settings.offload == "group":
        pipe.enable_group_offload(onload_device=torch.device(model_settings.device), offload_type="leaf_level", use_stream=True)
    else:
        pipe.to(model_settings.device)


def decoder(spec: BackboneSpec, device: str, vae_tiling: bool = False) -> Callable[[Tensor], Iterator[np.ndarray]]:
    """`PipelineBackbone.decode` with the VAE alone loaded, for latents that were saved. Raises as `load` does."""
    model_settings = ModelSettings(device, default_dtype(spec, device), vae_tiling=vae_tiling)
    check_settings(spec, model_settings)
    _set_threads(spec, device)
    family = family_of(spec)
    try:
        vae = integrity.component(family.vae_kind, spec.source, "vae", _vae_dtype(spec, model_settings)).to(model_settings.device)
    except LonggenError:
        raise
    except Exception as error:
        raise _explain_load(spec, error) from error
    if model_settings.vae_tiling:
        _tile(vae)
    return lambda latents: family.decoded(vae, latents, torch.device(model_settings.device))


def _set_threads(spec: BackboneSpec, device: str) -> None:
    """The threads that serve `spec` best on a CPU, unless OMP_NUM_THREADS says otherwise; sums then repeat on any machine."""
    if device == "cpu" and spec.cpu_threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(spec.cpu_threads)


def _vae_dtype(spec: BackboneSpec, model_settings: ModelSettings) -> torch.dtype:
    """Wan's VAE stays in float32, as its authors run it; the others take the transformer's dtype."""
    return torch.float32 if spec.family in ("wan", "causal-wan") else DTYPES[model_settings.dtype]


def _tile(vae: Any) -> None:
    vae.enable_tiling()
    if hasattr(vae, "use_framewise_decoding"):
        vae.use_framewise_decoding = True  # in time too, where the VAE can


def _quantization(spec: BackboneSpec) -> Any:
    """int8 weights by torchao, of the transformers; activations keep their dtype."""
    from diffusers import PipelineQuantizationConfig, TorchAoConfig

    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError:
        raise MissingError("--quantize int8 needs the library torchao, which is not installed",
                           expected="pip install 'longgen[quantize]'", hint="install it, or take fp8") from None  # fmt: skip
    config = TorchAoConfig(Int8WeightOnlyConfig())
    parts = ("transformer", "transformer_2") if spec.experts == 2 else ("transformer",)
    return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(parts, config))


def _set_attention(transformer: Any, name: str) -> None:
    try:
        transformer.set_attention_backend(name)
    except (ImportError, RuntimeError, ValueError) as error:
        raise _no_attention(name, error) from error


def _no_attention(name: str, error: Exception) -> UsageError:
    return UsageError(f"--attention {name} cannot run here: {' '.join(str(error).split())[:300]}",
                      expected="one whose library is installed; native always is", hint="choose another")  # fmt: skip


def _compile(transformer: Any, layers: list[Any]) -> None:
    """Each block's forward, before hooks come onto it.

    diffusers' `compile_repeated_blocks` compiles the block with its hooks: those of MagCache switch compilation off for all that
    they enclose, and those of FirstBlockCache are graphs of their own. It also knows no blocks of CogVideoX.
    """
    own = {id(layer) for layer in layers}
    for block in transformer.modules():
        if any(id(child) in own for child in block.children()):
            block.forward = torch.compile(block.forward)


def _check_compiler(device: str) -> None:
    """Compiles a line, so that what is missing is said early, and in words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own parts, on their first import
            torch.compile(torch.nn.functional.silu)(torch.zeros(8, device=device))
    except Exception as error:  # of many kinds, by what is missing
        reason = " ".join(str(error).partition("Set TORCH")[0].split())[:300]  # from there on, how to debug torch
        raise UsageError(f"--compile cannot run here: {reason}", hint="install it, or leave --compile out",
                         expected="a C++ compiler, as g++, for a CPU; a C compiler and triton for a GPU") from error  # fmt: skip


def _explain_load(spec: BackboneSpec, error: Exception) -> LonggenError:
    """Files there but unreadable, or not to be had: few messages for what diffusers raises in many types."""
    if failure := system_failure(error, f"the weights of {spec.name}"):
        return failure
    reason = " ".join(str(error).split())[:300]
    if Path(spec.source).is_dir():
        return LonggenError(f"{spec.name}: a file in {spec.source} is missing or damaged: {type(error).__name__}: {reason}",
                            expected="a complete diffusers folder", hint="copy or download it again")  # fmt: skip
    return _missing(spec, f"{spec.source} could not be fetched: {reason}")


def _missing(spec: BackboneSpec, reason: str) -> MissingError:
    """Weights that are not here: every command that brings them, and the name that they then have."""
    known, files = spec.name.partition(":")[0], [place for place in (spec.checkpoint, spec.lora) if place]
    form = f"{known}:FOLDER" if files and known in SPECS else "FOLDER"
    skipped = ' --exclude "transformer/*.safetensors"' if files else ""
    elsewhere = [checkpoints.download(place) for place in files if not os.path.exists(place)]
    commands = [f"hf download {spec.source}{skipped}", *elsewhere]
    return MissingError(f"the weights of {spec.name} are not on this machine: {reason}",
                        expected=f"{' and '.join([*files, spec.source])} in the Hugging Face cache, or in a folder",
                        hint=f"on a machine with network: {'; '.join(f'{one} --local-dir FOLDER' for one in commands)}; "
                           f"then --backbone {form}; or --backbone tiny, which needs no download")  # fmt: skip
