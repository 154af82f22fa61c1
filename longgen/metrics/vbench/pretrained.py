"""Loads a transformers model from a weights file and a given config, ignoring the config in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from longgen.errors import LonggenError


def load(kind: Any, path: Path, config: Any, **settings: Any) -> Any:
    """A model of class `kind` with the weights in the file `path`, in float32. Raises LonggenError if they do not fit `config`."""
    logging.set_verbosity_error()  # it lists CLIP's text encoder as unexpected, and warns of what the error below reports
    logging.disable_progress_bar()  # the command line has its own
    try:
        model, info = kind.from_pretrained(
            path.parent, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True,
            use_safetensors=path.suffix == ".safetensors", **settings,
        )  # fmt: skip
        wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    except Exception as error:  # of many types, for damaged files
        wrong = [(str(error).strip().splitlines() or [type(error).__name__])[0]]
    if wrong:
        raise LonggenError(f"{path} does not hold the weights of {kind.__name__}: {wrong[0]}", hint="download it again",
                           expected="the published file")  # fmt: skip
    return model
