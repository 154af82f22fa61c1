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

from longgen.backbones import Setup, checkpoints, integrity, lora, parse_cache, parse_lora
from longgen.backbones.failures import system_failure
from longgen.backbones.pipeline import PipelineBackbone
from longgen.backbones.spec import SPECS, BackboneSpec
from longgen.errors import LonggenError, MissingError, UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FAMILIES = {  # a family's file is imported when it is asked for: diffusers takes seconds for each
    "wan": "longgen.backbones.wan:Wan",
    "causal-wan": "longgen.backbones.causal:CausalWan",
    "ltx": "longgen.backbones.ltx:Ltx",
    "cogvideox": "longgen.backbones.cogvideox:CogVideoX",
    "hunyuan": "longgen.backbones.hunyuan:Hunyuan",
}


def family_of(spec: BackboneSpec) -> type[PipelineBackbone]:
    """The class that drives `spec`."""
    module, name = FAMILIES[spec.family].split(":")
    return getattr(importlib.import_module(module), name)


def load(spec: BackboneSpec, setup: Setup) -> PipelineBackbone:
    """Loads the pipeline of `spec` from its folder, the local cache or the hub.

    Raises MissingError where the weights or a library cannot be had, LonggenError where a file is damaged, UsageError
    where diffusers cannot do what is asked.
    """
    family = family_of(spec)
    diffusers_logging.set_verbosity_error()  # what they warn of on loading, the error below says
    diffusers_logging.disable_progress_bar()  # the command line shows its own
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for text in setup.lora:  # before gigabytes are read
        lora.fetched(parse_lora(text)[0])
    kinds = {"default": DTYPES[setup.dtype], "vae": _vae_dtype(spec, setup)}
    quantization = _quantization(spec) if setup.quantize == "int8" else None
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
        pipe.register_modules(transformer=checkpoints.load(own, DTYPES[setup.dtype], quantized.get("transformer")))
    pipe.set_progress_bar_config(disable=True)
    lora.load(pipe, spec, setup.lora)
    backbone = family(spec, pipe, setup)
    set_up(backbone)
    return backbone


def check(spec: BackboneSpec, setup: Setup) -> list[str]:
    """Before gigabytes are loaded: whether what the flags name is there, and fits `spec`. Returns notes for the user.

    Raises MissingError, UsageError, or LonggenError where a file is damaged.
    """
    notes = lora.check(spec, setup.lora) if setup.lora else []
    if setup.quantize == "int8":
        _quantization(spec)
    if setup.attention is not None:
        try:
            _check_attention_backend_requirements(AttentionBackendName(setup.attention))
        except (ImportError, RuntimeError, ValueError) as error:
            raise _no_attention(setup.attention, error) from error
    if setup.compile:
        _check_compiler(setup.device)
    return notes


def set_up(backbone: PipelineBackbone) -> None:
    """Hands the pipeline the flags that act on a loaded model, and brings it to its device. Raises UsageError."""
    pipe, setup, spec = backbone.pipe, backbone.setup, backbone.spec
    for transformer in backbone.transformers:
        if setup.compile:
            _compile(transformer, backbone.layers(transformer))
        if setup.quantize == "fp8":
            transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=DTYPES[setup.dtype])
        if setup.attention is not None:
            _set_attention(transformer, setup.attention)
        if setup.cache is not None and (cache := parse_cache(setup.cache, spec))[0] == "first-block":  # the other needs the plan
            transformer.enable_cache(FirstBlockCacheConfig(threshold=cache[1]))
    if setup.vae_tiling and pipe.vae is not None:
        _tile(pipe.vae)
    if setup.offload == "model":
        pipe.enable_model_cpu_offload(device=setup.device)
    elif setup.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=setup.device)
    elif setup.offload == "group":
        pipe.enable_group_offload(onload_device=torch.device(setup.device), offload_type="leaf_level", use_stream=True)
    else:
        pipe.to(setup.device)


def decoder(spec: BackboneSpec, setup: Setup) -> Callable[[Tensor], Iterator[np.ndarray]]:
    """`PipelineBackbone.decode` with the VAE alone loaded, for latents that were saved."""
    family = family_of(spec)
    try:
        vae = integrity.component(family.vae_kind, spec.source, "vae", _vae_dtype(spec, setup)).to(setup.device)
    except LonggenError:
        raise
    except Exception as error:
        raise _explain_load(spec, error) from error
    if setup.vae_tiling:
        _tile(vae)
    return lambda latents: family.decoded(vae, latents, torch.device(setup.device))


def _vae_dtype(spec: BackboneSpec, setup: Setup) -> torch.dtype:
    """Wan's VAE stays in float32, as its authors run it; the others take the transformer's dtype."""
    return torch.float32 if spec.family in ("wan", "causal-wan") else DTYPES[setup.dtype]


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
                           accepted="pip install 'longgen[quantize]'", do="install it, or take fp8") from None  # fmt: skip
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
                      accepted="one whose library is installed; native always is", do="choose another")  # fmt: skip


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
        raise UsageError(f"--compile cannot run here: {reason}", do="install it, or leave --compile out",
                         accepted="a C++ compiler, as g++, for a CPU; a C compiler and triton for a GPU") from error  # fmt: skip


def _explain_load(spec: BackboneSpec, error: Exception) -> LonggenError:
    """Files there but unreadable, or not to be had: few messages for what diffusers raises in many types."""
    if failure := system_failure(error, f"the weights of {spec.name}"):
        return failure
    reason = " ".join(str(error).split())[:300]
    if Path(spec.source).is_dir():
        return LonggenError(f"{spec.name}: a file in {spec.source} is missing or damaged: {type(error).__name__}: {reason}",
                            accepted="a complete diffusers folder", do="copy or download it again")  # fmt: skip
    return _missing(spec, f"{spec.source} could not be fetched: {reason}")


def _missing(spec: BackboneSpec, reason: str) -> MissingError:
    """Weights that are not here: every command that brings them, and the name that they then have."""
    known, files = spec.name.partition(":")[0], [place for place in (spec.checkpoint, spec.lora) if place]
    form = f"{known}:FOLDER" if files and known in SPECS else "FOLDER"
    skipped = ' --exclude "transformer/*.safetensors"' if files else ""
    elsewhere = [checkpoints.download(place) for place in files if not os.path.exists(place)]
    commands = [f"hf download {spec.source}{skipped}", *elsewhere]
    return MissingError(f"the weights of {spec.name} are not on this machine: {reason}",
                        accepted=f"{' and '.join([*files, spec.source])} in the Hugging Face cache, or in a folder",
                        do=f"on a machine with network: {'; '.join(f'{one} --local-dir FOLDER' for one in commands)}; "
                           f"then --backbone {form}; or --backbone tiny, which needs no download")  # fmt: skip
