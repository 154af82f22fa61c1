"""Reads the transformer of a single file (safetensors, ComfyUI's fp8, GGUF) tensor by tensor, and the VAE of another.

diffusers' `from_single_file` casts everything to one dtype, where `from_pretrained` keeps some of Wan's layers in float32; so here
are its tables of names, which a state dict goes through, and the rest as `from_pretrained` has it: the video is the folder's, bit
for bit. A tensor is read into memory of its own and cast before the next is, so that the weights are there once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from torch import Tensor

from longgen.backbones import formats, gguf_header
from longgen.backbones.formats import Header
from longgen.backbones.single_file import EXPECTED, SCALES, WeightsFile, is_weight
from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError, MissingError
from longgen.pipelines.scaled_linear import ScaledLinear, dequantized

EIGHTHS = (torch.float8_e4m3fn, torch.float8_e5m2)
SWAPPED = ".adaLN_modulation.1."  # of HunyuanVideo: halves that diffusers swaps, so that a scale would lose its weight
GGUF_HINT = "pip install 'longgen[gguf]'"
PIECE = 2**23  # bytes that are read at once of a tensor that is cast
OnBytes = Callable[[int], None]


def transformer(kind: Any, config: Mapping[str, Any], file: WeightsFile, dtype: torch.dtype, on_bytes: OnBytes) -> Any:
    """The transformer in `file`, of diffusers' class `kind`. on_bytes: gets the bytes read so far.

    Raises LonggenError where its weights are not those of the config, MissingError where the library for GGUF is missing.
    """
    with init_empty_weights():
        model = kind.from_config(dict(config))
    if file.gguf:
        return _gguf(kind, model, file, dtype, on_bytes)
    kept = _kept_in_float32(kind, model, file.tensors)

    def target(bare: str) -> torch.dtype:
        return torch.float32 if bare in kept else dtype

    reader = Reader(file.path, file.header)
    scales = {bare: reader.read(name) for bare, name in file.tensors.items() if bare.endswith(SCALES)}
    weights, scale_of, done = {}, {}, 0
    for bare in sorted(filter(is_weight, file.tensors), key=lambda bare: file.header.spans[file.tensors[bare]]):
        eighths = file.header.tensors[file.tensors[bare]][0].startswith("F8_")
        weight = reader.read(file.tensors[bare], None if eighths else target(bare))
        scale = next((scales[name] for end in SCALES if (name := bare.removesuffix(".weight") + end) in scales), None)
        if not eighths:
            pass
        elif weight.ndim != 2 or bare in kept or SWAPPED in f".{bare}":
            weight = dequantized(weight, scale, target(bare))
        elif scale is not None:
            scale_of[weight.untyped_storage().data_ptr()] = scale
        weights[bare] = weight
        done += file.header.spans[file.tensors[bare]][1]
        on_bytes(done)
    weights = diffusers_names(kind, model, weights)
    for name, weight in weights.items():
        if weight.dtype in EIGHTHS:
            layer = model.get_submodule(name.rpartition(".")[0]) if name in dict(model.named_parameters()) else None
            if not isinstance(layer, torch.nn.Linear):
                weights[name] = dequantized(weight, _scale(weight, scale_of), dtype)
                continue
            check(model, {name: weight}, file.path, whole=False)
            model.set_submodule(name.rpartition(".")[0], ScaledLinear(layer, weight, _scale(weight, scale_of)))
            weights[name] = weight.view(torch.uint8)
    return place(model, weights, file.path)


def _scale(weight: Tensor, scale_of: Mapping[int, Tensor]) -> Tensor | None:
    """The scale of `weight`, which may be some rows of the tensor in the file."""
    scale = scale_of.get(weight.untyped_storage().data_ptr())
    if scale is None or scale.numel() == 1:
        return scale
    first = weight.storage_offset() // weight.shape[1]
    return scale.reshape(-1)[first : first + weight.shape[0]]


class Reader:
    """Reads tensors of the file at `path`, each into memory of its own; what is cast goes through one small buffer."""

    def __init__(self, path: Path, table: Header) -> None:
        self.path, self.table, self.buffer = path, table, torch.empty(PIECE, dtype=torch.uint8)

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `name`, as `dtype` where that is given and both are floats. Raises LonggenError where it cannot be read."""
        (first, count), (stored_name, shape) = self.table.spans[name], self.table.tensors[name]
        stored = getattr(torch, formats.DTYPES[stored_name])
        cast = dtype is not None and stored.is_floating_point and dtype != stored
        result = torch.empty(shape, dtype=dtype if cast else stored)
        flat, piece = result.reshape(-1), PIECE if cast else max(1, count)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(first)
                for start in range(0, count, piece):
                    size = min(piece, count - start)
                    part = self.buffer[:size] if cast else flat.view(torch.uint8)
                    _fill(file, memoryview(part.numpy()), self.path, name)
                    if cast:
                        values = part.view(stored)
                        flat[start // stored.itemsize :][: len(values)].copy_(values)
        except OSError as error:
            raise system_failure(error, str(self.path)) or _unfit(self.path, str(error)) from None
        return result


def _fill(file: FileIO, view: memoryview, path: Path, name: str) -> None:
    got = 0
    while got < len(view):
        more = file.readinto(view[got:])
        if not more:
            raise _unfit(path, f"ends in {name}")
        got += more


def _kept_in_float32(kind: Any, model: Any, names: Collection[str]) -> set[str]:
    """The names in the file that `from_pretrained` keeps in float32; classes that keep some are renamed one by one."""
    patterns = {*(kind._keep_in_fp32_modules or ())}
    if not patterns:
        return set()
    table = diffusers_names(kind, model, {name: name for name in filter(is_weight, names)})
    return {old for new, old in table.items() if patterns & {*new.split(".")}}


def diffusers_names(kind: Any, model: Any, weights: Mapping[str, Any]) -> dict[str, Any]:
    """`weights` under diffusers' names, fused ones as views; as they are where they have these names already."""
    expected = model.state_dict().keys()
    if weights.keys() <= expected:
        return dict(weights)
    weights, parts = dict(weights), {}
    if "img_emb.emb_pos" in weights:  # which diffusers' table lacks
        parts["condition_embedder.image_embedder.pos_embed"] = weights.pop("img_emb.emb_pos")
    for name in [name for name in weights if name.startswith("single_blocks.") and ".linear1." in name]:
        block, _, end = name.partition(".linear1.")
        place = block.replace("single_blocks", "single_transformer_blocks")
        width = model.get_submodule(f"{place}.attn.to_q").out_features  # diffusers' table has HunyuanVideo's, 3072
        weight = weights.pop(name)
        layers = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        for layer, part in zip(layers, weight.split((width, width, width, len(weight) - 3 * width)), strict=True):
            parts[f"{place}.{layer}.{end}"] = part
    renamed = SINGLE_FILE_LOADABLE_CLASSES[kind.__name__]["checkpoint_mapping_fn"](dict(weights)) | parts
    return renamed if len(expected & renamed.keys()) > len(expected & weights.keys()) else weights | parts


def place(model: Any, weights: Mapping[str, Tensor], path: Path) -> Any:
    """`model`, which is on the meta device, with `weights`, uncopied. Raises LonggenError where they are not its own."""
    check(model, weights, path)
    model.load_state_dict(dict(weights), assign=True)
    return model.eval()


def check(model: Any, weights: Mapping[str, Tensor], path: Path, whole: bool = True) -> None:
    """Raises LonggenError where `weights` are not the model's, by name and shape; all of them, if `whole`."""
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    lacking = [name for name in shapes if name not in weights] if whole else []
    surplus = [name for name in weights if name not in shapes]
    other = [f"{name} {tuple(weight.shape)} for {shapes[name]}" for name, weight in weights.items()
             if name in shapes and tuple(weight.shape) != shapes[name]]  # fmt: skip
    for names, fault in (
        (other, "has sizes that are not its model's:"),
        (lacking, "lacks"),
        (surplus, "holds what does not belong:"),
    ):
        if names:
            raise _unfit(path, f"{fault} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}",
                         type(model).__name__)  # fmt: skip


def _unfit(path: Path, fault: str, kind: str | None = None) -> LonggenError:
    expected = EXPECTED if kind is None else f"the weights of a {kind}, whole"
    return LonggenError(f"{path} {fault}", expected=expected, hint=formats.DOWNLOAD_AGAIN)


def need_gguf(path: Path) -> None:
    """Raises MissingError where the library is not installed that diffusers computes with such files by."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise MissingError(f"{path} is a GGUF file, and needs the library gguf, which is not installed", expected=GGUF_HINT,
                           hint="install it, or take the .safetensors file") from None  # fmt: skip


def _gguf(kind: Any, model: Any, file: WeightsFile, dtype: torch.dtype, on_bytes: OnBytes) -> Any:
    """Quantized matrices stay as they are, and diffusers' GGUFLinear computes with them; everything else becomes plain."""
    need_gguf(file.path)
    from diffusers import GGUFQuantizationConfig
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor
    from gguf import GGMLQuantizationType

    reader = Reader(file.path, file.header)
    weights, done = {}, 0
    for bare, name in sorted(file.tensors.items(), key=lambda item: file.header.spans[item[1]]):
        type_name, shape = file.header.tensors[name]
        if type_name in ("F32", "F16", "BF16"):
            weight: Any = reader.read(name)
        else:
            _, block, block_bytes = gguf_header.TYPES[gguf_header.NUMBERS[type_name]]
            raw = Header({name: ("U8", (*shape[:-1], shape[-1] // block * block_bytes))}, {}, file.header.spans)
            weight = GGUFParameter(Reader(file.path, raw).read(name), quant_type=GGMLQuantizationType[type_name])
        weights[bare] = weight
        done += file.header.spans[name][1]
        on_bytes(done)
    weights = diffusers_names(kind, model, weights)
    modules = dict(model.named_modules())
    for name, weight in weights.items():
        if isinstance(weight, GGUFParameter) and not isinstance(modules.get(name.rpartition(".")[0]), torch.nn.Linear):
            weights[name] = dequantize_gguf_tensor(weight).to(dtype)
    check(model, {name: _as_decoded(weight) for name, weight in weights.items()}, file.path)
    with tempfile.TemporaryDirectory() as folder:
        model.save_config(folder)
        return kind.from_single_file(
            weights,
            config=folder,
            local_files_only=True,
            dtype=dtype,
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
        )


def _as_decoded(weight: Any) -> Any:
    """A stand-in of the shape that `weight` has once it is decoded."""
    return torch.empty(weight.quant_shape if hasattr(weight, "quant_shape") else weight.shape, device="meta")
