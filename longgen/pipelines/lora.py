"""LoRA on the transformers of a pipeline: every weight of a file is applied, or the file is refused.

W' = W + scale (alpha / rank) B A; of a DoRA, W' = m (W + scale (alpha / rank) B A) with its rows made of length m, by PEFT. What a
trainer calls a layer is looked up in a table made from the model's own layers.

Legend: W a weight [out, in], A [rank, in] and B [out, rank] of a LoRA, m [out] the magnitude of a DoRA.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

from longgen.backbones import formats
from longgen.backbones.registry import SPECS, family_of
from longgen.backbones.settings import parse_lora
from longgen.backbones.spec import BackboneSpec, Family
from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.pipelines import lokr, lora_files
from longgen.pipelines.lokr import Kronecker
from longgen.pipelines.lora_files import LoraFile, refused

_MODELS = [  # a part of a layer's name, with _ for . -> the model that has such layers
    (r"k_img|v_img|img_emb|image_embedder", "a Wan image-to-video model"), (r"vace_", "a Wan VACE model"),
    (r"individual_token_refiner|img_attn_qkv|context_embedder_token_refiner", "HunyuanVideo"),
    (r"transformer_blocks_\d+_(img_mod|txt_mlp)", "Qwen-Image"),
    (r"double_blocks|single_transformer_blocks|ff_context", "FLUX or HunyuanVideo"),
    (r"joint_blocks", "Stable Diffusion 3"),
    (r"(down|up|mid)_block|input_blocks|output_blocks|middle_block", "Stable Diffusion (a UNet)"),
    (r"(?<!transformer_)blocks_\d+_(self_attn|cross_attn|attn[12]|ffn)", "a Wan model"),
    (r"transformer_blocks_\d+_attn", "LTX-Video or CogVideoX"),
]  # fmt: skip
_UNET = re.compile(r"^(lora_(unet|transformer|dit|wan)|lycoris(_transformer|_unet)?)[._]")
_OUTER = {"base_model", "model", "pipe", "dit", "unet", "lora"} | formats.WRAPPERS

Shapes = Mapping[str, tuple[int, ...]]  # of a transformer's parameters


class Pair(NamedTuple):
    """A [rank, in], B [out, rank] and alpha / rank of one layer; of a DoRA also its magnitude [out]."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class LayerUpdates:
    """A LoRA on the layers of a model, by layer. additions: parameter -> what is added at scale 1."""

    pairs: Mapping[str, Pair]
    additions: Mapping[str, Tensor | Kronecker]

    @property
    def all_zero(self) -> bool:
        pairs = all(pair.magnitude is None and (pair.scale == 0 or not pair.b.any()) for pair in self.pairs.values())
        return pairs and not any(addition.any() for addition in self.additions.values())


def check(spec: BackboneSpec, texts: tuple[str, ...]) -> list[str]:
    """Notes on the LoRAs of `texts`. Raises LonggenError where one cannot be read or does not fit the model of `spec`."""
    if not diffusers.utils.USE_PEFT_BACKEND:
        raise MissingError("--lora needs the library peft, which is not installed", expected="pip install 'longgen[lora]'",
                           hint="install it, or leave --lora out")  # fmt: skip
    notes, uses, shapes = [], Counter[tuple[str, int]](), None
    for text in texts:
        place, scale, experts = parse_lora(text)
        path = lora_files.locate(place)
        if path is None:
            notes.append(f"--lora {place} is not on this machine: whether it fits is known once it is downloaded")
            continue
        shapes = shapes or shapes_of(meta_transformer(spec))
        file, experts_here = lora_files.read(place, path), experts[: spec.experts]
        updates = [fit(file, spec, shapes, expert, experts) for expert in experts_here]
        if scale == 0:
            notes.append(f"--lora {text} has scale 0: it changes nothing")
        elif all(update.all_zero for update in updates):
            notes.append(f"--lora {place} changes nothing: all its weights are zero")
        if file.text_weights:
            notes.append(f"--lora {place}: {file.text_weights} weights are for a text encoder, which longgen leaves as it is")
        keys = [(str(path.resolve()), expert) for expert in experts_here]
        uses.update(keys)
        if any(uses[key] == 2 for key in keys):
            notes.append(f"--lora {place} is given more than once: its scales add up")
    return list(dict.fromkeys(notes))


def meta_transformer(spec: BackboneSpec) -> Any:
    """The transformer of `spec` without its weights: from its config where that is on this machine, else as published."""
    family = family_of(spec)
    transformer_class = getattr(diffusers, family.transformer)
    has_config = spec.checkpoint is not None and (Path(spec.checkpoint) / "config.json").is_file()
    source, options = (spec.checkpoint, {}) if has_config else (spec.source, dict(subfolder="transformer"))
    with quiet(), torch.device("meta"):
        try:
            config = transformer_class.load_config(source, local_files_only=True, **options)
            return transformer_class.from_config({key: value for key, value in config.items() if key != "quantization_config"})
        except (OSError, ValueError):  # huggingface_hub's, where there is no config of it
            return transformer_class(**family.transformer_config(spec))


def shapes_of(transformer: Any) -> Shapes:
    """Those of weights in blocks, as GGUF has them, once they are decoded."""
    return {name: tuple(getattr(parameter, "quant_shape", parameter.shape)) for name, parameter in transformer.named_parameters()}


def layer_aliases(shapes: Mapping[str, Any], family: Family) -> dict[str, tuple[str, ...]]:
    """What trainers call the layers with parameters in `shapes`, with `_` for `.` -> the layers in diffusers, several if fused."""
    layers = {name.removesuffix(".weight").removesuffix(".bias") for name in shapes}
    table = {layer: (layer,) for layer in layers} | dict(family.author_layers(layers))
    table |= {layer.removesuffix(".0"): (layer,) for layer in layers if layer.endswith(".to_out.0")}
    return {name.replace(".", "_"): targets for name, targets in table.items()}


def bare(layer: str) -> str:
    """A trainer's name of a layer without its prefixes, with `_` for `.`."""
    layer = _UNET.sub("", layer).replace(".processor", "")
    parts = layer.split(".")
    while len(parts) > 1 and (parts[0] in _OUTER or parts[0] in ("transformer_2", "dit2")):
        parts = parts[1:]
    return "_".join(part for part in parts if not part.startswith("_") or part not in formats.WRAPPERS)


def fit(file: LoraFile, spec: BackboneSpec, shapes: Shapes, expert: int = 1, experts: tuple[int, ...] = (1, 2)) -> LayerUpdates:
    """`file` on the transformer number `expert` of `spec`, whose parameters have `shapes`. experts: for which the user gave it.

    Raises UsageError where a weight of the file is for no layer of it.
    """
    place, numbers = file.place, {number for _, number in file.parts}
    if numbers - {0} and spec.experts == 1:
        raise refused(place, f"it is for two experts, and {spec.name} has one transformer")
    if numbers == {2} and experts == (1,):
        raise refused(place, "its weights are for the second expert", hint="give it with 2= or without a number")
    table = layer_aliases(shapes, family_of(spec))
    layers = {layer: parts for (layer, number), parts in file.parts.items() if number in (0, expert)}
    unmatched = [layer for layer in layers if bare(layer) not in table]
    if unmatched:
        raise _no_such_layers(file, spec, unmatched, len(layers))
    pairs: dict[str, Pair] = {}
    additions: dict[str, Tensor | Kronecker] = {}
    for layer, parts in layers.items():
        targets = table[bare(layer)]
        weight, bias = f"{targets[0]}.weight", f"{targets[0]}.bias"
        added: dict[str, Any] = {weight if weight in shapes else targets[0]: parts.get("diff"), bias: parts.get("diff_b")}
        if any(part.startswith("w") for part in parts):
            added |= _kronecker(file, layer, parts, {f"{target}.weight": shapes.get(f"{target}.weight", ()) for target in targets})
        elif {"A", "B"} & parts.keys() or not {"diff", "diff_b"} & parts.keys():
            a, split_b = _pair(file, spec, layer, parts, [shapes.get(f"{target}.weight", ()) for target in targets])
            scale = _scale(file, parts, a.shape[0], targets[0])
            magnitudes = _magnitudes(file, layer, parts, [len(b) for b in split_b])
            for target, b, magnitude in zip(targets, split_b, magnitudes, strict=True):
                if target in pairs:
                    raise refused(place, f"{target} has two LoRAs, one of them called {layer}")
                pairs[target] = Pair(a, b.contiguous(), scale, magnitude)
            if "bias" in parts:
                added[bias] = scale * parts["bias"]
        for parameter, value in added.items():
            if value is None or not value.any():
                continue
            if shapes.get(parameter) != tuple(value.shape):
                actual = f"is {list(shapes[parameter])}" if parameter in shapes else "does not exist"
                raise refused(place, f"{layer} adds {list(value.shape)} to {parameter}, which {actual} in {spec.name}")
            if parameter in additions:
                raise refused(place, f"{parameter} is changed twice, once by {layer}")
            additions[parameter] = value
    if len({pair.magnitude is None for pair in pairs.values()}) == 2:
        raise refused(place, "some of its layers have magnitudes of a DoRA, and others none", hint="copy or download it again")
    return LayerUpdates(pairs, additions)


def _kronecker(
    file: LoraFile, layer: str, parts: Mapping[str, Tensor], weights: Mapping[str, tuple[int, ...]]
) -> dict[str, Kronecker]:
    """What a LoKr adds to the weights of the model's layers, of these shapes, that one layer of the file stands for."""
    found = lokr.factors(parts)
    if found is None:
        raise refused(file.place, f"{layer} has parts of a LoKr that do not fit each other ({', '.join(sorted(parts))})",
                      hint="copy or download it again")  # fmt: skip
    changes, first = {}, 0
    for name, shape in weights.items():
        rows = shape[0] if shape else 0
        changes[name] = Kronecker(*found, slice(first, first + rows))
        first += rows
    height = found[0].shape[0] * found[1].shape[0]
    if height != first:
        raise refused(file.place, f"{layer} is for a layer of {height} rows; that of {', '.join(weights)} has {first}")
    return changes


def _magnitudes(file: LoraFile, layer: str, parts: Mapping[str, Tensor], rows: list[int]) -> tuple[Tensor | None, ...]:
    """The magnitude of a DoRA for each of the model's layers, of as many `rows`, that one layer of the file stands for."""
    if "magnitude" not in parts:
        return (None,) * len(rows)
    magnitude = parts["magnitude"]
    if magnitude.numel() != sum(rows) or magnitude.shape[0] != sum(rows):
        raise refused(file.place, f"{layer} has a magnitude {list(magnitude.shape)} of a DoRA, for a layer of {sum(rows)} rows",
                      hint="take one whose magnitudes are of the rows")  # fmt: skip
    return magnitude.flatten().split(rows)


def _pair(
    file: LoraFile, spec: BackboneSpec, layer: str, parts: Mapping[str, Tensor], weights: list[tuple[int, ...]]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A of one layer of the file, and B for each of the model's layers that it stands for, whose weights have these shapes."""
    if not {"A", "B"} <= parts.keys():
        raise refused(file.place, f"{layer} has one half of a pair ({', '.join(sorted(parts))})", hint="copy or download it again")
    a, b = (value.to(torch.bfloat16) if value.dtype.itemsize == 1 else value for value in (parts["A"], parts["B"]))
    if a.ndim < 2 or b.ndim < 2 or a.shape[0] == 0 or a.shape[0] != b.shape[1]:
        raise refused(file.place, f"{layer} has parts {list(a.shape)} and {list(b.shape)}, which are no pair of one rank")
    if all(len(shape) == 2 for shape in weights):  # as 1x1 convolutions in the file
        a, b = (value.flatten(1) if value[0, 0].numel() == 1 else value for value in (a, b))
    rows = [shape[0] if shape else 0 for shape in weights]
    given, needed = (b.shape[0], *a.shape[1:]), (sum(rows), *weights[0][1:])
    if given != needed:
        width, sizes = _other_width(file, spec), f"{list(given)}; that of {spec.name} is {list(needed)}"
        raise refused(file.place, f"it is made for {width}" if width else f"{layer} is for a layer of {sizes}")
    return a, b.split(rows)


def _scale(file: LoraFile, parts: Mapping[str, Tensor], rank: int, target: str) -> float:
    """alpha / rank; 1 where neither the file nor PEFT's settings have an alpha."""
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise refused(file.place, f"the alpha of {target} is not a number")
        return float(parts["alpha"]) / rank
    alpha = file.settings.get("lora_alpha")
    patterns = file.settings.get("alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.match(rf"(.*\.)?({pattern})$", target):
            alpha = value
            break
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        return 1.0
    return alpha / rank**0.5 if file.settings.get("use_rslora") else alpha / rank


def _other_width(file: LoraFile, spec: BackboneSpec) -> str:
    """In words, the width that `file` was made for; empty where it is that of `spec`, or unknown."""
    if file.width in (None, spec.width):
        return ""
    names = ", ".join(known.name for known in SPECS.values() if known.width == file.width and not known.causal)
    return f"width {file.width}{f' ({names})' if names else ''}; {spec.name} has {spec.width}"


def _no_such_layers(file: LoraFile, spec: BackboneSpec, unmatched: list[str], count: int) -> UsageError:
    """The error for layers that the model does not have: it is another model, or a smaller one."""
    names, width = [bare(layer) for layer in unmatched], _other_width(file, spec)
    model = next((model for pattern, model in _MODELS if any(re.search(pattern, name) for name in names)), None)
    of_width = f", of {width}" if width else ""
    if len(unmatched) == count and model != f"a {family_of(spec).title} model":
        maker = f"for {model}" if model else f"for a model that longgen does not know (in names of {file.trainer})"
        return refused(file.place, f"it is {maker}{of_width}: there is no layer {unmatched[0]}, nor any other of its {count}")
    if width and len(unmatched) < count:
        return refused(file.place, f"it is made for {width}")
    others = f"and so {len(unmatched) - 1} more of its {count} layers" if len(unmatched) > 1 else f"one of its {count} layers"
    maker = f" (it is for {model})" if model and ("image" in model or "VACE" in model) else ""
    return refused(file.place, f"{spec.name} has no layer {unmatched[0]}, {others}{maker}{of_width}")


def load(pipe: Any, spec: BackboneSpec, texts: tuple[str, ...]) -> None:
    """Puts the LoRAs of `texts` on the transformers of `pipe`, each with its scale."""
    if not texts:
        return
    transformers = [pipe.transformer, getattr(pipe, "transformer_2", None)][: spec.experts]
    shapes = [shapes_of(transformer) for transformer in transformers]  # before LoRA layers rename parameters
    scales: dict[str, float] = {}
    for index, text in enumerate(texts):
        place, scale, experts = parse_lora(text)
        file, name = lora_files.read(place, lora_files.fetch(place)), f"lora-{index}"
        for expert in experts[: spec.experts]:
            transformer, updates = transformers[expert - 1], fit(file, spec, shapes[expert - 1], expert, experts)
            for parameter, value in updates.additions.items():
                module = transformer.get_submodule(parameter.rpartition(".")[0])
                weight = getattr(getattr(module, "base_layer", module), parameter.rpartition(".")[2])
                if type(weight.data) is not Tensor:
                    raise refused(place, f"it adds to {parameter}, which --quantize int8 has packed",
                                  hint="leave --quantize out, or take fp8")  # fmt: skip
                change = value.dense() if isinstance(value, Kronecker) else value
                weight.data = (weight.data.float() + scale * change.to(weight.device).float()).to(weight.dtype)
            if updates.pairs:
                _load_adapter(pipe, transformer, updates, name, place, expert)
                scales[name] = scale
    if scales:
        with quiet():
            (pipe if hasattr(pipe, "set_adapters") else pipe.transformer).set_adapters(list(scales), list(scales.values()))


def _load_adapter(pipe: Any, transformer: Any, updates: LayerUpdates, name: str, place: str, expert: int) -> None:
    """Hands the pairs to diffusers under its own names, and checks that each has arrived."""
    content = {}
    for layer, pair in updates.pairs.items():
        content[f"transformer.{layer}.lora_A.weight"], content[f"transformer.{layer}.lora_B.weight"] = pair.a, pair.b
        if pair.magnitude is not None:
            content[f"transformer.{layer}.lora_magnitude_vector.weight"] = pair.magnitude
    try:
        with quiet():
            if not hasattr(pipe, "load_lora_weights"):  # HunyuanVideo-1.5's, whose transformer has it
                transformer.load_lora_adapter(content, adapter_name=name)
            else:
                pipe.load_lora_weights(content, adapter_name=name, **({"load_into_transformer_2": True} if expert == 2 else {}))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise system_failure(error, f"--lora {place}") or refused(place, reason) from error
    for layer, (a, b, scale, magnitude) in updates.pairs.items():
        module = transformer.get_submodule(layer)
        given = {"lora_A": a, "lora_B": b} | ({} if magnitude is None else {"lora_magnitude_vector": magnitude})
        loaded: dict[str, Any] = {part: getattr(module, part, {}) for part in given}
        equal = all(name in loaded[part] and torch.equal(loaded[part][name].weight.cpu(), value.to(loaded[part][name].weight.dtype))
                    for part, value in given.items())  # fmt: skip
        if not equal:
            raise LonggenError(f"--lora {place}: diffusers did not load {layer} as it is in the file", expected=lora_files.EXPECTED,
                               hint="report this, with the versions that longgen doctor prints")  # fmt: skip
        module.lora_alpha[name] = scale * module.r[name]  # set_adapters scales by lora_alpha / r


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the libraries' logs and warnings: what they would report is checked here, and becomes a note or an error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
