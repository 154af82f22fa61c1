"""A model of transformers from one file of weights and a config that is given: what its folder says of itself is not asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from longgen.errors import LonggenError


def load(kind: Any, path: Path, config: Any, **settings: Any) -> Any:
    """A `kind` with the weights in the file `path`, in float32. Raises LonggenError where they are not those of `config`."""
    logging.set_verbosity_error()  # it lists CLIP's text half as unexpected, and warns of what the error below says
    logging.disable_progress_bar()  # the command line shows its own
    try:
        model, found = kind.from_pretrained(
            path.parent, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True,
            use_safetensors=path.suffix == ".safetensors", **settings,
        )  # fmt: skip
        wrong = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    except Exception as error:  # a damaged file raises what its format raises
        wrong = [(str(error).strip().splitlines() or [type(error).__name__])[0]]
    if wrong:
        raise LonggenError(f"{path} does not hold the weights of {kind.__name__}: {wrong[0]}", hint="download it again",
                           expected="the file as its publisher has it")  # fmt: skip
    return model
