"""Loads a diffusers pipeline and applies the model settings: offload, LoRA, quantization, attention, cache, compile, tiling.

Its files have to give all weights: the libraries' warnings, or silence, are errors here. A missing key leaves random weights in a
text encoder and none in a diffusers model; an unread key belongs to another model than the config describes; an embedding that is
not the file's, or not one by both its names, is a bug of transformers 5.0 to 5.2 with Wan's text encoder.

Each component is read once, from memory-mapped files and straight into its dtype, and is moved to its device before the next is
read where it is to stay there: the host holds the weights of one component, not of all.

Legend: V rows of an embedding.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline, FirstBlockCacheConfig
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor
from transformers.utils import logging as transformers_logging

from longgen.backbones import checkpoints, hub
from longgen.backbones.defaults import default_dtype
from longgen.backbones.registry import SPECS, adapter_of, family_of
from longgen.backbones.settings import ModelSettings, parse_cache, parse_lora
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError, MissingError
from longgen.pipelines import file_parts, lora, lora_files
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.checks import check_settings, int8_config, no_attention_backend
from longgen.pipelines.file_parts import Place
from longgen.pipelines.load_progress import LoadProgress, folder_of, weight_files
from longgen.progress import OnProgress, no_report
from longgen.video import Sound

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
# Saved by older versions, and now derived from the config; and the half of a T5 that an encoder does not have.
HARMLESS = re.compile(r"(^|\.)(position_ids|inv_freq)$|^decoder\.|^lm_head\.weight$")
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # of a T5 encoder: one tensor by two names
EMBEDDING = re.compile(r"(^|\.)(shared|embed_tokens|token_embedding)\.weight$")  # of any text encoder, in its files
TOKENIZER_RULES = ("normalizer", "pre_tokenizer")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(spec: BackboneSpec, model_settings: ModelSettings, report: OnProgress = no_report) -> PipelineBackbone:
    """Loads the pipeline of `spec` from its folder, the local cache or the hub.

    report: gets the progress by bytes, from another thread too. Raises MissingError for weights and libraries, LonggenError for
    damaged files, UsageError for settings that do not work.
    """
    notes = check_settings(spec, model_settings)
    _set_threads(spec, model_settings.device)
    silence_libraries()
    adapter = adapter_of(spec)
    for text in model_settings.lora:  # before gigabytes are read
        lora_files.fetch(parse_lora(text)[0])
    dtype = DTYPES[model_settings.dtype]
    dtypes = {"default": dtype, "vae": _vae_dtype(spec, model_settings), "image_encoder": torch.float32}  # as diffusers' examples
    quantization = int8_config(spec) if model_settings.quantize == "int8" else None
    quantized = {} if quantization is None else quantization.quant_mapping
    try:
        checkpoint = checkpoints.convert(spec) if spec.checkpoint is not None else None
    except MissingError as error:
        raise _missing(spec, error.given) from None
    file_parts.fetch(spec, model_settings)
    replaced: dict[str, Any] = dict.fromkeys(adapter.unused_parts)  # neither downloaded nor read
    if checkpoint is not None:
        replaced["transformer"] = None
    files = file_parts.of(spec, model_settings)
    stays = model_settings.offload == "none" and not model_settings.lora and model_settings.quantize is None
    device = torch.device(model_settings.device) if stays else None  # else the host's memory is where they are changed first
    with _load_errors(spec):
        listed = model_kinds(adapter.kind_of(spec), spec.source, {*replaced, *files.sizes}) if files.indexed else {}
        kinds = listed | files.text_kinds()
    with LoadProgress(spec.source, kinds, report, files.sizes | files.text_sizes()) as progress:
        with _load_errors(spec):
            parts = components(kinds, spec.source, dtypes, quantized, device, progress, files.texts)
            parts |= files.load(dtypes, device, progress)
            if files.indexed:
                parts |= files.tokenizers()
                pipe = adapter.kind_of(spec).from_pretrained(spec.source, dtype=dtypes, **parts, **replaced)
                pipe.register_modules(**tokenizers_of_files(pipe, spec.source))
            else:
                pipe = files.assembled(parts)
        if checkpoint is not None:
            pipe.register_modules(transformer=checkpoints.load(checkpoint, dtype, quantized.get("transformer")))
        pipe.set_progress_bar_config(disable=True)
        lora.load(pipe, spec, model_settings.lora)
        backbone = adapter(spec, pipe, model_settings)
        set_up(backbone)
    backbone.notes = tuple(notes)
    return backbone


def set_up(backbone: PipelineBackbone) -> None:
    """Applies the settings that act on a loaded model, and moves it to its device. Raises UsageError."""
    pipe, model_settings, spec = backbone.pipe, backbone.model_settings, backbone.spec
    for transformer in backbone.transformers:
        if model_settings.compile:
            _compile(transformer, backbone.layers(transformer))
        if model_settings.quantize == "fp8":
            transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=DTYPES[model_settings.dtype])
        if model_settings.attention is not None:
            try:
                transformer.set_attention_backend(model_settings.attention)
            except (ImportError, RuntimeError, ValueError) as error:
                raise no_attention_backend(model_settings.attention, error) from error
        if model_settings.cache is not None:
            name, threshold = parse_cache(model_settings.cache, spec)
            if name == "first-block":  # MagCache needs the plan, and is enabled by the sampling loop
                transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    if model_settings.vae_tiling and pipe.vae is not None:
        _tile(pipe.vae)
    if model_settings.offload == "model":
        pipe.enable_model_cpu_offload(device=model_settings.device)
    elif model_settings.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=model_settings.device)
    elif model_settings.offload == "group":
        use_stream = not model_settings.device.startswith("mps")  # which has none
        pipe.enable_group_offload(torch.device(model_settings.device), offload_type="leaf_level", use_stream=use_stream)
    else:
        pipe.to(model_settings.device)


def decoder(
    spec: BackboneSpec, device: str, vae_tiling: bool = False, vae_file: str | None = None
) -> Callable[[Tensor], Iterator[np.ndarray]]:
    """`PipelineBackbone.decode` for saved latents, with only the VAE loaded. Raises as `load` does."""
    model_settings = ModelSettings(device, default_dtype(spec, device), vae_tiling=vae_tiling, vae=vae_file)
    check_settings(spec, model_settings)
    _set_threads(spec, device)
    silence_libraries()
    adapter = adapter_of(spec)
    with _load_errors(spec):
        file, dtype = file_parts.of(spec, model_settings).vae_file, _vae_dtype(spec, model_settings)
        if file is None:
            vae = component(adapter.vae_kind, spec.source, "vae", dtype)
        else:
            vae = file_parts.vae(spec, file, dtype, no_report)
        vae.to(device)
    if vae_tiling:
        _tile(vae)
    return lambda latents: adapter.decoded(vae, latents, torch.device(device))


def sound_decoder(spec: BackboneSpec, device: str) -> Callable[[dict[str, Tensor]], Sound | None]:
    """`PipelineBackbone.sound` for saved latents, with nothing else loaded; None of a silent model. Raises as `load` does."""
    adapter, dtype = adapter_of(spec), DTYPES[default_dtype(spec, device)]
    if not adapter.sound_parts:
        return lambda streams: None
    with _load_errors(spec):
        kinds = model_kinds(adapter.kind, spec.source, set())
        parts = {name: component(kinds[name], spec.source, name, dtype).to(device) for name in adapter.sound_parts}
    return lambda streams: adapter.sounded(parts, streams, torch.device(device))


def model_kinds(pipeline: type[DiffusionPipeline], source: str, without: set[str]) -> dict[str, Any]:
    """The classes of the models of the pipeline in `source` by component, but for those in `without`."""
    kinds = {}
    for name, entry in pipeline.load_config(source).items():
        library, kind = entry if isinstance(entry, (list, tuple)) and len(entry) == 2 else (None, None)
        module = LIBRARIES.get(str(library)) or getattr(diffusers.pipelines, str(library), None)  # parts of one pipeline alone
        model = getattr(module, kind, None) if isinstance(kind, str) else None
        if name not in without and isinstance(model, type) and issubclass(model, torch.nn.Module):
            kinds[name] = model
    return kinds


def components(
    kinds: dict[str, Any],
    source: str,
    dtypes: dict[str, torch.dtype],
    quantized: dict[str, Any],
    device: torch.device | None,
    progress: LoadProgress,
    places: Mapping[str, Place] = MappingProxyType({}),
) -> dict[str, Any]:
    """The checked models of the pipeline in `source` by name, each on `device` before the next is read; None leaves them.

    quantized: configurations by name. places: of those that are elsewhere. Raises LonggenError where keys are
    missing, unread or contradict each other; and whatever the libraries raise.
    """
    models = {}
    for name, kind in kinds.items():
        options = {"quantization_config": quantized[name]} if name in quantized else {}
        progress.start(name)
        place = places.get(name, Place(source, name))
        model = component(kind, *place, dtypes.get(name, dtypes["default"]), **options)
        models[name] = model if device is None else model.to(device)
        progress.finish()
    return models


def tokenizers_of_files(pipe: DiffusionPipeline, source: str) -> dict[str, Any]:
    """The tokenizers of `pipe` that do not cut text as their tokenizer.json says, by name, read as it says.

    Classes of transformers 5 put their own rules in place of the file's: HunyuanVideo's index names LlamaTokenizerFast, whose rules
    are those of Llama 2, and its file those of Llama 3, whose spaces and line ends would be lost.
    """
    tokenizers = {}
    for name, tokenizer in pipe.components.items():
        path = (folder_of(source) or Path(source)) / name / "tokenizer.json"
        rules = getattr(tokenizer, "backend_tokenizer", None)
        if rules is not None and path.is_file():
            written = Tokenizer.from_file(str(path))
            if any(str(getattr(rules, part)) != str(getattr(written, part)) for part in TOKENIZER_RULES):
                tokenizers[name] = transformers.PreTrainedTokenizerFast.from_pretrained(path.parent)
    return tokenizers


def component(kind: Any, source: str, name: str, dtype: torch.dtype, **options: Any) -> Any:
    """The model `name` of the pipeline in `source`, checked. Raises as `components`."""
    if issubclass(kind, transformers.PreTrainedModel):
        options["ignore_mismatched_sizes"] = True  # transformers' own error does not name the keys
    model, info = kind.from_pretrained(source, subfolder=name, dtype=dtype, output_loading_info=True, **options)
    folder = (folder_of(source) or Path(source)) / name
    patterns = ("*.safetensors.index.json", "*.safetensors", "*.bin")
    file = next((path for pattern in patterns for path in sorted(folder.glob(pattern))), folder)
    mismatched = sorted(f"{key} {tuple(shape)} for {tuple(expected)}" for key, shape, expected in info["mismatched_keys"])
    missing = sorted(info["missing_keys"])
    unread = sorted(key for key in info["unexpected_keys"] if not HARMLESS.search(key))
    empty = sorted(key for key, weight in (*model.named_parameters(), *model.named_buffers()) if weight.is_meta)
    faults = {
        "has sizes that its config.json does not:": mismatched,
        "has no": missing or empty,
        f"holds weights that {kind.__name__} does not read:": unread,
    }
    for fault, keys in faults.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise LonggenError(f"{name}: {file} {fault} {', '.join(keys[:3])}{more}",
                               expected=f"the weights of a {kind.__name__}, as its config.json describes it",
                               hint="copy or download it again; the config and the weights must be of one model")  # fmt: skip
    weights = dict(model.named_parameters(remove_duplicate=False))
    shared, encoder = (weights.get(key) for key in EMBEDDINGS)
    if shared is not None and encoder is not None and shared is not encoder and not torch.equal(shared, encoder):
        raise LonggenError(f"{name}: {' and '.join(EMBEDDINGS)} of {file} differ, and are one embedding",
                           expected="files in which they are equal, read by transformers 5.3 or newer",
                           hint=f"update transformers (here {transformers.__version__}), or download the file again")  # fmt: skip
    if issubclass(kind, transformers.PreTrainedModel):
        _check_embedding(model, name, folder)
    return model


def _check_embedding(model: Any, name: str, folder: Path) -> None:
    """Raises LonggenError where rows of the text encoder's embedding are not those of its file: nothing else would show it."""
    weight = model.get_input_embeddings().weight
    rows = sorted({0, 1, len(weight) // 2, len(weight) - 1} & {*range(len(weight))})
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            key = next(filter(EMBEDDING.search, file.keys()), None)
            if key is None:
                continue
            stored = torch.stack([file.get_slice(key)[row] for row in rows]).to(weight.dtype)
        if not torch.equal(stored, weight[rows].cpu()):
            raise LonggenError(f"{name}: its embedding is not {key} of {path}: {type(model).__name__} was read wrongly",
                               expected="the rows of the file, as transformers 5.3 or newer reads them",
                               hint=f"update transformers (here {transformers.__version__})")  # fmt: skip
        return


def silence_libraries() -> None:
    """Before an adapter is imported: transformers tells of its image processors even then."""
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()  # what they warn of on loading is an error here
        logging.disable_progress_bar()  # the command line shows its own


def _set_threads(spec: BackboneSpec, device: str) -> None:
    """The best number of CPU threads for `spec`, unless OMP_NUM_THREADS is set; sums are then the same on every machine."""
    if device == "cpu" and spec.cpu_threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(spec.cpu_threads)


def _vae_dtype(spec: BackboneSpec, model_settings: ModelSettings) -> torch.dtype:
    return torch.float32 if family_of(spec).vae_float32 else DTYPES[model_settings.dtype]


def _tile(vae: Any) -> None:
    vae.enable_tiling()
    if hasattr(vae, "use_framewise_decoding"):
        vae.use_framewise_decoding = True  # tiles in time too, where the VAE can


def _compile(transformer: Any, layers: list[Any]) -> None:
    """Compiles each block's forward, before hooks are put on it.

    diffusers' `compile_repeated_blocks` compiles the block with its hooks: those of MagCache disable compilation of everything
    they enclose, and those of FirstBlockCache are graphs of their own. It also knows no blocks of CogVideoX.
    """
    attention = {id(layer) for layer in layers}
    for block in transformer.modules():
        if any(id(child) in attention for child in block.children()):
            block.forward = torch.compile(block.forward)


@contextmanager
def _load_errors(spec: BackboneSpec) -> Iterator[None]:
    """One of a few errors for the many types that diffusers raises: out of memory, a damaged file, or weights that are not here."""
    try:
        yield
    except LonggenError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        failure = system_failure(error, f"the weights of {spec.name}")
        if failure is None and Path(spec.source).is_dir():
            failure = LonggenError(f"{spec.name}: a file in {spec.source} is missing or damaged: {type(error).__name__}: {reason}",
                                   expected="a complete diffusers folder", hint="copy or download it again")  # fmt: skip
        raise failure or _missing(spec, f"{spec.source} could not be fetched: {reason}") from error


def _missing(spec: BackboneSpec, reason: str) -> MissingError:
    """The error for weights that are not here, with the commands that download them and the name that they then have."""
    base, files = spec.name.partition(":")[0], [place for place in (spec.checkpoint, spec.lora) if place]
    name = f"{base}:FOLDER" if files and base in SPECS else "FOLDER"
    return MissingError(f"the weights of {spec.name} are not on this machine: {reason}",
                        expected=f"{' and '.join([*files, spec.source])} in the Hugging Face cache, or in a folder",
                        hint=f"on a machine with network: {'; '.join(hub.download_commands(spec))}; "
                           f"then --backbone {name}; or --backbone tiny, which needs no download")  # fmt: skip
