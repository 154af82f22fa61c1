"""The spec of a diffusers pipeline, read from the configs of its folder or hub id; nothing of its weights but their headers."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longgen.backbones import formats, hub, registry
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.model_config import EXPECTED_FOLDER, FILES, MAX_CHANNELS, MAX_WIDTH, Config, ModelConfigs, read_json
from longgen.backbones.spec import BackboneSpec, TokenShift
from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError, MissingError, UsageError

GUIDER, SCHEDULER = "guider/guider_config.json", "scheduler/scheduler_config.json"


def from_folder(folder: Path) -> BackboneSpec:
    """The spec of the pipeline in `folder`, checked against the headers of its weights. Raises LonggenError."""
    if not os.path.lexists(folder / "model_index.json"):
        raise _no_pipeline(folder)
    spec = _from_configs(str(folder.resolve()), [folder / file for file in FILES])
    headers = {part: [formats.header(path, "a safetensors file") for path in sorted((folder / part).glob("*.safetensors"))]
               for part in ("transformer", "transformer_2", "text_encoder", "text_encoder_2", "image_encoder", "vae", "connectors",
                            "audio_vae", "vocoder")}  # fmt: skip
    sizes = {part: sum(header.parameters for header in headers[part]) for part in headers}
    for part in ("transformer", "transformer_2"):
        if headers[part]:
            _check_weights(folder / part, headers[part], spec)
    parameters = sizes.pop("transformer") + sizes.pop("transformer_2")
    spec = _sampled(spec, {file: read_json(folder / file) for file in (SCHEDULER, GUIDER) if (folder / file).is_file()})
    return replace(spec, parameters=parameters or spec.parameters, companions=sum(sizes.values()) or spec.companions)


def from_hub(hub_id: str) -> BackboneSpec:
    """The spec of the pipeline `hub_id` in the local cache or on the hub. Raises MissingError where it cannot be had."""
    for known in registry.SPECS.values():
        if known.source == hub_id:
            return known
    from huggingface_hub import hf_hub_download  # here: it costs 0.3 s

    def fetched(files: Sequence[str]) -> list[Path]:
        return hub.fetch(
            f"--backbone {hub_id}", hub_id,
            lambda local: [Path(hf_hub_download(hub_id, file, local_files_only=local)) for file in files],
            f"a downloaded hub id, a diffusers folder, or one of {', '.join(registry.SPECS)}",
            "check the name and the network, or give the folder of a download",
        )  # fmt: skip

    spec = _from_configs(hub_id, fetched(FILES))
    family = registry.family_of(spec)
    files = [*([SCHEDULER] if family.distilled else []), *([GUIDER] if "guider" in family.folders else [])]
    return _sampled(spec, dict(zip(files, map(read_json, fetched(files)), strict=True)))


def _from_configs(source: str, paths: list[Path]) -> BackboneSpec:
    try:
        configs = ModelConfigs(source, *(Config(source, *part) for part in zip(FILES, map(read_json, paths), strict=True)))
        family = registry.family_of_configs(configs)
        spec = family.from_configs(configs)
        _check_sizes(spec, configs.transformer, configs.vae)
    except (KeyError, TypeError, AttributeError) as error:
        known = ", ".join(registry.known_pipelines())
        raise UsageError(f"--backbone {source}: its configs are not as diffusers writes them: {error}",
                         expected=f"a model that diffusers wrote: {known}", hint="copy or download it again") from None  # fmt: skip
    same = registry.like(spec, family.specs)
    about = f"{'causal ' if spec.causal else ''}{configs.model_index['_class_name']}, read from its configs"
    if same is not None and not spec.causal:  # several causal models have one shape
        about += f"; of the shape of {same.name}"
    entry = configs.model_index.get("scheduler")  # its library and class; a rollout has a scheduler of its own
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 and not spec.causal else None
    verdicts = {} if same is None else same.verdicts
    return replace(spec, name=source, source=source, about=about, license="see its model card", verdicts=verdicts, advised=(),
                   scheduler=named if isinstance(named, str) else spec.scheduler, checkpoint_shift=None,
                   token_shift=None)  # fmt: skip


def _sampled(spec: BackboneSpec, configs: Mapping[str, Any]) -> BackboneSpec:
    """`spec` with what its scheduler and its guider decide. configs: what their files hold, of those that are there."""
    scheduler, distilled = configs.get(SCHEDULER), registry.family_of(spec).distilled
    spec = replace(spec, **_shift(scheduler), **_guidance(configs.get(GUIDER)))
    values = scheduler if isinstance(scheduler, dict) else {}
    if distilled and values.get("use_dynamic_shifting") is False and values.get("shift", 1.0) == 1.0:
        return replace(spec, sigmas=distilled, steps=len(distilled), guidance_scale=1.0)
    return spec


def _guidance(config: Any) -> dict[str, Any]:
    """The field of a spec that a guider's config decides: models that are distilled for it say 1."""
    values: dict[str, Any] = config if isinstance(config, dict) else {}
    scale: Any = 1.0 if values.get("enabled") is False else values.get("guidance_scale")
    return {"guidance_scale": float(scale)} if type(scale) in (int, float) and 0 <= scale < math.inf else {}


def _shift(config: Any) -> dict[str, Any]:
    """The fields of a spec that a scheduler's config decides. A value that is none is left to diffusers, which reads it again."""
    values: dict[str, Any] = config if isinstance(config, dict) else {}
    by_tokens: list[Any] = [values.get(name) for name in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")]
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in by_tokens)
    if values.get("use_dynamic_shifting") is True:
        return {"token_shift": TokenShift(*by_tokens)} if numbers and by_tokens[2] != by_tokens[3] else {}
    shift: Any = values.get("flow_shift") if values.get("use_flow_sigmas") is True else values.get("shift")
    return {"checkpoint_shift": float(shift)} if type(shift) in (int, float) and 0 < shift < math.inf else {}


def _check_sizes(spec: BackboneSpec, transformer: Config, vae: Config) -> None:
    """Whether values that depend on each other agree: the width, and the channels that the transformer and the VAE share."""
    if spec.width > MAX_WIDTH:
        transformer.refuse("num_attention_heads", f"heads of {spec.head_dim} channels that make at most {MAX_WIDTH} together")
    channels = spec.latent_channels // spec.token_lat
    if transformer.get("out_channels") not in (None, channels):
        transformer.refuse("out_channels", f"{channels}, as in_channels")
    key = "z_dim" if "z_dim" in vae else "latent_channels"
    if key in vae and vae[key] != channels:
        transformer.refuse("in_channels", f"{vae[key]}, as {vae.file} says {key}")
    if not 1 <= spec.latent_channels <= MAX_CHANNELS:
        transformer.refuse("in_channels", f"an integer from 1 to {MAX_CHANNELS}")
    quantization = transformer.get("quantization_config")
    if isinstance(quantization, dict):
        method = str(quantization.get("quant_method"))
        library = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "gguf": "gguf", "quanto": "optimum.quanto"}.get(method)
        if library is None or importlib.util.find_spec(library.split(".")[0]) is None:
            transformer.fail(f"says that its weights are quantized by {method}", "weights in fp32, bf16 or fp16, or the library "
                             f"{library or method} and a model that diffusers loads with it")  # fmt: skip


def _no_pipeline(folder: Path) -> LonggenError:
    """The error for a folder without model_index.json: what it holds instead, judging by names."""
    given = f"--backbone {folder}: model_index.json is not there"
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return system_failure(error, str(folder)) or MissingError(given, expected=EXPECTED_FOLDER, hint="check the folder")
    snapshots = [path for path in sorted(folder.glob("snapshots/*")) if (path / "model_index.json").is_file()]
    files = [name for name in names if Path(name).suffix.lower() in formats.SUFFIXES]
    if "config.json" in names:
        kind = str(read_json(folder / "config.json").get("_class_name", "no class of diffusers"))
        parent = folder.resolve().parent
        whole = parent if (parent / "model_index.json").is_file() else "the folder that holds it and model_index.json"
        causal = f", or --backbone {SELF_FORCING.name}:{folder} if its weights are causal" if kind.startswith("Wan") else ""
        content, hint = f"one part of a model alone ({kind})", f"give {whole}{causal}"
        if kind == "WanModel":
            content, hint = f"Wan's original release ({kind})", "take the release whose name ends in -Diffusers"
    elif snapshots:
        content, hint = "the hub's cache of a model", f"give {snapshots[-1]}"
    elif any(name.startswith(("adapter_", "pytorch_lora_weights")) for name in names):
        content, hint = "a LoRA", f"give it with --lora {folder}"
    elif files:
        content = ", ".join(files[:4]) + (" and others" if len(files) > 4 else "")
        hint = (
            f"give a file, --backbone {folder / files[0]}; for causal weights, --backbone {SELF_FORCING.name}:{folder / files[0]}"
        )
    else:
        holds = f"it holds {', '.join(names[:4])}" if names else "it is empty"
        return MissingError(f"{given}: {holds}", expected=EXPECTED_FOLDER, hint="give the folder that holds model_index.json")
    return UsageError(f"{given}: the folder holds {content}", expected=EXPECTED_FOLDER, hint=hint)


def _check_weights(folder: Path, headers: list[formats.Header], spec: BackboneSpec) -> None:
    """Raises UsageError where the weights are not those that the config describes: diffusers silently drops surplus layers."""
    formats.check_shards(folder)
    tensors = {name: entry for header in headers for name, entry in header.tensors.items()}
    quantized = formats.quantized(tensors, (dtype for dtype, shape in tensors.values() if len(shape) > 1))
    if quantized is not None and not read_json(folder / "config.json").get("quantization_config"):
        raise UsageError(f"{min(folder.glob('*.safetensors'))} holds {quantized}: longgen does not read them",
                         expected="weights in fp32, bf16 or fp16", hint=formats.PLAIN)  # fmt: skip
    attention, block = r"(single_)?(transformer_)?blocks\.0\.attn1?\.to_q\.weight", r"(single_)?(transformer_)?blocks\.\d+\."
    widths = {shape[0] for name, (_, shape) in tensors.items() if re.fullmatch(attention, name)} - {spec.width}
    blocks = {match[0] for name in tensors if (match := re.match(block, name))}
    fault = f"{spec.layers} layers; its weights have {len(blocks)}" if len(blocks) not in (0, spec.layers) else None
    if widths:
        fault = f"{spec.heads} heads of {spec.head_dim} channels, which is a width of {spec.width}; its weights are of width "
        fault += str(min(widths))
    if fault is not None:
        raise UsageError(f"{folder / 'config.json'} says {fault}", expected="the config that the weights were saved with",
                         hint="copy or download both again")  # fmt: skip
