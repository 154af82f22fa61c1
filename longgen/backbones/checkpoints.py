"""Converts the checkpoints of causal Wan models (Self-Forcing, LongLive) to diffusers' format, once, in the user's cache.

They are published as torch files of training: several models side by side, layers under the names of Wan's own code, with the
prefixes of wrappers (FSDP, torch.compile). The transformer is recognised by names and shapes; code in a file is never run.

Legend: W a weight [out, in], A [rank, in] and B [out, rank] of a LoRA.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longgen.backbones import formats, hub, wan
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.system_errors import system_failure
from longgen.cache_folder import cache_folder
from longgen.errors import LonggenError, MissingError, OutOfMemoryError, UsageError

VERSION = 1  # of the conversion: a change of what it writes makes another cache folder
CLASSES = ("WanTransformer3DModel", "CausalWanTransformer3DModel")  # the second is FastVideo's, of the same weights
_EXPECTED = "a .pt or .safetensors file with the transformer of a causal Wan text-to-video model, or its diffusers folder"
_HINT = "choose another file, or download it again"
_LORA = "a LoRA, not a transformer: give it with --lora"
_CONTAINERS = ("generator_ema", "generator", "model", "state_dict")  # the mean of training is what the authors sample with


def fetch(place: str) -> Path:
    """The file or folder at `place`: a path, or `owner/name/path/in/repository` on the hub. Raises MissingError."""
    path = Path(os.path.expanduser(place))
    if path.exists():
        return path
    owner, name, *rest = f"{place}//".split("/")
    inner = "/".join(rest).strip("/")
    if path.is_absolute() or place.startswith(".") or not inner:
        raise MissingError(f"{place}: no such file", expected=_EXPECTED, hint="check the path")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub_id = f"{owner}/{name}"

    def get(local: bool) -> Path:
        if Path(inner).suffix:
            return Path(hf_hub_download(hub_id, inner, local_files_only=local))
        folder = Path(snapshot_download(hub_id, allow_patterns=f"{inner}/*", local_files_only=local)) / inner
        if not any(folder.glob("*.safetensors")):  # the cache may hold a folder with only its configs
            raise LocalEntryNotFoundError(f"no weights in {folder}")
        return folder

    return hub.fetch(place, hub_id, get, "the file in the Hugging Face cache, or a path to it",
                     f"on a machine with network: {hub.download_command(place)}; then copy it here and give --backbone "
                     "NAME:PATH, as self-forcing:weights/self_forcing_dmd.pt")  # fmt: skip


def load(folder: Path, dtype: torch.dtype, quantization: Any = None) -> Any:
    """The WanTransformer3DModel in `folder`. quantization: diffusers' configuration. Raises LonggenError if it is damaged."""
    from diffusers import WanTransformer3DModel

    try:
        transformer, info = WanTransformer3DModel.from_pretrained(
            folder, dtype=dtype, quantization_config=quantization, output_loading_info=True
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise system_failure(error, str(folder)) or _damaged(folder, reason) from error
    lacking = sorted([*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])
    if lacking:  # diffusers initialises these at random, and goes on
        raise _damaged(folder, f"{len(lacking)} weights are missing or of another shape, as {lacking[0]}")
    return transformer


def convert(spec: BackboneSpec) -> Path:
    """The folder of a WanTransformer3DModel with the weights of `spec.checkpoint`, `spec.lora` merged into them.

    Such a folder is returned as it is; else it is converted once, into the user's cache. Weights keep their dtype. Raises
    MissingError, UsageError where they are another model's, LonggenError where they are damaged or the cache cannot be written.
    """
    assert spec.checkpoint is not None
    path, lora = fetch(spec.checkpoint), fetch(spec.lora) if spec.lora else None
    if lora is None and path.is_dir() and _class_of(path) == CLASSES[0]:
        return path
    cache = cache_folder("converted")
    folder = cache / _key(spec, [path, *([lora] if lora else [])])
    if folder.is_dir():
        return folder
    try:
        tensors, _ = examine(path, data=True)
        if lora is not None:
            tensors = _merged(tensors, lora)
        model = _model(config(path, tensors, spec), path, tensors)
    except (MemoryError, RuntimeError) as error:  # torch raises the second where memory is lacking
        if failure := system_failure(error, f"{path}, which is converted once"):
            raise failure from error
        raise
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="unfinished-") as unfinished:
            model.save_pretrained(Path(unfinished) / "transformer")
            os.replace(Path(unfinished) / "transformer", folder)
    except Exception as error:  # safetensors has types of its own for a full disk
        if folder.is_dir():  # another process was faster
            return folder
        if isinstance(failure := system_failure(error, f"{path}, which is converted once"), OutOfMemoryError):
            raise failure from error
        size = sum(tensor.nbytes for tensor in tensors.values()) / 2**30
        reason = " ".join(str(error).split())[:300]
        raise LonggenError(f"the weights of {spec.name} cannot be written to {cache}: {reason}",
                           expected=f"a folder with {size:.1f} GiB of room",
                           hint="make room, or set XDG_CACHE_HOME") from error  # fmt: skip
    return folder


def _key(spec: BackboneSpec, paths: Iterable[Path]) -> str:
    """The cache key: a hash of the files' paths, sizes and times, and of what else decides the result."""
    files = [file.resolve() for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    facts = [VERSION, spec.head_dim, [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _model(settings: Mapping[str, Any], path: Path, tensors: Mapping[str, Tensor]) -> Any:
    """The model with `tensors` as its weights, uncopied."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(**settings)
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    lacking = [name for name in shapes if name not in tensors]
    unknown = [name for name in tensors if name not in shapes]
    misshapen = [name for name in shapes if name in tensors and tensors[name].shape != shapes[name]]
    for names, fault in ((lacking, "is missing"), (unknown, "belongs to no Wan transformer"), (misshapen, "has another shape")):
        if names:
            others = f", and so with {len(names) - 1} more" if len(names) > 1 else ""
            raise _damaged(path, f"{names[0]} {fault}{others}")
    model.load_state_dict({name: weight.contiguous() for name, weight in tensors.items()}, assign=True)
    return model


def config(path: Path, tensors: Mapping[str, Tensor], spec: BackboneSpec) -> dict[str, Any]:
    """The config of the WanTransformer3DModel with these `tensors`. They tell everything but the size of a head, which is `spec`'s.

    Raises UsageError where the model is not of the size of `spec`, LonggenError where tensors are missing.
    """
    try:
        width, channels, *patch = tensors["patch_embedding.weight"].shape
        if len(patch) != 3 or not min(patch):
            raise _damaged(path, f"patch_embedding.weight has the shape {list(tensors['patch_embedding.weight'].shape)}")
        out_channels = tensors["proj_out.weight"].shape[0] // torch.Size(patch).numel()
        settings = dict(
            patch_size=tuple(patch), num_attention_heads=width // spec.head_dim, attention_head_dim=spec.head_dim,
            in_channels=channels, out_channels=out_channels,
            num_layers=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
            text_dim=tensors["condition_embedder.text_embedder.linear_1.weight"].shape[1],
            freq_dim=tensors["condition_embedder.time_embedder.linear_1.weight"].shape[1],
            ffn_dim=tensors["blocks.0.ffn.net.0.proj.weight"].shape[0], cross_attn_norm="blocks.0.norm2.weight" in tensors,
            qk_norm="rms_norm_across_heads" if "blocks.0.attn1.norm_q.weight" in tensors else None,
        )  # fmt: skip
    except KeyError as error:
        raise _damaged(path, f"{error.args[0]} is missing") from None
    if channels > out_channels:
        raise UsageError(f"{path} is an image-to-video transformer: {channels} channels go in and {out_channels} come out",
                         expected=_EXPECTED, hint=_HINT)  # fmt: skip
    if (width, channels, tuple(patch)) != (spec.width, spec.latent_channels, spec.patch):
        known = [model.name for model in wan.FAMILY.specs if (model.width, model.latent_channels) == (width, channels)]
        like = f", as {' and '.join(known)}" if known else ""
        raise UsageError(f"{path} is of width {width} with {channels} latent channels{like}; {spec.name} is of width {spec.width} "
                         f"with {spec.latent_channels}", expected="weights of that size",
                         hint="give a folder that holds the weights and the diffusers pipeline they were made from")  # fmt: skip
    if settings["num_layers"] != spec.layers:
        raise _damaged(path, f"it has {settings['num_layers']} of the {spec.layers} layers of {spec.name}")
    return settings


def examine(path: Path, data: bool = False) -> tuple[dict[str, Tensor], bool]:
    """The Wan transformer in a file or a diffusers folder, under diffusers' names, and whether something says that it is causal.

    Weights stay on disk until they are used; without `data`, those of safetensors files are on the meta device. A model is causal
    if its metadata, its config or its names say so, or if it comes from the training of a causal model: such trainers save a
    `generator` and its moving average. Names and shapes of the weights are those of a bidirectional model.
    Raises UsageError where it is something else, LonggenError where a file is damaged.
    """
    config = path.joinpath("config.json") if path.is_dir() else path.with_name("config.json")
    small = config.is_file() and config.stat().st_size < 10**6
    texts = [config.read_text(encoding="utf-8", errors="replace")] if small else []
    if path.is_dir():
        class_name = _class_of(path)
        if class_name not in CLASSES:
            raise UsageError(f"{path} holds a {class_name}", expected=" or ".join(CLASSES), hint="choose another folder")
        formats.check_shards(path)
        content: dict[str, Any] = {}
        for file in sorted(path.glob("*.safetensors")):
            content |= formats.read(file, _EXPECTED, data=data)[0]
        return _renamed(content, path), formats.says_causal(texts)
    content, metadata = formats.read(path, _EXPECTED, data=data)
    texts += [f"{key} {value}" for key, value in metadata.items() if len(value) < 10**5]
    outer: str | None = ""
    trained = False
    while outer is not None:
        if outer := next((key for key in _CONTAINERS if isinstance(content.get(key), Mapping) and content[key]), None):
            texts += [str(key) for key in content]
            content = {str(key): value for key, value in content[outer].items()}
        elif outer := next((key for key in _CONTAINERS[:2] if any(name.startswith(f"{key}.") for name in content)), None):
            content = {name.removeprefix(f"{outer}."): value for name, value in content.items() if name.startswith(f"{outer}.")}
        trained = trained or outer in _CONTAINERS[:2]
    if "generator_lora" in content:
        raise _other(path, _LORA, content)
    if isinstance(content.get("critic"), Mapping):
        raise _other(path, "only the critic of a training, without the transformer that makes videos", content)
    return _renamed(content, path), trained or formats.says_causal([*texts, *content])


def _class_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name"))
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(folder, f"config.json cannot be read: {error}") from None


def _renamed(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a Wan transformer under diffusers' names, without the prefixes of training's wrappers."""
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    model = formats.model_of(weights)
    dtypes = (formats.DTYPE_NAMES.get(str(value.dtype), "") for value in weights.values() if value.ndim > 1)
    if quantized := formats.quantized(weights, dtypes):
        of = model or ("a Wan transformer" if formats.is_wan(map(formats.unwrapped, weights)) else "a model")
        raise UsageError(f"{path} holds {quantized}, of {of}: longgen does not read them", expected=_EXPECTED, hint=formats.PLAIN)
    if formats.is_lora(weights):
        raise _other(path, _LORA, content)
    if model is not None:
        raise _other(path, model, content)
    tensors = {formats.unwrapped(name): value for name, value in weights.items()}
    if "patch_embedding.weight" not in tensors:
        raise _other(path, "no Wan transformer", content)
    if len(tensors) < len(weights):
        raise _other(path, "several transformers in one file", content)
    return _diffusers_names(tensors)


def _diffusers_names(tensors: dict[str, Any]) -> dict[str, Any]:
    if any(part in name for name in tensors for part in ("condition_embedder.", ".attn1.", ".attn2.", ".ffn.net.")):
        return tensors  # they are diffusers' already, and a second renaming would swap norms
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return convert_wan_transformer_to_diffusers(dict(tensors))


def _merged(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`tensors` with the LoRA in `path` added, W + (alpha / rank) B A in float32; alpha is the rank where the file has none."""
    content, _ = formats.read(path, _EXPECTED)
    if isinstance(content.get("generator_lora"), Mapping):
        content = content["generator_lora"]
    parts: dict[str, dict[str, Tensor]] = {}  # by weight: A, B, alpha
    for name, value in content.items():
        match = re.fullmatch(r"(.+)\.(?:lora_([AB])\.weight|(alpha))", formats.unwrapped(name))
        if match is None:
            raise _other(path, "no LoRA in peft's names", content)
        weight, *which = match.groups()
        parts.setdefault(f"{weight}.weight", {})[which[0] or which[1]] = value
    merged = dict(tensors)
    for name, pair in _diffusers_names(parts).items():
        if not {"A", "B"} <= pair.keys():
            raise _unfit(path, f"{name} has one half of a pair")
        a, b = pair["A"].float(), pair["B"].float()
        if name not in tensors or (b.shape[:1] + a.shape[1:], b.shape[1]) != (tensors[name].shape, a.shape[0]):
            raise _unfit(path, f"{name} is for no weight of that name and shape")
        scale = float(pair["alpha"]) / a.shape[0] if "alpha" in pair else 1.0
        merged[name] = (tensors[name].float() + scale * (b @ a)).to(tensors[name].dtype)
    return merged


def _unfit(path: Path, reason: str) -> UsageError:
    return UsageError(f"the LoRA {path} does not fit its transformer: {reason}", expected="a LoRA made for it", hint=_HINT)


def _other(path: Path, kind: str, content: Iterable[str]) -> UsageError:
    names = ", ".join(list(content)[:3]) or "nothing"
    return UsageError(f"{path} is {kind}; it holds {names}", expected=_EXPECTED, hint="choose the file that holds the transformer")


def _damaged(path: Path, reason: str) -> LonggenError:
    return LonggenError(f"{path} is incomplete or damaged: {reason}", expected=_EXPECTED, hint="copy or download it again")
