"""LoRA files of any trainer, fitted to the layers of one transformer: every weight of a file arrives, or the file is refused.

W' = W + scale (alpha / rank) B A. diffusers, PEFT, DiffSynth, kohya, musubi and ComfyUI call A and B, their layers and alpha by
names of their own; what a trainer calls a layer is looked up in a table made from the model's own layers.

Legend: W a weight [out, in], A [rank, in] and B [out, rank] of a LoRA.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from longgen.backbones import formats
from longgen.backbones.registry import SPECS, family_of
from longgen.backbones.settings import parse_lora
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.pipelines import lora_names

ACCEPTED = "a LoRA in safetensors made for this model, its folder, or a hub id (owner/name or owner/name/FILE)"
_FILES = ("*.safetensors", "*.sft"), ("*.pt", "*.pth", "*.ckpt", "*.bin")
_NO_LORA = re.compile(r"optimizer|scheduler|training_args|random_states|scaler", re.IGNORECASE)


@dataclass(frozen=True)
class File:
    """What a LoRA file holds. parts: of each layer, as the trainer calls it, and of an expert (0 for any): A, B, alpha, ..."""

    place: str
    path: Path
    parts: Mapping[tuple[str, int], Mapping[str, Tensor]]
    trainer: str
    text: int  # keys of text encoders
    settings: Mapping[str, Any] = field(default_factory=dict)  # of PEFT: lora_alpha, alpha_pattern, use_rslora


@dataclass(frozen=True)
class Fitted:
    """A LoRA on the layers of a model. pairs: A, B and alpha / rank. additions: what parameters grow by, at scale 1."""

    pairs: Mapping[str, tuple[Tensor, Tensor, float]]
    additions: Mapping[str, Tensor]

    @property
    def silent(self) -> bool:
        """Whether it changes nothing."""
        pairs = all(scale == 0 or not b.any() for _, b, scale in self.pairs.values())
        return pairs and not any(one.any() for one in self.additions.values())


def check(spec: BackboneSpec, texts: tuple[str, ...]) -> list[str]:
    """Whether every LoRA of `texts` can be read and fits the model of `spec`, of which nothing is loaded. Returns notes.

    Raises MissingError, UsageError, or LonggenError where a file is damaged.
    """
    if not diffusers.utils.USE_PEFT_BACKEND:
        raise MissingError("--lora needs the library peft, which is not installed", expected="pip install 'longgen[lora]'",
                           hint="install it, or leave --lora out")  # fmt: skip
    notes, seen, model = [], Counter[tuple[str, int]](), None
    for text in texts:
        place, scale, experts = parse_lora(text)
        path = located(place)
        if path is None:
            notes.append(f"--lora {place} is not on this machine: whether it fits is known once it is downloaded")
            continue
        with quiet():
            model = model or skeleton(spec)
        file = read(place, path)
        fitted = [fit(file, spec, model, expert, experts) for expert in experts[: spec.experts]]
        if scale == 0:
            notes.append(f"--lora {text} has scale 0: it changes nothing")
        elif all(one.silent for one in fitted):
            notes.append(f"--lora {place} changes nothing: all that it would add is zero")
        if file.text:
            notes.append(f"--lora {place}: {file.text} weights are for a text encoder, which longgen leaves as it is")
        for expert in experts[: spec.experts]:
            seen[str(path.resolve()), expert] += 1
        if any(seen[str(path.resolve()), expert] == 2 for expert in experts[: spec.experts]):
            notes.append(f"--lora {place} is given more than once: its scales add up")
    return list(dict.fromkeys(notes))


def skeleton(spec: BackboneSpec) -> Any:
    """The transformer of `spec` without its weights: by its config where that is on this machine, else as published."""
    family = family_of(spec)
    transformer_class = getattr(diffusers, family.transformer)
    own = spec.checkpoint if spec.checkpoint and (Path(spec.checkpoint) / "config.json").is_file() else None
    with torch.device("meta"):
        try:
            place = dict(subfolder="transformer") if own is None else {}
            config = transformer_class.load_config(own or spec.source, local_files_only=True, **place)
            return transformer_class.from_config({key: value for key, value in config.items() if key != "quantization_config"})
        except (OSError, ValueError):  # the hub's client has no config of it
            return transformer_class(**family.transformer_config(spec))


def located(place: str) -> Path | None:
    """The LoRA file at `place`, a path or a hub id in the local cache; None for a hub id that is not there."""
    path = Path(os.path.expanduser(place))
    if os.path.isdir(path):
        return _only(path, place)
    if os.path.exists(path):
        return path
    if not _may_be_hub(place):
        raise MissingError(f"--lora {place}: no such file", expected=ACCEPTED, hint="check the path")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    owner, name, *inner = place.split("/")
    try:
        if inner:
            return Path(hf_hub_download(f"{owner}/{name}", "/".join(inner), local_files_only=True))
        folder = Path(snapshot_download(f"{owner}/{name}", local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise MissingError(f"--lora {place}: no such file", expected=ACCEPTED, hint="check the path") from None
    return _only(folder, place) if any(_candidates(folder)) else None


def fetched(place: str) -> Path:
    """As `located`; a hub id that is not in the local cache is downloaded. Raises MissingError where it cannot be had."""
    if (path := located(place)) is not None:
        return path
    from huggingface_hub import HfApi, hf_hub_download

    owner, name, *inner = place.split("/")
    hub_id, file = f"{owner}/{name}", "/".join(inner)
    try:
        names = [one.rfilename for one in HfApi().model_info(hub_id, timeout=10).siblings or ()]
        files = [one for one in names if one.endswith(".safetensors")] or [one for one in names if one.endswith((".pt", ".bin"))]
        if not file and len(files) == 1:
            file = files[0]
        if file in names:
            return Path(hf_hub_download(hub_id, file))
    except Exception as error:  # the hub client lets its HTTP library's errors through, of many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingError(f"--lora {place} is not in the local cache and cannot be fetched from the hub: {reason}",
                           expected="a file, or a hub id in the local cache",
                           hint=f"on a machine with network: hf download {hub_id} {file}".rstrip()
                              + "; then copy the file here and give its path") from None  # fmt: skip
    if not files:
        raise UsageError(f"--lora {place}: its repository holds no such file of weights", expected=ACCEPTED, hint="check the name")
    raise _several(place, [f"{hub_id}/{one}" for one in files])


def _may_be_hub(place: str) -> bool:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)+", place) or place.startswith((".", "/", "~")):
        return False
    file = Path(place).suffix.lower() in formats.SUFFIXES
    return not file if place.count("/") == 1 else file and not os.path.isdir(place.split("/")[0])


def _candidates(folder: Path) -> list[Path]:
    """The files of weights in `folder`: safetensors, else torch's."""
    for patterns in _FILES:
        files = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if not _NO_LORA.search(path.name)]
        if files:
            return files
    return []


def _only(folder: Path, place: str) -> Path:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise system_failure(error, f"--lora {place}") or MissingError(
            f"--lora {place} cannot be read", expected=ACCEPTED, hint="check the path") from None  # fmt: skip
    files = _candidates(folder)
    if not files:
        holds = f"it holds {', '.join(sorted(names)[:4])}" if names else "it is empty"
        raise MissingError(f"--lora {place}: the folder has no weights in it; {holds}", expected=ACCEPTED, hint="check the folder")
    if len(files) > 1:
        raise _several(place, [str(path) for path in files])
    return files[0]


def _several(place: str, files: list[str]) -> UsageError:
    low = [next((file for file in files if word in Path(file).name.lower()), None) for word in ("high", "low")]
    example = f"--lora 1={low[0]} --lora 2={low[1]}, if these are for the two experts" if all(low) else f"--lora {files[0]}"
    names = ", ".join(Path(file).name for file in files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    return UsageError(f"--lora {place} holds {len(files)} files of weights: {names}", expected="one; --lora can be repeated",
                      hint=f"give the one that is meant, as {example}")  # fmt: skip


# Reading


def read(place: str, path: Path) -> File:
    """The LoRA in the file at `path`, given as `place`. Raises UsageError where it is something else or not finite."""
    content, settings = _content(place, path)
    names = list(content)
    for pattern, kind in lora_names.KINDS:
        if any(re.search(pattern, name) for name in names):
            raise _refused(place, f"it is {kind}, which longgen does not load", hint="take a plain LoRA of it, if there is one")
    trainer = next(
        (who for pattern, who in lora_names.TRAINERS if any(re.search(pattern, name) for name in names)), "an unknown trainer"
    )
    if not any(lora_names.part_of(name) for name in names):
        model = formats.model_of(names) or ("a Wan transformer" if formats.wan(map(formats.unwrapped, names)) else None)
        holds = ", ".join(names[:3]) or "nothing"
        raise _refused(place, f"it is {model}, and no LoRA" if model else f"it is no LoRA; it holds {holds}")
    how = formats.quantized(names, ())
    if how:
        raise _refused(place, f"it holds {how}", hint="take its file in bf16 or fp16")
    parts: dict[tuple[str, int], dict[str, Tensor]] = {}
    text, strange, second = 0, [], any(re.match(r"(pipe\.)?(transformer_2|dit2)\.", name) for name in names)
    for name, value in content.items():
        if lora_names.TEXT.match(name):
            text += 1
            continue
        found = lora_names.part_of(name)
        if found is None or not isinstance(value, Tensor):
            strange.append(name)
            continue
        layer, part = found
        expert = 0 if not second else 2 if re.match(r"(pipe\.)?(transformer_2|dit2)\.", name) else 1
        if not torch.isfinite(value.float()).all():
            raise _refused(place, f"{name} has values that are NaN or infinite", hint="take an earlier checkpoint of the training")
        own = parts.setdefault((layer, expert), {})
        if part in own:
            raise _refused(place, f"{layer} has two parts {part}: it holds several LoRAs", hint="take one with a single adapter")
        own[part] = value
    if strange:
        raise _refused(place, f"{len(strange)} of its {len(names)} keys are no part of a LoRA, as {strange[0]}")
    if not parts:
        raise _refused(place, f"it is for a text encoder alone ({text} weights), which longgen leaves as it is")
    return File(place, path, parts, trainer, text, settings)


def _content(place: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a file, and the settings of PEFT that its metadata or adapter_config.json has."""
    from safetensors.torch import load_file

    settings: dict[str, Any] = {}
    try:
        form = formats.form(path, ACCEPTED)
        if form == "safetensors":
            header = formats.header(path, ACCEPTED)
            content: Any = load_file(path)
            if "lora_adapter_metadata" in header.metadata:
                stored = json.loads(header.metadata["lora_adapter_metadata"])
                settings = {key.partition(".")[2]: value for key, value in stored.items() if key.startswith("transformer.")}
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is an error below
                content = torch.load(path, map_location="cpu", weights_only=True)
        config = path.with_name("adapter_config.json")
        if path.name.startswith("adapter_model") and config.is_file():
            settings = json.loads(config.read_text(encoding="utf-8"))
    except LonggenError as error:
        raise type(error)(f"--lora {error.given}", expected=error.expected, hint=error.hint) from None
    except Exception as error:  # what is no torch file may fail in any way
        if failure := system_failure(error, f"--lora {place}"):
            raise failure from error
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds code ({code[1]}), which longgen does not run" if code else "it is damaged, or no file of weights"
        raise _refused(place, reason, hint="take it in safetensors") from None
    for key in ("generator_lora", "state_dict", "lora", "model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise _refused(place, f"it holds a {type(content).__name__}, and no weights by name")
    if settings.get("use_dora"):
        raise _refused(place, "it is a DoRA, which longgen does not load", hint="take a plain LoRA of it, if there is one")
    return {str(key): value for key, value in content.items()}, settings


# Fitting


def fit(file: File, spec: BackboneSpec, model: Any, expert: int = 1, experts: tuple[int, ...] = (1, 2)) -> Fitted:
    """`file` on the layers of `model`, the transformer number `expert` of `spec`, or one of its shape without weights.

    Raises UsageError where a weight of the file is for no layer of it.
    """
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    table, place = lora_names.layer_aliases(shapes, family_of(spec)), file.place
    numbers = {number for _, number in file.parts}
    if numbers - {0} and spec.experts == 1:
        raise _refused(place, f"it is for two experts, and {spec.name} has one transformer")
    if numbers == {2} and experts == (1,):
        raise _refused(place, "its weights are for the second expert", hint="give it with 2= or without a number")
    found = {
        layer: (parts, table.get(lora_names.bare(layer))) for (layer, number), parts in file.parts.items() if number in (0, expert)
    }
    lacking = [layer for layer, (_, targets) in found.items() if targets is None]
    if lacking:
        raise _unfit(file, spec, lacking, len(found))
    pairs: dict[str, tuple[Tensor, Tensor, float]] = {}
    additions: dict[str, Tensor] = {}

    def add(name: str, layer: str, value: Tensor) -> None:
        if not value.any():
            return
        if shapes.get(name) != tuple(value.shape):
            raise _refused(place, f"{layer} adds {list(value.shape)} to {name}, which {_shape(shapes.get(name))} in {spec.name}")
        additions[name] = value

    for layer, (parts, targets) in found.items():
        assert targets is not None
        weights = [shapes.get(f"{target}.weight") for target in targets]
        if "diff" in parts:
            add(f"{targets[0]}.weight" if weights[0] else targets[0], layer, parts["diff"])
        if "diff_b" in parts:
            add(f"{targets[0]}.bias", layer, parts["diff_b"])
        if not {"A", "B"} & parts.keys() and {"diff", "diff_b"} & parts.keys():
            continue
        if not {"A", "B"} <= parts.keys():
            raise _refused(place, f"{layer} has one half of a pair ({', '.join(sorted(parts))})", hint="copy or download it again")
        a, b = (value.to(torch.bfloat16) if value.dtype.itemsize == 1 else value for value in (parts["A"], parts["B"]))
        if a.ndim < 2 or b.ndim < 2 or a.shape[0] == 0 or a.shape[0] != b.shape[1]:
            raise _refused(place, f"{layer} has parts {list(a.shape)} and {list(b.shape)}, which are no pair of one rank")
        rows = [shape[0] if shape else 0 for shape in weights]
        if all(shape and len(shape) == 2 for shape in weights):
            a, b = (value.flatten(1) if value[0, 0].numel() == 1 else value for value in (a, b))
        whole = (sum(rows), *(weights[0] or ())[1:])
        if (b.shape[0], *a.shape[1:]) != whole:
            raise _wrong_size(file, spec, layer, (b.shape[0], *a.shape[1:]), whole, found)
        scale = _scale(file, parts, a.shape[0], targets[0])
        for target, share in zip(targets, b.split(rows), strict=True):
            if target in pairs:
                raise _refused(place, f"{target} has two LoRAs, one of them called {layer}")
            pairs[target] = (a, share.contiguous(), scale)
        if "bias" in parts:
            add(f"{targets[0]}.bias", layer, scale * parts["bias"])
    return Fitted(pairs, additions)


def _scale(file: File, parts: Mapping[str, Tensor], rank: int, target: str) -> float:
    """alpha / rank; alpha is the rank where neither the file nor PEFT's settings say it."""
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise _refused(file.place, f"the alpha of {target} is no number")
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


def _wrong_size(
    file: File, spec: BackboneSpec, layer: str, given: tuple[int, ...], needed: tuple[int, ...], found: Mapping[str, Any]
) -> UsageError:
    widths = Counter(parts["A"].shape[1] for parts, _ in found.values() if "A" in parts and parts["A"].ndim > 1)
    width = widths.most_common(1)[0][0]
    if width != spec.width:
        return _made_for(file, spec, width)
    return _refused(file.place, f"{layer} is for a layer of {list(given)}; that of {spec.name} is {list(needed)}")


def _made_for(file: File, spec: BackboneSpec, width: int) -> UsageError:
    return _refused(file.place, f"it is made for width {width}{_known(width)}; {spec.name} has {spec.width}",
                    hint="take a LoRA made for this model, or the --backbone that it was made for")  # fmt: skip


def _known(width: int) -> str:
    names = [spec.name for spec in SPECS.values() if spec.width == width and not spec.causal]
    return f" ({', '.join(names)})" if names else ""


def _unfit(file: File, spec: BackboneSpec, lacking: list[str], count: int) -> UsageError:
    """Layers that the model has not: of another model, or more of them."""
    names = [lora_names.bare(layer) for layer in lacking]
    model = next((what for pattern, what in lora_names.MODELS if any(re.search(pattern, name) for name in names)), None)
    widths = Counter(parts["A"].shape[1] for parts in file.parts.values() if "A" in parts and parts["A"].ndim > 1)
    width = widths.most_common(1)[0][0] if widths else spec.width
    wide = f", of width {width}{_known(width)} where {spec.name} has {spec.width}" if width != spec.width else ""
    if len(lacking) < count and wide:
        return _made_for(file, spec, width)
    same = model == f"a {family_of(spec).title} model"
    if len(lacking) == count and not same:
        of = f"for {model}" if model else f"for a model that longgen does not know (in names of {file.trainer})"
        return _refused(file.place, f"it is {of}{wide}: {spec.name} has no layer {lacking[0]}, nor any other of its {count}")
    more = f", and so {len(lacking) - 1} more of its {count} layers" if len(lacking) > 1 else f", one of its {count} layers"
    of = f" (it is for {model})" if model and ("image" in model or "VACE" in model) else ""
    return _refused(file.place, f"{spec.name} has no layer {lacking[0]}{more}{of}{wide}")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "is not there" if shape is None else f"is {list(shape)}"


def _refused(place: str, reason: str, hint: str = "take a LoRA made for this model") -> UsageError:
    return UsageError(f"--lora {place} cannot be used: {reason}", expected=ACCEPTED, hint=hint)


# Loading


def load(pipe: Any, spec: BackboneSpec, texts: tuple[str, ...]) -> None:
    """Puts the LoRAs of `texts` into the transformers of `pipe`, each with its scale."""
    if not texts:
        return
    models = [pipe.transformer, getattr(pipe, "transformer_2", None)][: spec.experts]
    plain = [{name: value.shape for name, value in model.named_parameters()} for model in models]
    scales: dict[str, float] = {}
    for index, text in enumerate(texts):
        place, scale, experts = parse_lora(text)
        file, name = read(place, fetched(place)), f"lora-{index}"
        for expert in experts[: spec.experts]:
            fitted = fit(file, spec, _Shapes(plain[expert - 1]), expert, experts)
            _add(models[expert - 1], fitted.additions, scale, place)
            if fitted.pairs:
                _load(pipe, models[expert - 1], fitted, name, place, expert)
                scales[name] = scale
    if scales:
        with quiet():
            pipe.set_adapters(list(scales), list(scales.values()))


class _Shapes:
    """The parameters of a model before LoRA layers renamed them."""

    def __init__(self, shapes: Mapping[str, Any]) -> None:
        self.shapes = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.shapes.items()


def _add(model: Any, additions: Mapping[str, Tensor], scale: float, place: str) -> None:
    for name, value in additions.items():
        module = model.get_submodule(name.rpartition(".")[0])
        own = getattr(getattr(module, "base_layer", module), name.rpartition(".")[2])
        if type(own.data) is not Tensor:
            raise _refused(place, f"it adds to {name}, which --quantize int8 has packed", hint="leave --quantize out, or take fp8")
        own.data = (own.data.float() + scale * value.to(own.device).float()).to(own.dtype)


def _load(pipe: Any, model: Any, fitted: Fitted, name: str, place: str, expert: int) -> None:
    """Hands the pairs to diffusers under its own names, and checks that each arrived."""
    content = {}
    for layer, (a, b, _) in fitted.pairs.items():
        content[f"transformer.{layer}.lora_A.weight"], content[f"transformer.{layer}.lora_B.weight"] = a, b
    try:
        with quiet():
            pipe.load_lora_weights(content, adapter_name=name, **({"load_into_transformer_2": True} if expert == 2 else {}))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise system_failure(error, f"--lora {place}") or _refused(place, reason) from error
    for layer, (a, b, scale) in fitted.pairs.items():
        module = model.get_submodule(layer)
        halves: list[Any] = [getattr(module, half, {}) for half in ("lora_A", "lora_B")]
        same = all(name in half and torch.equal(half[name].weight.cpu(), own.to(half[name].weight.dtype))
                   for half, own in zip(halves, (a, b), strict=True))  # fmt: skip
        if not same:
            raise LonggenError(f"--lora {place}: diffusers did not load {layer} as it is in the file", expected=ACCEPTED,
                               hint="report this, with the versions that longgen doctor prints")  # fmt: skip
        module.lora_alpha[name] = scale * module.r[name]  # scale / rank of it, which set_adapters multiplies by the scale


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context, the libraries log and warn nothing: what they would say is checked, and said as a note or an error."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft", "transformers", "accelerate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
