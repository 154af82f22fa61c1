"""A backbone by its name, or the spec of a model read from the configs of its folder or hub id."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from longgen.backbones import formats
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
from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError, MissingError, UsageError, unknown_name


def find(name: str) -> BackboneSpec:
    """The spec of a backbone by its name, by a local diffusers folder, or by a hub id in the local cache or on the hub.

    `NAME:PATH` is the causal backbone NAME with the weights in a file or folder. A file alone is `self-forcing:FILE` where
    something in it says that its model is causal; names and shapes of bidirectional ones are the same.
    Raises UsageError for a name that is none of these or a model longgen cannot drive, MissingError where the hub
    cannot be asked, LonggenError where a file is damaged.
    """
    if name in SPECS:
        return SPECS[name]
    known, colon, place = name.partition(":")
    if colon and known in SPECS:
        return _from_weights(SPECS[known], place)
    path = Path(os.path.expanduser(name))
    if name and os.path.isdir(path):  # "" would be the current folder; Path.is_dir raises where a name is too long
        return _from_folder(path)
    if colon and re.fullmatch(r"[\w.-]{2,}", known) and not os.path.exists(path):
        raise unknown_name("backbone", known, _CAUSAL, "NAME:PATH takes one of these")
    if (name and os.path.exists(path)) or path.suffix.lower() in formats.SUFFIXES:
        return _from_weights(SELF_FORCING, name, stated=False)
    if path.is_absolute() or name.startswith((".", "~")):
        raise MissingError(f"--backbone {name}: no such folder", expected="a folder with model_index.json, or a backbone's name",
                           hint="longgen backbones list")  # fmt: skip
    if name.count("/") == 1:
        return _from_hub(name)
    raise unknown_name("backbone", name, SPECS, "choose one of these, a hub id (owner/name) or a diffusers folder")


def _from_folder(folder: Path) -> BackboneSpec:
    if not os.path.lexists(folder / "model_index.json"):
        raise _no_pipeline(folder)
    spec = _from_configs(str(folder.resolve()), *(_read_json(folder / part) for part in _CONFIGS))
    transformers, others = ("transformer", "transformer_2"), ("text_encoder", "text_encoder_2", "vae")
    for part in transformers:
        _check_weights(folder / part, spec)
    parameters, companions = (sum(_parameters(folder / part) for part in parts) for parts in (transformers, others))
    return replace(spec, parameters=parameters or spec.parameters, companions=companions or spec.companions)


def _no_pipeline(folder: Path) -> LonggenError:
    """What a folder without model_index.json is, as far as its names tell."""
    given, expected = f"--backbone {folder}: model_index.json is not there", "a diffusers folder, with " + ", ".join(_CONFIGS)
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise system_failure(error, str(folder)) or MissingError(given, expected=expected, hint="check the folder") from None
    if "config.json" in names:
        kind = str(_read_json(folder / "config.json").get("_class_name", "no class of diffusers"))
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
    """Whether the weights of a transformer are those that its config describes, from the tables of their files.

    diffusers leaves weights out where the config has fewer layers than the files.
    """
    from longgen.backbones import checkpoints  # here: it imports torch

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return
    checkpoints.check_shards(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    for path in files:
        table = formats.header(path, "a safetensors file").tensors
        shapes |= {name: shape for name, (_, shape) in table.items()}
        dtypes |= {dtype for dtype, shape in table.values() if len(shape) > 1}
    how = formats.quantized(shapes, dtypes)
    if how is not None and not _read_json(folder / "config.json").get("quantization_config"):
        raise UsageError(f"{files[0]} holds {how}: longgen does not read them",
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


def _from_weights(spec: BackboneSpec, place: str, stated: bool = True) -> BackboneSpec:
    """The causal `spec` with the weights at `place`; a pipeline in the same folder gives the VAE and the text encoder.

    stated: whether the user said that the weights are causal; otherwise they have to.
    """
    if not spec.causal:
        raise UsageError(f"--backbone {spec.name}:{place}: {spec.name} takes no weights from elsewhere",
                         expected=f"NAME:PATH with {', '.join(_CAUSAL)}, or a diffusers folder",
                         hint="give the folder without a name before it")  # fmt: skip
    path = Path(os.path.abspath(os.path.expanduser(place)))
    if not place or not os.path.exists(path):
        given = f"{spec.name}:{place}" if stated else place
        raise MissingError(f"--backbone {given}: no such file or folder", expected=_WEIGHTS, hint="check the path")
    from longgen.backbones import checkpoints  # here: it imports torch

    weights, lora = _weights(spec, path)
    contents = checkpoints.examine(weights)
    tensors = contents.tensors
    bases = [_from_folder(path)] if (path / "model_index.json").is_file() else [spec, WAN_14B]
    width = tensors["patch_embedding.weight"].shape[0]
    base = next((base for base in bases if base.width == width), bases[0])
    checkpoints.config(weights, tensors, base)  # refuses what is not of that size
    if not stated and not contents.causal:
        whole = next((str(each) for each in path.parents[:2] if (each / "model_index.json").is_file()), "FOLDER")
        raise UsageError(f"{path} is a Wan transformer of width {width}, as {base.name}, and nothing in it says whether it is "
                         "causal (sees the past only) or bidirectional", expected=f"{', '.join(f'{one}:FILE' for one in _CAUSAL)} "
                         "for causal weights; the whole diffusers folder for bidirectional ones",
                         hint=f"causal: --backbone {SELF_FORCING.name}:{place}; bidirectional: --backbone {whole}")  # fmt: skip
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
            raise MissingError(f"--backbone {spec.name}:{path} has no weights in it", expected=_WEIGHTS, hint="check the folder")
        found = known[0]
        if found in files and found.name != file and len(files) > 1:
            raise UsageError(f"--backbone {spec.name}:{path} holds several files of weights: {', '.join(f.name for f in files)}",
                             expected="one", hint=f"give one of them, as {spec.name}:{found}")  # fmt: skip
    if not style or found.is_dir() or found.name == style:
        return found, None
    if found.with_name(style).is_file():
        return found, found.with_name(style)
    if found.name == file:  # of another name, it may be merged
        raise MissingError(f"--backbone {spec.name}:{path}: its LoRA {style} is not beside {found}",
                           expected=f"{file} and {style} in one folder", hint=f"copy {style} there")  # fmt: skip
    return found, None


def _parameters(folder: Path) -> int:
    """Parameters in the safetensors files of `folder`, read from their headers."""
    return sum(formats.header(path, "a safetensors file").parameters for path in folder.glob("*.safetensors"))


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
                           expected=f"a downloaded hub id, a diffusers folder, or one of {', '.join(SPECS)}",
                           hint="check the name and the network, or download it elsewhere and give its folder") from None  # fmt: skip
    return _from_configs(hub_id, *map(_read_json, paths))


_CAUSAL = [spec.name for spec in SPECS.values() if spec.causal]
_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
_WEIGHTS = "a .pt or .safetensors file, or a folder with one or with a transformer that diffusers wrote"
_CONFIGS = ("model_index.json", "transformer/config.json", "vae/config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise MissingError(f"{path} is not there", expected="a diffusers folder, with " + ", ".join(_CONFIGS),
                           hint="give the folder that holds model_index.json") from None  # fmt: skip
    except OSError as error:
        raise system_failure(error, str(path)) or MissingError(
            f"{path} cannot be read: {error.strerror}", expected="a diffusers folder", hint="check the file") from None  # fmt: skip
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"{path} is damaged: {reason}", expected="JSON as diffusers writes it", hint="download it again") from None


class _Config(dict[str, Any]):
    """A config that names itself where a key is not there, or its value cannot be."""

    def __init__(self, name: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise KeyError(f"{name} is no table")
        super().__init__(content)
        self.name = name

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"{self.name} has no {key}")

    def refuse(self, key: str, expected: str) -> NoReturn:
        raise _ValueError(f"{self.name} says {key} = {json.dumps(self[key])[:80]}", expected)

    def whole(self, key: str, most: int, multiple: int = 1, default: int | None = None) -> int:
        """The integer at `key`, from 1 to `most` and a multiple of `multiple`."""
        value = self[key] if default is None or key in self else default
        if type(value) is not int or not 1 <= value <= most or value % multiple:
            of = f", a multiple of {multiple}" if multiple > 1 else ""
            self.refuse(key, f"an integer from {multiple} to {most}{of}")
        return value

    def number(self, key: str, most: float) -> float:
        value = self[key]
        if type(value) not in (int, float) or not 0 < value <= most:  # NaN is neither
            self.refuse(key, f"a number above 0, to {most:g}")
        return float(value)

    def wholes(self, key: str, count: int | None, most: int) -> list[int]:
        """The integers from 1 to `most` at `key`; `count` of them."""
        value = self[key]
        fits = isinstance(value, list) and value and all(type(one) is int and 1 <= one <= most for one in value)
        if not fits or count not in (None, len(value)):
            self.refuse(key, f"a list of {count or 'several'} integers from 1 to {most}")
        return value


class _ValueError(Exception):
    """A value of a config that cannot be: what it is, and what is expected."""


_MOST_LAYERS, _MOST_HEADS, _MOST_HEAD_DIM, _MOST_WIDTH, _MOST_CHANNELS, _MOST_STRIDE = 1000, 1024, 1024, 2**17, 4096, 256
_MOST_FRAMES, _MOST_TOKENS = 10**6, 10**6


def _from_configs(source: str, *contents: Any) -> BackboneSpec:
    try:
        index, transformer, vae = (_Config(name, content) for name, content in zip(_CONFIGS, contents, strict=True))
        part = index.get("transformer")
        causal = isinstance(part, list) and part[-1:] == ["CausalWanTransformer3DModel"]  # whose pipeline has many names
        kind = "WanPipeline" if causal else index["_class_name"]
        if not isinstance(kind, str) or kind not in _READERS:
            raise UsageError(f"--backbone {source} is a {kind}", expected=", ".join(_READERS), hint="choose another model")
        spec = _READERS[kind](index, transformer, vae)
        _check_sizes(spec, transformer, vae)
    except (KeyError, TypeError, AttributeError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else f"its configs are not as diffusers writes them: {error}"
        raise UsageError(f"--backbone {source}: {reason}", expected=f"a model that diffusers wrote: {', '.join(_READERS)}",
                         hint="copy or download it again") from None  # fmt: skip
    except _ValueError as error:
        raise UsageError(
            f"--backbone {source}: {error.args[0]}", expected=error.args[1], hint="copy or download it again"
        ) from None
    verdicts = WAN_1_3B.verdicts if _same_shape(spec, WAN_1_3B) else {}
    if causal:
        spec, verdicts = replace(_on(SELF_FORCING, spec), checkpoint=f"{source}/transformer", lora=None), {}
    about = f"{'causal ' if causal else ''}{kind}, read from its configs"
    return replace(spec, name=source, source=source, about=about, license="see its model card", verdicts=verdicts)


def _check_sizes(spec: BackboneSpec, transformer: _Config, vae: _Config) -> None:
    """What two values decide together: the width, and the channels that the transformer and the VAE share."""
    if spec.width > _MOST_WIDTH:
        transformer.refuse("num_attention_heads", f"heads of {spec.head_dim} channels that make at most {_MOST_WIDTH} together")
    out = transformer.get("out_channels")
    if spec.family == "wan" and type(out) is int and out > 0 and spec.latent_channels > out:
        raise _ValueError(f"{transformer.name} says in_channels = {spec.latent_channels} and out_channels = {out}, as "
                          "image-to-video and control models do", "a text-to-video transformer: as many in as out")  # fmt: skip
    if out not in (None, spec.latent_channels):
        transformer.refuse("out_channels", f"{spec.latent_channels}, as in_channels")
    key = "z_dim" if "z_dim" in vae else "latent_channels"
    if key in vae and vae[key] != spec.latent_channels:
        transformer.refuse("in_channels", f"{vae[key]}, as {vae.name} says {key}")
    if not 1 <= spec.latent_channels <= _MOST_CHANNELS:
        transformer.refuse("in_channels", f"an integer from 1 to {_MOST_CHANNELS}")
    method = transformer.get("quantization_config")
    if isinstance(method, dict):
        name = str(method.get("quant_method"))
        library = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "gguf": "gguf", "quanto": "optimum.quanto"}.get(name)
        if library is None or importlib.util.find_spec(library.split(".")[0]) is None:
            raise _ValueError(f"{transformer.name} says that its weights are quantized by {name}", "weights in fp32, bf16 or fp16, "
                              f"or the library {library or name} and a model that diffusers loads with it")  # fmt: skip


def _same_shape(spec: BackboneSpec, known: BackboneSpec) -> bool:
    return all(
        getattr(spec, part) == getattr(known, part) for part in ("layers", "heads", "head_dim", "ffn_dim", "latent_channels")
    )


def _heads(transformer: Any, multiple: int) -> tuple[int, int]:
    heads = transformer.whole("num_attention_heads", _MOST_HEADS)
    return heads, transformer.whole("attention_head_dim", _MOST_HEAD_DIM, multiple)


def _wan(index: Any, transformer: Any, vae: Any) -> BackboneSpec:
    heads, head_dim = _heads(transformer, 2)
    if head_dim < 6:
        transformer.refuse("attention_head_dim", "at least 6: time, rows and columns share it")
    ffn_dim, layers = transformer.whole("ffn_dim", 10**6), transformer.whole("num_layers", _MOST_LAYERS)
    width, rotary_dims = head_dim * heads, head_dim - 4 * (head_dim // 6)
    experts = 2 if index.get("transformer_2", [None])[0] is not None else 1
    base = WAN_2_2_5B if index.get("expand_timesteps") else WAN_2_2_A14B if experts == 2 else WAN_1_3B
    patch_t, patch_h, patch_w = transformer.wholes("patch_size", 3, 16)
    return replace(
        base, stride_t=vae.whole("scale_factor_temporal", _MOST_STRIDE, default=4),
        stride_hw=vae.whole("scale_factor_spatial", _MOST_STRIDE, default=8), patch=(patch_t, patch_h, patch_w),
        most_lat=transformer.whole("rope_max_seq_len", _MOST_FRAMES, default=base.most_lat), layers=layers,
        heads=heads, head_dim=head_dim, ffn_dim=ffn_dim, latent_channels=transformer.whole("in_channels", _MOST_CHANNELS),
        rotary_dims=rotary_dims, experts=experts, intrinsic_component=min(WAN_1_3B.intrinsic_component or 1, rotary_dims // 2),
        parameters=experts * layers * (8 * width**2 + 2 * width * ffn_dim),
    )  # fmt: skip


def _ltx(index: Any, transformer: Any, vae: Any) -> BackboneSpec:
    heads, head_dim = _heads(transformer, 2)
    layers = transformer.whole("num_layers", _MOST_LAYERS)
    scaling = vae["spatio_temporal_scaling"]
    if not isinstance(scaling, list) or not all(type(one) is bool for one in scaling) or sum(scaling) > 8:
        vae.refuse("spatio_temporal_scaling", "a list of true and false, at most 8 of them true")
    halvings = 2 ** sum(scaling)
    return replace(
        LTX_2B, stride_t=vae.whole("patch_size_t", 16) * halvings, stride_hw=vae.whole("patch_size", 16) * halvings, layers=layers,
        heads=heads, head_dim=head_dim, ffn_dim=4 * heads * head_dim,
        latent_channels=transformer.whole("in_channels", _MOST_CHANNELS), rotary_dims=2 * (heads * head_dim // 6),
        parameters=layers * 16 * (heads * head_dim) ** 2,
    )  # fmt: skip


def _cogvideox(index: Any, transformer: Any, vae: Any) -> BackboneSpec:
    heads, head_dim = _heads(transformer, 4)
    layers = transformer.whole("num_layers", _MOST_LAYERS)
    if transformer.get("patch_size_t") is not None:
        raise UsageError("CogVideoX 1.5 joins two latent frames into one token, which longgen cannot drive yet",
                         expected="CogVideoX 2B or 5B of the first version", hint="choose another model")  # fmt: skip
    rotary, patch = transformer["use_rotary_positional_embeddings"], transformer.whole("patch_size", 16)
    if type(rotary) is not bool:
        transformer.refuse("use_rotary_positional_embeddings", "true or false")
    width, halvings = heads * head_dim, len(vae.wholes("block_out_channels", None, _MOST_WIDTH)) - 1
    if halvings > 8:
        vae.refuse("block_out_channels", "a list of at most 9 integers")
    return replace(
        COGVIDEOX_5B, stride_t=transformer.whole("temporal_compression_ratio", _MOST_STRIDE), stride_hw=2**halvings,
        patch=(1, patch, patch), native_px=transformer.whole("sample_frames", _MOST_FRAMES), layers=layers, heads=heads,
        head_dim=head_dim, ffn_dim=4 * width, latent_channels=transformer.whole("in_channels", _MOST_CHANNELS),
        rotary_dims=head_dim // 4 if rotary else 0, intrinsic_component=2 if rotary else None,
        capabilities=COGVIDEOX_5B.capabilities if rotary else (WHOLE_CLIP,),
        text_tokens=transformer.whole("max_text_seq_length", _MOST_TOKENS),
        parameters=layers * 12 * width * (width + transformer.whole("time_embed_dim", _MOST_WIDTH)),
    )  # fmt: skip


def _hunyuan(index: Any, transformer: Any, vae: Any) -> BackboneSpec:
    heads, head_dim = _heads(transformer, 2)
    dual, single = (transformer.whole(key, _MOST_LAYERS) for key in ("num_layers", "num_single_layers"))
    ratio, base = transformer.number("mlp_ratio", 64), transformer.number("rope_theta", 1e12)
    axes, patch = transformer.wholes("rope_axes_dim", 3, _MOST_HEAD_DIM), transformer.whole("patch_size", 16)
    if sum(axes) != head_dim or axes[0] % 2:
        transformer.refuse("rope_axes_dim", f"even numbers that add up to attention_head_dim, {head_dim}")
    stride_t, stride_hw = (vae.whole(f"{kind}_compression_ratio", _MOST_STRIDE) for kind in ("temporal", "spatial"))
    return replace(
        HUNYUANVIDEO, stride_t=stride_t, stride_hw=stride_hw, patch=(transformer.whole("patch_size_t", 16), patch, patch),
        layers=dual + single, heads=heads, head_dim=head_dim, ffn_dim=round(ratio * heads * head_dim),
        latent_channels=transformer.whole("in_channels", _MOST_CHANNELS), rotary_dims=axes[0], rotary_base=base,
        intrinsic_component=min(4, axes[0] // 2),
        parameters=round((dual * (20 + 4 * ratio) + single * (7 + 2 * ratio)) * (heads * head_dim) ** 2),
    )  # fmt: skip


_READERS: dict[str, Callable[[Any, Any, Any], BackboneSpec]] = {
    "WanPipeline": _wan, "LTXPipeline": _ltx, "CogVideoXPipeline": _cogvideox, "HunyuanVideoPipeline": _hunyuan,
}  # fmt: skip
