"""Reads a torch or safetensors file by what its first bytes say it is. Code in a pickle is never run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from longgen.backbones import formats
from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError, UsageError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # by the names of safetensors  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path: Path, expected: str, name: str | None = None, data: bool = True) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The content of the file at `path` by key, and its metadata. name: of the file in messages, its path by default.

    Weights stay on disk until they are used; without `data`, tensors of a safetensors file are on the meta device.
    Raises UsageError where the file is something else, LonggenError where it is damaged.
    """
    from safetensors.torch import load_file

    name = name or str(path)
    form = formats.form(path, expected, name)
    try:
        if form == "safetensors":
            header = formats.header(path, expected, name)
            if data:
                return load_file(path), header.metadata
            tensors = {key: torch.empty(shape, dtype=DTYPES.get(dtype, torch.uint8), device="meta")
                       for key, (dtype, shape) in header.tensors.items()}  # fmt: skip
            return tensors, header.metadata
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is an error below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=form == "zip")
    except LonggenError:
        raise
    except Exception as error:  # torch has no error of its own for what is no torch file
        if failure := system_failure(error, name):
            raise failure from error
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UsageError(f"{name} holds code ({code[1]}), which longgen does not run", expected=expected,
                             hint="choose another file, or have its author save only the weights") from None  # fmt: skip
        raise UsageError(f"{name} is neither a torch nor a safetensors file, or only a part of one", expected=expected,
                         hint="choose another file, or download it again") from None  # fmt: skip
    if not isinstance(content, Mapping):
        raise UsageError(f"{name} holds a {type(content).__name__}, not a dictionary of weights", expected=expected,
                         hint="choose another file, or download it again")  # fmt: skip
    return {str(key): value for key, value in content.items()}, {}
