"""A backbone by its name, or the spec of a model read from the configs of its folder or hub id."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from longgen.backbones.spec import (
    COGVIDEOX_5B,
    HUNYUANVIDEO,
    LTX_2B,
    SELF_FORCING,
    SPECS,
    WAN_1_3B,
    WAN_2_2_5B,
    WAN_2_2_A14B,
    WAN_14B,
    WHOLE_CLIP,
    BackboneSpec,
)
from longgen.errors import LonggenError, MissingError, UsageError, unknown_name


def find(name: str) -> BackboneSpec:
    """The spec of a backbone by its name, by a local diffusers folder, or by a hub id in the local cache or on the hub.

    `NAME:PATH` is the causal backbone NAME with the weights in a file or folder; a file alone is `self-forcing:FILE`.
    Raises UsageError for a name that is none of these or a model longgen cannot drive, MissingError where the hub
    cannot be asked, LonggenError where a file is damaged.
    """
    if name in SPECS:
        return SPECS[name]
    known, colon, place = name.partition(":")
    if colon and known in SPECS:
        return _from_weights(SPECS[known], place)
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # not Path.is_dir, which raises where a name is too long
        return _from_folder(path)
    if colon and re.fullmatch(r"[\w.-]{2,}", known) and not os.path.exists(path):
        raise unknown_name("backbone", known, _CAUSAL, "NAME:PATH takes one of these")
    if path.suffix in _SUFFIXES:
        return _from_weights(SELF_FORCING, name)
    if path.is_absolute() or name.startswith("."):
        raise MissingError(f"--backbone {name}: no such folder", accepted="a folder with model_index.json, or a backbone's name",
                           do="longgen backbones list")  # fmt: skip
    if name.count("/") == 1:
        return _from_hub(name)
    raise unknown_name("backbone", name, SPECS, "choose one of these, a hub id (owner/name) or a diffusers folder")


def _from_folder(folder: Path) -> BackboneSpec:
    spec = _from_configs(str(folder.resolve()), *(_read_json(folder / part) for part in _CONFIGS))
    transformers, others = ("transformer", "transformer_2"), ("text_encoder", "text_encoder_2", "vae")
    parameters, companions = (sum(_parameters(folder / part) for part in parts) for parts in (transformers, others))
    return replace(spec, parameters=parameters or spec.parameters, companions=companions or spec.companions)


def _from_weights(spec: BackboneSpec, place: str) -> BackboneSpec:
    """The causal `spec` with the weights at `place`; a pipeline in the same folder gives the VAE and the text encoder."""
    if not spec.causal:
        raise UsageError(f"--backbone {spec.name}:{place}: {spec.name} takes no weights from elsewhere",
                         accepted=f"NAME:PATH with {', '.join(_CAUSAL)}, or a diffusers folder",
                         do="give the folder without a name before it")  # fmt: skip
    path = Path(os.path.abspath(os.path.expanduser(place)))
    if not place or not os.path.exists(path):
        raise MissingError(f"--backbone {spec.name}:{place}: no such file or folder", accepted=_WEIGHTS, do="check the path")
    from longgen.backbones import checkpoints  # here: it imports torch

    weights, lora = _weights(spec, path)
    tensors = checkpoints.read(weights)
    bases = [_from_folder(path)] if (path / "model_index.json").is_file() else [spec, WAN_14B]
    width = tensors["patch_embedding.weight"].shape[0]
    base = next((base for base in bases if base.width == width), bases[0])
    checkpoints.config(weights, tensors, base)  # refuses what is not of that size
    return replace(
        _on(spec, base), name=f"{spec.name}:{path}", about=f"{spec.name} with the weights in {weights.name}",
        license="see its model card", checkpoint=str(weights), lora=None if lora is None else str(lora),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
    )  # fmt: skip


def _on(spec: BackboneSpec, base: BackboneSpec) -> BackboneSpec:
    """The causal `spec` with the sizes, the VAE and the text encoder of `base`."""
    parts = ("source", "stride_t", "stride_hw", "patch", "fps", "size", "layers", "heads", "head_dim", "ffn_dim", "latent_channels",
             "rotary_dims", "rotary_base", "intrinsic_component", "parameters", "companions")  # fmt: skip
    return replace(spec, **{part: getattr(base, part) for part in parts})


def _weights(spec: BackboneSpec, path: Path) -> tuple[Path, Path | None]:
    """Which file or folder at `path` holds the transformer of `spec`, and which its LoRA.

    In a folder: the file of the published name, at its place on the hub or at the top; else the one file of weights there; else
    what diffusers wrote. The LoRA lies beside a file, under its published name.
    """
    inner, lora = ("/".join((place or "").split("/")[2:]) for place in (spec.checkpoint, spec.lora))
    found, file, style = path, Path(inner).name, Path(lora).name
    if path.is_dir():
        files = [] if (path / "config.json").is_file() else sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES)
        files = [each for each in files if each.name != style]
        places = [path / inner, path / file, *files[:1], path, path / "transformer"]
        known = [each for each in places if each.is_file() or (each / "config.json").is_file()]
        if not known:
            raise MissingError(f"--backbone {spec.name}:{path} has no weights in it", accepted=_WEIGHTS, do="check the folder")
        found = known[0]
        if found in files and found.name != file and len(files) > 1:
            raise UsageError(f"--backbone {spec.name}:{path} holds several files of weights: {', '.join(f.name for f in files)}",
                             accepted="one", do=f"give one of them, as {spec.name}:{found}")  # fmt: skip
    if not style or found.is_dir() or found.name == style:
        return found, None
    if found.with_name(style).is_file():
        return found, found.with_name(style)
    if found.name == file:  # of another name, it may be merged
        raise MissingError(f"--backbone {spec.name}:{path}: its LoRA {style} is not beside {found}",
                           accepted=f"{file} and {style} in one folder", do=f"copy {style} there")  # fmt: skip
    return found, None


def _parameters(folder: Path) -> int:
    """Parameters in the safetensors files of `folder`, read from their headers."""
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "numpy") as file:
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no dict
        except SafetensorError as error:
            raise LonggenError(
                f"{path} is damaged: {error}", accepted="a safetensors file", do="copy or download it again"
            ) from None
    return count


def _from_hub(hub_id: str) -> BackboneSpec:
    known = [spec for spec in SPECS.values() if spec.source == hub_id]
    if known:
        return known[0]
    from huggingface_hub import HfApi, hf_hub_download  # here: it costs 0.3 s, and most calls never ask the hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            paths = [Path(hf_hub_download(hub_id, part, local_files_only=True)) for part in _CONFIGS]
        except LocalEntryNotFoundError:
            HfApi().model_info(hub_id, timeout=10)  # fails at once without network, where downloads try for 23 s
            paths = [Path(hf_hub_download(hub_id, part)) for part in _CONFIGS]
    except Exception as error:  # the hub client lets its HTTP library's errors through, of many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingError(f"--backbone {hub_id} is neither in the local cache nor to be had from the hub: {reason}",
                           accepted=f"a downloaded hub id, a diffusers folder, or one of {', '.join(SPECS)}",
                           do="check the name and the network, or download it elsewhere and give its folder") from None  # fmt: skip
    return _from_configs(hub_id, *map(_read_json, paths))


_CAUSAL = [spec.name for spec in SPECS.values() if spec.causal]
_SUFFIXES = (".pt", ".safetensors")
_WEIGHTS = "a .pt or .safetensors file, or a folder with one or with a transformer that diffusers wrote"
_CONFIGS = ("model_index.json", "transformer/config.json", "vae/config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} is not there", accepted="a diffusers folder, with " + ", ".join(_CONFIGS),
                           do="give the folder that holds model_index.json") from None  # fmt: skip
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}", accepted="JSON as diffusers writes it", do="download it again") from None


class _Config(dict[str, Any]):
    """A config that names itself where a key is not there."""

    def __init__(self, name: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise KeyError(f"{name} is no table")
        super().__init__(content)
        self.name = name

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"{self.name} has no {key}")


def _from_configs(source: str, *contents: Any) -> BackboneSpec:
    try:
        index, transformer, vae = (_Config(name, content) for name, content in zip(_CONFIGS, contents, strict=True))
        part = index.get("transformer")
        causal = isinstance(part, list) and part[-1:] == ["CausalWanTransformer3DModel"]  # whose pipeline has many names
        kind = "WanPipeline" if causal else index["_class_name"]
        if kind not in _READERS:
            raise UsageError(f"--backbone {source} is a {kind}", accepted=", ".join(_READERS), do="choose another model")
        spec = _READERS[kind](index, transformer, vae)
    except (KeyError, TypeError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else f"its configs are not as diffusers writes them: {error}"
        raise UsageError(f"--backbone {source}: {reason}", accepted=f"a model that diffusers wrote: {', '.join(_READERS)}",
                         do="copy or download it again") from None  # fmt: skip
    verdicts = WAN_1_3B.verdicts if _same_shape(spec, WAN_1_3B) else {}
    if causal:
        spec, verdicts = replace(_on(SELF_FORCING, spec), checkpoint=f"{source}/transformer", lora=None), {}
    about = f"{'causal ' if causal else ''}{kind}, read from its configs"
    return replace(spec, name=source, source=source, about=about, license="see its model card", verdicts=verdicts)


def _same_shape(spec: BackboneSpec, known: BackboneSpec) -> bool:
    return all(
        getattr(spec, part) == getattr(known, part) for part in ("layers", "heads", "head_dim", "ffn_dim", "latent_channels")
    )


def _wan(index: Any, transformer: Any, vae: Any) -> BackboneSpec:
    head_dim, heads = transformer["attention_head_dim"], transformer["num_attention_heads"]
    width, ffn_dim, layers = head_dim * heads, transformer["ffn_dim"], transformer["num_layers"]
    rotary_dims = head_dim - 4 * (head_dim // 6)
    experts = 2 if index.get("transformer_2", [None])[0] is not None else 1
    base = WAN_2_2_5B if index.get("expand_timesteps") else WAN_2_2_A14B if experts == 2 else WAN_1_3B
    return replace(
        base, stride_t=vae.get("scale_factor_temporal", 4), stride_hw=vae.get("scale_factor_spatial", 8),
        patch=tuple(transformer["patch_size"]), most_lat=transformer.get("rope_max_seq_len", base.most_lat), layers=layers,
        heads=heads, head_dim=head_dim, ffn_dim=ffn_dim, latent_channels=transformer["in_channels"], rotary_dims=rotary_dims,
        experts=experts, intrinsic_component=min(WAN_1_3B.intrinsic_component or 1, rotary_dims // 2),
        parameters=experts * layers * (8 * width**2 + 2 * width * ffn_dim),
    )  # fmt: skip


def _ltx(index: Any, transformer: Any, vae: Any) -> BackboneSpec:
    head_dim, heads, layers = (transformer[key] for key in ("attention_head_dim", "num_attention_heads", "num_layers"))
    halvings = 2 ** sum(vae["spatio_temporal_scaling"])
    return replace(
        LTX_2B, stride_t=vae["patch_size_t"] * halvings, stride_hw=vae["patch_size"] * halvings, layers=layers, heads=heads,
        head_dim=head_dim, ffn_dim=4 * heads * head_dim, latent_channels=transformer["in_channels"],
        rotary_dims=2 * (heads * head_dim // 6), parameters=layers * 16 * (heads * head_dim) ** 2,
    )  # fmt: skip


def _cogvideox(index: Any, transformer: Any, vae: Any) -> BackboneSpec:
    head_dim, heads, layers = (transformer[key] for key in ("attention_head_dim", "num_attention_heads", "num_layers"))
    if transformer.get("patch_size_t") is not None:
        raise UsageError("CogVideoX 1.5 joins two latent frames into one token, which longgen cannot drive yet",
                         accepted="CogVideoX 2B or 5B of the first version", do="choose another model")  # fmt: skip
    rotary, patch = transformer["use_rotary_positional_embeddings"], transformer["patch_size"]
    width = heads * head_dim
    return replace(
        COGVIDEOX_5B, stride_t=transformer["temporal_compression_ratio"], stride_hw=2 ** (len(vae["block_out_channels"]) - 1),
        patch=(1, patch, patch), native_px=transformer["sample_frames"], layers=layers, heads=heads, head_dim=head_dim,
        ffn_dim=4 * width, latent_channels=transformer["in_channels"], rotary_dims=head_dim // 4 if rotary else 0,
        intrinsic_component=2 if rotary else None, capabilities=COGVIDEOX_5B.capabilities if rotary else (WHOLE_CLIP,),
        text_tokens=transformer["max_text_seq_length"], parameters=layers * 12 * width * (width + transformer["time_embed_dim"]),
    )  # fmt: skip


def _hunyuan(index: Any, transformer: Any, vae: Any) -> BackboneSpec:
    head_dim, heads = transformer["attention_head_dim"], transformer["num_attention_heads"]
    dual, single, ratio = transformer["num_layers"], transformer["num_single_layers"], transformer["mlp_ratio"]
    rotary_dims, patch = transformer["rope_axes_dim"][0], transformer["patch_size"]
    return replace(
        HUNYUANVIDEO, stride_t=vae["temporal_compression_ratio"], stride_hw=vae["spatial_compression_ratio"],
        patch=(transformer["patch_size_t"], patch, patch), layers=dual + single, heads=heads, head_dim=head_dim,
        ffn_dim=round(ratio * heads * head_dim), latent_channels=transformer["in_channels"],
        rotary_dims=rotary_dims, rotary_base=transformer["rope_theta"], intrinsic_component=min(4, rotary_dims // 2),
        parameters=round((dual * (20 + 4 * ratio) + single * (7 + 2 * ratio)) * (heads * head_dim) ** 2),
    )  # fmt: skip


_READERS: dict[str, Callable[[Any, Any, Any], BackboneSpec]] = {
    "WanPipeline": _wan, "LTXPipeline": _ltx, "CogVideoXPipeline": _cogvideox, "HunyuanVideoPipeline": _hunyuan,
}  # fmt: skip
