"""Finds and reads LoRA files of any trainer: safetensors or torch, on this machine or on the hub.

diffusers, PEFT, DiffSynth, kohya, musubi, ComfyUI and the models' authors each have names of their own for the keys of a file.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longgen.backbones import formats
from longgen.backbones.hub import not_fetched
from longgen.backbones.system_errors import system_failure
from longgen.errors import MissingError, UsageError

EXPECTED = "a LoRA in safetensors made for this model, its folder, or a hub id (owner/name or owner/name/FILE)"
_PARTS = [  # the end of a key -> the part of a layer's LoRA
    (r"[._]lora_A(\.[\w-]+)?\.weight|\.lora_A(\.[\w-]+)?|[._]lora_down\.weight|[._]lora\.down\.weight"
     r"|\.lora_linear_layer\.down\.weight", "A"),
    (r"[._]lora_B(\.[\w-]+)?\.bias|[._]lora_up\.bias", "bias"),
    (r"[._]lora_B(\.[\w-]+)?\.weight|\.lora_B(\.[\w-]+)?|[._]lora_up\.weight|[._]lora\.up\.weight"
     r"|\.lora_linear_layer\.up\.weight", "B"),
    (r"\.alpha", "alpha"), (r"\.diff", "diff"), (r"\.diff_b", "diff_b"),
    (r"\.dora_scale|[._]lora_magnitude_vector(\.[\w-]+)?(\.weight)?", "magnitude"),
    *((rf"\.lokr_{name}", name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")),
]  # fmt: skip
_UNSUPPORTED = [  # a part of a key -> what has it, where it is not a plain LoRA
    (r"lokr_t2", "a LoKr with Tucker's decomposition"), (r"hada_", "a LoHa of LyCORIS"), (r"(^|\.)b?oft_", "an OFT"),
    (r"lora_mid", "a LoCon with lora_mid"),
    (r"lora_embedding_", "a LoRA of embeddings"), (r"ia3_", "an (IA)3"),
    (r"\.(w_norm|b_norm)$", "a LyCORIS file with norms"), (r"\.(a1|b1)\.weight$", "a GLoRA"),
    (r"\.modules_to_save\.", "a LoRA with whole layers beside it (modules_to_save)"),
]  # fmt: skip
_TRAINERS = [  # a part of a key -> the trainer with such keys
    (r"^lycoris_", "LyCORIS"), (r"^lora_(unet|te|transformer|dit)", "kohya or musubi"),
    (r"\.lora_[AB]\.default\.|^pipe\.", "DiffSynth"),
    (r"^base_model\.model\.", "PEFT"), (r"^diffusion_model\.", "ComfyUI"), (r"^transformer(_2)?\.", "diffusers"),
]  # fmt: skip
_TEXT_ENCODER = re.compile(r"^(lora_te\d?_|text_encoders?[\w]*\.|te\d?\.|cond_stage_model\.|conditioner\.|lora_te\.|text_model\.)")
_SECOND_EXPERT = re.compile(r"(pipe\.)?(transformer_2|dit2)\.")
_NO_WEIGHTS = re.compile(r"optimizer|scheduler|training_args|random_states|scaler", re.IGNORECASE)


@dataclass(frozen=True)
class LoraFile:
    """The content of a LoRA file.

    parts: (layer as the trainer calls it, expert or 0 for any) -> its A, B, alpha, bias, diff and diff_b; the magnitude of a DoRA;
    the factors of a LoKr (`longgen.pipelines.lokr`). text_weights: how many
    are for text encoders, which longgen leaves as they are. settings: PEFT's lora_alpha, alpha_pattern and use_rslora.
    """

    place: str
    path: Path
    parts: Mapping[tuple[str, int], Mapping[str, Tensor]]
    trainer: str
    text_weights: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int | None:
        """The most common input width of its layers; None where no layer has an A."""
        widths = Counter(parts["A"].shape[1] for parts in self.parts.values() if "A" in parts and parts["A"].ndim > 1)
        return widths.most_common(1)[0][0] if widths else None


def locate(place: str) -> Path | None:
    """The LoRA file at `place`, a path or a hub id in the local cache; None for a hub id that is not there."""
    path = Path(os.path.expanduser(place))
    if os.path.isdir(path):
        return _only_file(path, place)
    if os.path.exists(path):
        return path
    missing = MissingError(f"--lora {place}: no such file", expected=EXPECTED, hint="check the path")
    names_file = path.suffix.lower() in formats.SUFFIXES
    if (
        not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)+", place)
        or names_file == (place.count("/") == 1)
        or (names_file and os.path.isdir(place.split("/")[0]))
    ):
        raise missing
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
        raise missing from None
    return _only_file(folder, place) if _weights(path.name for path in folder.iterdir()) else None


def fetch(place: str) -> Path:
    """As `locate`; a hub id that is not in the local cache is downloaded. Raises MissingError where it cannot be had."""
    if (path := locate(place)) is not None:
        return path
    from huggingface_hub import HfApi, hf_hub_download

    owner, name, *inner = place.split("/")
    hub_id, file = f"{owner}/{name}", "/".join(inner)
    try:
        names = [sibling.rfilename for sibling in HfApi().model_info(hub_id, timeout=10).siblings or ()]
        files = _weights(names)
        if not file and len(files) == 1:
            file = files[0]
        if file in names:
            return Path(hf_hub_download(hub_id, file))
    except Exception as error:
        command = f"hf download {hub_id} {file}".rstrip()
        raise not_fetched(f"--lora {place}", error, "a file, or a hub id in the local cache",
                          f"on a machine with network: {command}; then copy the file here and give its path") from None  # fmt: skip
    if not files:
        raise UsageError(f"--lora {place}: its repository holds no such file of weights", expected=EXPECTED, hint="check the name")
    raise _several(place, [f"{hub_id}/{name}" for name in files])


def _weights(names: Iterable[str]) -> list[str]:
    """The files of weights among `names`: safetensors, or torch's where there are none."""
    names = sorted(name for name in names if not _NO_WEIGHTS.search(Path(name).name))
    endings = (".safetensors", ".sft"), (".pt", ".pth", ".ckpt", ".bin")
    return next((files for ending in endings if (files := [name for name in names if name.endswith(ending)])), [])


def _only_file(folder: Path, place: str) -> Path:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise system_failure(error, f"--lora {place}") or MissingError(
            f"--lora {place} cannot be read", expected=EXPECTED, hint="check the path") from None  # fmt: skip
    files = _weights(names)
    if not files:
        content = f"it holds {', '.join(names[:4])}" if names else "it is empty"
        raise MissingError(f"--lora {place}: the folder has no weights in it; {content}", expected=EXPECTED,
                           hint="check the folder")  # fmt: skip
    if len(files) > 1:
        raise _several(place, [str(folder / name) for name in files])
    return folder / files[0]


def _several(place: str, files: list[str]) -> UsageError:
    experts = [next((file for file in files if noise in Path(file).name.lower()), None) for noise in ("high", "low")]
    for_experts = f"--lora 1={experts[0]} --lora 2={experts[1]}, if these are for the two experts"
    example = for_experts if all(experts) else f"--lora {files[0]}"
    names = ", ".join(Path(file).name for file in files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    return UsageError(f"--lora {place} holds {len(files)} files of weights: {names}", expected="one; --lora can be repeated",
                      hint=f"name the right one, as {example}")  # fmt: skip


def _part_of(name: str) -> tuple[str, str] | None:
    """`diffusion_model.blocks.0.ffn.2.lora_down.weight` -> `diffusion_model.blocks.0.ffn.2`, `A`."""
    for pattern, part in _PARTS:
        if match := re.fullmatch(rf"(.+?)({pattern})", name):
            return match[1], part
    return None


def read(place: str, path: Path) -> LoraFile:
    """The LoRA in the file at `path`, given as `place`. Raises UsageError where it is something else or not finite."""
    content, settings = _content(place, path)
    names = list(content)
    for pattern, kind in _UNSUPPORTED:
        if any(re.search(pattern, name) for name in names):
            raise refused(place, f"it is {kind}, which longgen does not load", hint="take a plain LoRA of it, if there is one")
    matching = (trainer for pattern, trainer in _TRAINERS if any(re.search(pattern, name) for name in names))
    trainer = next(matching, "an unknown trainer")
    if not any(_part_of(name) for name in names):
        model = formats.model_of(names) or ("a Wan transformer" if formats.is_wan(map(formats.unwrapped, names)) else None)
        first = ", ".join(names[:3]) or "nothing"
        raise refused(place, f"it is {model}, not a LoRA" if model else f"it is not a LoRA; it holds {first}")
    if quantization := formats.quantized(names, ()):
        raise refused(place, f"it holds {quantization}", hint="take its file in bf16 or fp16")
    parts: dict[tuple[str, int], dict[str, Tensor]] = {}
    text_weights, unknown = 0, []
    two_experts = any(_SECOND_EXPERT.match(name) for name in names)
    for name, value in content.items():
        if _TEXT_ENCODER.match(name):
            text_weights += 1
            continue
        split = _part_of(name)
        if split is None or not isinstance(value, Tensor):
            unknown.append(name)
            continue
        layer, part = split
        expert = 0 if not two_experts else 2 if _SECOND_EXPERT.match(name) else 1
        if not torch.isfinite(value.float()).all():
            raise refused(place, f"{name} has values that are NaN or infinite", hint="take an earlier checkpoint of the training")
        layer_parts = parts.setdefault((layer, expert), {})
        if part in layer_parts:
            raise refused(place, f"{layer} has two parts {part}: it holds several LoRAs", hint="take one with a single adapter")
        layer_parts[part] = value
    if unknown:
        raise refused(place, f"{len(unknown)} of its {len(names)} keys are no part of a LoRA, as {unknown[0]}")
    if not parts:
        raise refused(place, f"it is only for a text encoder ({text_weights} weights), which longgen leaves as it is")
    return LoraFile(place, path, parts, trainer, text_weights, settings)


def _content(place: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a file, and PEFT's settings from its metadata or the adapter_config.json beside it."""
    content: Any
    content, metadata = formats.read(path, EXPECTED, name=f"--lora {path}")
    settings: dict[str, Any] = {}
    try:
        if "lora_adapter_metadata" in metadata:
            stored = json.loads(metadata["lora_adapter_metadata"])
            settings = {key.partition(".")[2]: value for key, value in stored.items() if key.startswith("transformer.")}
        config = path.with_name("adapter_config.json")
        if path.name.startswith("adapter_model") and config.is_file():
            settings = dict(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise system_failure(error, f"--lora {place}") or refused(
            place, "the settings of its training are damaged", hint="copy or download it again") from None  # fmt: skip
    for key in ("generator_lora", "state_dict", "lora", "model", "module"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    if settings.get("use_dora") and not any(
        part is not None and part[1] == "magnitude" for part in map(_part_of, map(str, content))
    ):
        raise refused(place, "it says that it is a DoRA, and has no magnitudes", hint="copy or download it again")
    return {str(key): value for key, value in content.items()}, settings


def refused(place: str, reason: str, hint: str = "take a LoRA made for this model") -> UsageError:
    return UsageError(f"--lora {place} cannot be used: {reason}", expected=EXPECTED, hint=hint)
