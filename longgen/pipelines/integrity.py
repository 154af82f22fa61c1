"""Loads a pipeline's models and checks that their files gave all weights: the libraries' warnings, or silence, are errors here.

A missing key leaves random weights in a text encoder and none in a diffusers model; an unread key belongs to another model than
the config describes; tied embeddings that differ are a bug of transformers 5.0 to 5.2 with Wan's text encoder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from longgen.errors import LonggenError

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
# Saved by older versions, and now derived from the config; and the half of a T5 that an encoder does not have.
HARMLESS = re.compile(r"(^|\.)(position_ids|inv_freq)$|^decoder\.|^lm_head\.weight$")
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # of a T5 encoder: one tensor by two names


def components(
    pipeline: type[DiffusionPipeline], source: str, dtypes: dict[str, torch.dtype], quantized: dict[str, Any], without: set[str]
) -> dict[str, Any]:
    """The checked models of the pipeline in `source` by name, but for those in `without`. quantized: configurations by name.

    Raises LonggenError where keys are missing, unread or contradict each other; and whatever the libraries raise.
    """
    models = {}
    for name, entry in pipeline.load_config(source).items():
        library, kind = entry if isinstance(entry, (list, tuple)) and len(entry) == 2 else (None, None)
        model = getattr(LIBRARIES.get(str(library)), kind, None) if isinstance(kind, str) else None
        if name not in without and isinstance(model, type) and issubclass(model, torch.nn.Module):
            options = {"quantization_config": quantized[name]} if name in quantized else {}
            models[name] = component(model, source, name, dtypes.get(name, dtypes["default"]), **options)
    return models


def component(kind: Any, source: str, name: str, dtype: torch.dtype, **options: Any) -> Any:
    """The model `name` of the pipeline in `source`, checked. Raises as `components`."""
    if issubclass(kind, transformers.PreTrainedModel):
        options["ignore_mismatched_sizes"] = True  # transformers' own error does not name the keys
    model, info = kind.from_pretrained(source, subfolder=name, dtype=dtype, output_loading_info=True, **options)
    folder = Path(source) / name
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
    return model
