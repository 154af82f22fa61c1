"""The header of a GGUF file: names, types and shapes of its tensors, without their data and without the library `gguf`.

The format is llama.cpp's (ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian: pairs of a key and a value, one entry a
tensor, then the tensors, each at a multiple of `general.alignment`. Of the values only texts and numbers are kept.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

from longgen.backbones import formats
from longgen.backbones.formats import Header
from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError

# number in the file -> name, weights in a block, bytes of a block (ggml.h, ggml_type; ggml-common.h)
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
}  # fmt: skip
NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
# what diffusers 0.42 computes with (diffusers/quantizers/gguf/utils.py, dequantize_functions), and what torch has itself
READABLE = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q5_1",
    "Q5_0",
    "Q4_1",
    "Q4_0",
    "Q6_K",
    "Q5_K",
    "Q4_K",
    "Q3_K",
    "Q2_K",
    "IQ4_NL",
    "IQ4_XS",
)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # number -> struct's letter
_TEXT, _ARRAY, _MOST = 8, 9, 1_000_000  # the most tensors, pairs or items that a header of a video model may have
_SHAPE = "comfy.gguf.orig_shape."  # ComfyUI-GGUF: the shape of a tensor that was flattened to fit blocks


def header(path: Path, expected: str) -> Header:
    """The header of the GGUF file at `path`; shapes as torch has them. Raises LonggenError where it is damaged or cut off."""

    def damaged(reason: str) -> LonggenError:
        return LonggenError(f"{path} is incomplete or damaged: {reason}", expected=expected, hint=formats.DOWNLOAD_AGAIN)

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic, version, tensors, pairs = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF" or version not in (2, 3):
                raise damaged(f"it is of GGUF version {version}, and 2 and 3 are known")
            if max(tensors, pairs) > _MOST:
                raise damaged(f"its table would have {max(tensors, pairs)} entries")
            metadata = {_text(file): _value(file, *_unpack(file, "I")) for _ in range(pairs)}
            entries = [_entry(file) for _ in range(tensors)]
            alignment = int(metadata.get("general.alignment", 32))
            start = -(-file.tell() // alignment) * alignment
        table, spans = {}, {}
        for name, shape, number, offset in entries:
            if number not in TYPES:
                raise damaged(f"{name} is of type {number}, which is not known")
            kind, block, block_bytes = TYPES[number]
            spans[name] = (start + offset, math.prod(shape) // block * block_bytes)
            stored = metadata.get(_SHAPE + name)
            table[name] = (kind, tuple(stored) if isinstance(stored, list) and math.prod(stored) == math.prod(shape) else shape)
    except OSError as error:
        raise system_failure(error, str(path)) or damaged(str(error)) from None
    except (struct.error, ValueError, OverflowError, KeyError, ZeroDivisionError, MemoryError) as error:
        raise damaged(f"its table cannot be read ({type(error).__name__})") from None
    end = max((first + count for first, count in spans.values()), default=0)
    if end > size:
        raise damaged(f"{size} of its {end} bytes are there")
    return Header(table, {key: str(value) for key, value in metadata.items() if not isinstance(value, list)}, spans)


def _unpack(file: BinaryIO, letters: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{letters}", file.read(struct.calcsize(f"<{letters}")))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > formats.MOST_HEADER:
        raise ValueError(f"a text of {length} bytes")
    content = file.read(length)
    if len(content) < length:
        raise ValueError("the file ends in a text")
    return content.decode("utf-8", errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _TEXT:
        return _text(file)
    if kind != _ARRAY:
        return _unpack(file, _SCALARS[kind])[0]
    inner, count = _unpack(file, "IQ")
    if count > _MOST:
        raise ValueError(f"a list of {count} items")
    return [_value(file, inner) for _ in range(count)]


def _entry(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name, (axes,) = _text(file), _unpack(file, "I")
    if axes > 8:
        raise ValueError(f"a tensor of {axes} axes")
    shape = _unpack(file, f"{axes}Q")
    kind, offset = _unpack(file, "IQ")
    return name, tuple(reversed(shape)), kind, offset
