"""The spec of a diffusers pipeline, read from the configs of its folder or hub id; nothing of its weights but their headers."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import replace
from pathlib import Path

from longgen.backbones import formats, registry
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.hub import not_fetched
from longgen.backbones.model_config import (
    EXPECTED_FOLDER,
    FILES,
    MAX_CHANNELS,
    MAX_WIDTH,
    Config,
    ConfigError,
    ModelConfigs,
    read_json,
)
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError, MissingError, UsageError


def from_folder(folder: Path) -> BackboneSpec:
    """The spec of the pipeline in `folder`, checked against the headers of its weights. Raises LonggenError."""
    if not os.path.lexists(folder / "model_index.json"):
        raise _no_pipeline(folder)
    spec = _from_configs(str(folder.resolve()), [read_json(folder / file) for file in FILES])
    transformers, others = ("transformer", "transformer_2"), ("text_encoder", "text_encoder_2", "vae")
    for part in transformers:
        _check_weights(folder / part, spec)
    parameters, companions = (sum(_parameters(folder / part) for part in parts) for parts in (transformers, others))
    return replace(spec, parameters=parameters or spec.parameters, companions=companions or spec.companions)


def from_hub(hub_id: str) -> BackboneSpec:
    """The spec of the pipeline `hub_id` in the local cache or on the hub. Raises MissingError where it cannot be had."""
    for known in registry.SPECS.values():
        if known.source == hub_id:
            return known
    from huggingface_hub import HfApi, hf_hub_download  # here: it costs 0.3 s, and most calls never ask the hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            paths = [Path(hf_hub_download(hub_id, file, local_files_only=True)) for file in FILES]
        except LocalEntryNotFoundError:
            HfApi().model_info(hub_id, timeout=10)  # fails at once without network, where downloads try for 23 s
            paths = [Path(hf_hub_download(hub_id, file)) for file in FILES]
    except Exception as error:
        raise not_fetched(f"--backbone {hub_id}", error,
                          f"a downloaded hub id, a diffusers folder, or one of {', '.join(registry.SPECS)}",
                          "check the name and the network, or give the folder of a download") from None  # fmt: skip
    return _from_configs(hub_id, [read_json(path) for path in paths])


def _from_configs(source: str, contents: list[object]) -> BackboneSpec:
    try:
        configs = ModelConfigs(source, *(Config(file, content) for file, content in zip(FILES, contents, strict=True)))
        family = registry.family_of_configs(configs)
        spec = family.from_configs(configs)
        _check_sizes(spec, configs.transformer, configs.vae)
    except (KeyError, TypeError, AttributeError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else f"its configs are not as diffusers writes them: {error}"
        known = ", ".join(dict.fromkeys(family.pipeline for family in registry.FAMILIES.values()))
        raise UsageError(f"--backbone {source}: {reason}", expected=f"a model that diffusers wrote: {known}",
                         hint="copy or download it again") from None  # fmt: skip
    except ConfigError as error:
        reason, expected = error.args
        raise UsageError(f"--backbone {source}: {reason}", expected=expected, hint="copy or download it again") from None
    verdicts = next((known.verdicts for known in family.specs if known.same_shape(spec)), {})
    about = f"{'causal ' if spec.causal else ''}{family.pipeline}, read from its configs"
    return replace(spec, name=source, source=source, about=about, license="see its model card", verdicts=verdicts)


def _check_sizes(spec: BackboneSpec, transformer: Config, vae: Config) -> None:
    """Whether values that depend on each other agree: the width, and the channels that the transformer and the VAE share."""
    if spec.width > MAX_WIDTH:
        transformer.refuse("num_attention_heads", f"heads of {spec.head_dim} channels that make at most {MAX_WIDTH} together")
    if transformer.get("out_channels") not in (None, spec.latent_channels):
        transformer.refuse("out_channels", f"{spec.latent_channels}, as in_channels")
    key = "z_dim" if "z_dim" in vae else "latent_channels"
    if key in vae and vae[key] != spec.latent_channels:
        transformer.refuse("in_channels", f"{vae[key]}, as {vae.file} says {key}")
    if not 1 <= spec.latent_channels <= MAX_CHANNELS:
        transformer.refuse("in_channels", f"an integer from 1 to {MAX_CHANNELS}")
    quantization = transformer.get("quantization_config")
    if isinstance(quantization, dict):
        method = str(quantization.get("quant_method"))
        library = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "gguf": "gguf", "quanto": "optimum.quanto"}.get(method)
        if library is None or importlib.util.find_spec(library.split(".")[0]) is None:
            raise ConfigError(f"{transformer.file} says that its weights are quantized by {method}", "weights in fp32, bf16 or "
                              f"fp16, or the library {library or method} and a model that diffusers loads with it")  # fmt: skip


def _no_pipeline(folder: Path) -> LonggenError:
    """The error for a folder without model_index.json: what it holds instead, judging by names."""
    given, expected = f"--backbone {folder}: model_index.json is not there", EXPECTED_FOLDER
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise system_failure(error, str(folder)) or MissingError(given, expected=expected, hint="check the folder") from None
    if "config.json" in names:
        kind = str(read_json(folder / "config.json").get("_class_name", "no class of diffusers"))
        parent = folder.resolve().parent
        if kind == "WanModel":
            return UsageError(f"{given}: the folder holds Wan's original release ({kind})", expected=expected,
                              hint="take the release whose name ends in -Diffusers")  # fmt: skip
        causal = f", or --backbone {SELF_FORCING.name}:{folder} if its weights are causal" if kind.startswith("Wan") else ""
        whole = parent if (parent / "model_index.json").is_file() else "the folder that holds it and model_index.json"
        return UsageError(f"{given}: the folder is one part of a model alone ({kind})", expected=expected,
                          hint=f"give {whole}{causal}")  # fmt: skip
    inner = [path for path in sorted(folder.glob("snapshots/*")) if (path / "model_index.json").is_file()]
    if inner:
        return UsageError(f"{given}: the folder is the hub's cache of a model", expected=expected, hint=f"give {inner[-1]}")
    if names and any(name.startswith(("adapter_", "pytorch_lora_weights")) for name in names):
        return UsageError(f"{given}: the folder holds a LoRA", expected=expected, hint=f"give it with --lora {folder}")
    files = [name for name in names if Path(name).suffix.lower() in formats.SUFFIXES]
    if files:
        others = " and others" if len(files) > 4 else ""
        return UsageError(f"{given}: the folder holds {', '.join(files[:4])}{others}", expected=expected,
                          hint=f"for causal weights, --backbone {SELF_FORCING.name}:{folder / files[0]}")  # fmt: skip
    holds = f"it holds {', '.join(names[:4])}" if names else "it is empty"
    return MissingError(f"{given}: {holds}", expected=expected, hint="give the folder that holds model_index.json")


def _check_weights(folder: Path, spec: BackboneSpec) -> None:
    """Raises UsageError where the weights of a transformer are not those that its config describes, by the headers of their files.

    diffusers silently drops weights where the config has fewer layers than the files.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return
    formats.check_shards(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    for path in files:
        table = formats.header(path, "a safetensors file").tensors
        shapes |= {name: shape for name, (_, shape) in table.items()}
        dtypes |= {dtype for dtype, shape in table.values() if len(shape) > 1}
    quantized = formats.quantized(shapes, dtypes)
    if quantized is not None and not read_json(folder / "config.json").get("quantization_config"):
        raise UsageError(f"{files[0]} holds {quantized}: longgen does not read them",
                         expected="weights in fp32, bf16 or fp16", hint=formats.PLAIN)  # fmt: skip
    for name, shape in shapes.items():
        if re.fullmatch(r"(single_)?(transformer_)?blocks\.0\.attn1?\.to_q\.weight", name) and shape[0] != spec.width:
            raise UsageError(f"{folder / 'config.json'} says {spec.heads} heads of {spec.head_dim} channels, which is a width of "
                             f"{spec.width}; its weights are of width {shape[0]}", hint="copy or download both again",
                             expected="the config that the weights were saved with")  # fmt: skip
    blocks = {match[0] for name in shapes if (match := re.match(r"(single_)?(transformer_)?blocks\.\d+\.", name))}
    if blocks and len(blocks) != spec.layers:
        raise UsageError(f"{folder / 'config.json'} says {spec.layers} layers; its weights have {len(blocks)}",
                         expected="the config that the weights were saved with", hint="copy or download both again")  # fmt: skip


def _parameters(folder: Path) -> int:
    """Parameters in the safetensors files of `folder`, read from their headers."""
    return sum(formats.header(path, "a safetensors file").parameters for path in folder.glob("*.safetensors"))
