"""Whether a model's files gave all of its weights: what the libraries warn of on loading, or say nothing about, is an error here.

A key that is in no file leaves random weights in the text encoder and none in a diffusers model; a key that nothing reads is of
another model than the config says; and tied embeddings that differ are what transformers 5.0 to 5.2 made of Wan's text encoder.
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
# Saved by older versions, and made anew from the config ever since; and the half of a T5 that an encoder does without.
HARMLESS = re.compile(r"(^|\.)(position_ids|inv_freq)$|^decoder\.|^lm_head\.weight$")
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # of a T5 encoder: one tensor by two names


def components(
    pipeline: type[DiffusionPipeline], source: str, dtypes: dict[str, torch.dtype], quantized: dict[str, Any], without: set[str]
) -> dict[str, Any]:
    """The models that the pipeline in `source` consists of, by name, checked. quantized: configurations by name.

    Raises LonggenError where keys are missing, left over or contradict each other; and what the libraries raise.
    """
    made = {}
    for name, entry in pipeline.load_config(source).items():
        library, kind = entry if isinstance(entry, (list, tuple)) and len(entry) == 2 else (None, None)
        model = getattr(LIBRARIES.get(str(library)), kind, None) if isinstance(kind, str) else None
        if name not in without and isinstance(model, type) and issubclass(model, torch.nn.Module):
            options = {"quantization_config": quantized[name]} if name in quantized else {}
            made[name] = component(model, source, name, dtypes.get(name, dtypes["default"]), **options)
    return made


def component(kind: Any, source: str, name: str, dtype: torch.dtype, **options: Any) -> Any:
    """The model `name` of the pipeline in `source`, checked. Raises as `components`."""
    if issubclass(kind, transformers.PreTrainedModel):
        options["ignore_mismatched_sizes"] = True  # its error would not say which; diffusers' does
    model, told = kind.from_pretrained(source, subfolder=name, dtype=dtype, output_loading_info=True, **options)
    place = _place(source, name)
    unfit = sorted(f"{key} {tuple(held)} for {tuple(wanted)}" for key, held, wanted in told["mismatched_keys"])
    missing = sorted(told["missing_keys"])
    unread = sorted(key for key in told["unexpected_keys"] if not HARMLESS.search(key))
    empty = sorted(key for key, weight in (*model.named_parameters(), *model.named_buffers()) if weight.is_meta)
    wrong = {
        "has sizes that its config.json does not:": unfit,
        "has no": missing or empty,
        f"holds weights that {kind.__name__} does not read:": unread,
    }
    for what, keys in wrong.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise LonggenError(f"{name}: {place} {what} {', '.join(keys[:3])}{more}",
                               expected=f"the weights of a {kind.__name__}, as its config.json describes it",
                               hint="copy or download it again; the config and the weights must be of one model")  # fmt: skip
    weights = dict(model.named_parameters(remove_duplicate=False))
    one, other = (weights.get(key) for key in EMBEDDINGS)
    if one is not None and other is not None and one is not other and not torch.equal(one, other):
        raise LonggenError(f"{name}: {' and '.join(EMBEDDINGS)} of {place} differ, and are one embedding",
                           expected="files in which they are equal, read by transformers 5.3 or newer",
                           hint=f"update transformers (here {transformers.__version__}), or download the file again")  # fmt: skip
    return model


def _place(source: str, name: str) -> str:
    """The file of the model's weights, or where several are listed."""
    folder = Path(source) / name
    files = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return str(files[0] if files else folder)
