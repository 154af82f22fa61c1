"""Identifies a file of weights by its first bytes and its tensor names, and reads it; no code in it is run.

Names of formats and of their keys are those of the projects that write them: safetensors, GGUF (llama.cpp), ComfyUI's scaled fp8,
bitsandbytes, GPTQ and AWQ, nunchaku (SVDQuant), torchao and optimum-quanto.
"""

from __future__ import annotations

import json
import math
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from longgen.backbones.system_errors import system_failure
from longgen.errors import LonggenError, MissingError, UsageError

SUFFIXES = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin", ".gguf")  # of what may be meant as a file of weights
MOST_HEADER = 100_000_000  # bytes: safetensors' own limit
DOWNLOAD_AGAIN = "download it again, and compare its size with the one on its page"
PLAIN = "take the file in bf16 or fp16 that it was made from; --quantize fp8 or int8 makes the weights small when they are loaded"
_UNPACK = "unpack it, and give the file that is in it"
_OTHER = "choose another file"
_MAGICS = [  # what the first bytes match -> what has them, what to do
    (rb"\Z", "an empty file", DOWNLOAD_AGAIN),
    (rb"\0+\Z", "filled with zeros where its format would stand: a download that was not finished", DOWNLOAD_AGAIN),
    (rb"version https://git-lfs", "a Git LFS pointer: the lines that stand for a file which was not downloaded",
     "git lfs pull in its repository, or hf download"),
    (rb"\x1f\x8b", "a gzip archive", _UNPACK), (rb"7z\xbc\xaf", "a 7-Zip archive", _UNPACK), (rb"Rar!", "a RAR archive", _UNPACK),
    (rb"BZh", "a bzip2 archive", _UNPACK), (rb"\xfd7zXZ", "an xz archive", _UNPACK), (rb"\(\xb5/\xfd", "a zstd archive", _UNPACK),
    (rb"\x89HDF", "an HDF5 file, as Keras writes it", _OTHER), (rb"\x93NUMPY", "a NumPy array", _OTHER),
    (rb"\x89PNG", "a PNG picture", _OTHER), (rb"\xff\xd8\xff", "a JPEG picture", _OTHER), (rb"RIFF", "a media file", _OTHER),
    (rb"%PDF", "a PDF document", _OTHER), (rb".{4}ftyp", "a video", _OTHER),
    (rb"[\xef\xbb\xbf\s]*(?i:<!doctype|<html|<head|<\?xml|<body)",
     "a web page and no weights: a download that failed, or that needs a login", DOWNLOAD_AGAIN),
]  # fmt: skip
_QUANTIZED = [  # a name of a tensor -> what it tells of the weights
    (r"\.(absmax|quant_map|nested_absmax|nested_quant_map)$|\.quant_state\.",
     "weights that bitsandbytes quantized to 4 bits (nf4 or fp4)"),
    (r"\.(SCB|weight_format)$", "weights that bitsandbytes quantized to 8 bits"),
    (r"\.(wscales|wcscales|wtscale|smooth_factor|smooth_factor_orig)$", "weights that nunchaku (SVDQuant) quantized to 4 bits"),
    (r"\.(qweight|qzeros|g_idx|weight_packed)$", "weights that GPTQ, AWQ or their like quantized"),
    (r"\.weight_scale_2$", "weights quantized to 4-bit floats with scales (nvfp4)"),
    (r"(^|\.)scaled_fp8$|\.(scale_weight|weight_scale|scale_input|input_scale|weight_scale_inv|comfy_quant)$",
     "8-bit weights with scales of their own (ComfyUI's scaled fp8)"),
    (r"\.weight\._(data|scale|qtype|shift)$", "weights that optimum-quanto quantized"),
    (r"\.weight[._](qdata|tensor_impl|int_data|_layout)", "weights that torchao quantized"),
]  # fmt: skip
_LORA = re.compile(r"(^|[._])(lora_|lora\.(up|down)\.|lokr_|hada_w\d|oft_|dora_scale)|_lora\.(up|down)\.")
_COMPANIONS = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.", "text_encoder.")
_MODELS = [  # a name of a tensor, without wrappers -> what has it; the first that fits
    (r"(^|\.)vace_", "a VACE transformer"),
    (r"^audio_patchify_proj\.|^audio_proj_in\.", "an LTX-2 transformer, with sound"),
    (r"^(byt5_in|vision_in|context_embedder_2|image_embedder\.norm_in)\.", "a HunyuanVideo-1.5 transformer"),
    (r"^clean_x_embedder\.", "a FramePack transformer"),
    (r"^(fps_embedding|fps_projection)\.", "a SkyReels-V2 transformer for diffusion forcing"),
    (r"^(img_emb|image_embedder)\.|\.(k_img|v_img|add_k_proj_img)\.|^condition_embedder\.image_embedder\.",
     "an image-to-video transformer"),
    (r"casual_audio_encoder|audio_injector|audio_proj\.", "an audio-driven Wan transformer (S2V or InfiniteTalk)"),
    (r"face_adapter|pose_patch_embedding|motion_encoder", "a Wan Animate transformer"),
    (r"control_adapter\.|^ref_conv\.", "a Wan Fun Control transformer"),
    (r"individual_token_refiner|context_embedder\.token_refiner", "a HunyuanVideo transformer"),
    (r"^(transformer_blocks\.\d+\.img_mod|img_in\.weight.*qwen)", "a Qwen-Image transformer"),
    (r"^double_blocks\.|^single_transformer_blocks\.", "a FLUX transformer"),
    (r"^patchify_proj\.|^time_embed\.emb\.|^audio_patchify_proj\.", "an LTX-Video transformer"),
    (r"^patch_embed\.text_proj\.|^mixins\.|^transformer\.layers\.\d+\.attention", "a CogVideoX transformer"),
    (r"^joint_blocks\.", "a Stable Diffusion 3 transformer"),
    (r"\.attn\.qkv_[xy]\.", "a Mochi transformer"),
    (r"^(input_blocks|output_blocks|middle_block)\.|^(down|up)_blocks\.\d+\.(attentions|resnets)|^mid_block\.|^unet\.",
     "a Stable Diffusion UNet"),
    (r"^(control_model|controlnet\w*)\.", "a ControlNet"),
    (r"^shared\.weight$|^token_embedding\.weight$|^encoder\.block\.\d+\.layer\.", "a text encoder, of the T5 kind"),
    (r"^(text_model|text_projection|positional_embedding|resblocks)\b", "a text encoder, of the CLIP kind"),
    (r"^(enc\.)?blk\.\d+\.|^token_embd\.", "a text encoder or language model of llama.cpp"),
    (r"^(vision_model|visual)\.", "an image encoder, of the CLIP kind"),
    (r"embed_tokens\.weight$|layers\.\d+\.self_attn\.q_proj\.", "a text encoder: a language model"),
    (r"^(decoder|encoder)\.(conv|mid|up|down|middle|head|block|norm)|^(post_)?quant_conv\.|^first_stage_model\.|^per_channel_statistics\.",
     "a VAE"),
]  # fmt: skip
WRAPPERS = {"model", "module", "diffusion_model", "transformer", "base_model", "default", "generator", "generator_ema",
            "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}  # fmt: skip
_CAUSAL = re.compile(r"causal|causvid|self[-_ ]?forcing|long[-_ ]?live|frames?_per_block|rolling[-_ ]?forcing", re.IGNORECASE)


DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16",
          "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # fmt: skip
DTYPE_NAMES = {f"torch.{dtype}": name for name, dtype in DTYPES.items()}  # safetensors' name by torch's


@dataclass(frozen=True)
class Header:
    """The header of a file of weights. tensors: name -> its dtype, as the format writes it, and its shape, as torch has it.

    spans: name -> the first byte in the file, and the number of bytes.
    """

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    metadata: Mapping[str, str]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors.values())


def form(path: Path, expected: str, name: str | None = None) -> str:
    """`safetensors`, `gguf`, `zip` or `pickle` (torch's two forms), from the first bytes of the file at `path`.

    name: of the file in messages, its path by default. Raises UsageError that names any other format, MissingError or
    LonggenError where it cannot be read.
    """
    name = name or str(path)

    def refuse(what: str, hint: str) -> NoReturn:
        raise UsageError(f"{name} is {what}", expected=expected, hint=hint)

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            refuse("a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device, and no file", "give a file")
        size = status.st_size
        with path.open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError) as error:  # the second for a name that no file can have
        raise system_failure(error, name) or MissingError(
            f"{name} cannot be read: {getattr(error, 'strerror', None) or error}", expected=expected, hint="check the path"
        ) from None

    if head.startswith(b"GGUF"):
        return "gguf"
    for pattern, what, hint in _MAGICS:
        if re.match(pattern, head, re.DOTALL):
            refuse(what, hint)
    if head[8:9] == b"{" or (len(head) > 8 and int.from_bytes(head[:8], "little") <= size and head[8:9] in b" \t\r\n{"):
        return "safetensors"
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise system_failure(error, name) or UsageError(
                f"{name} is the beginning of a torch file or a ZIP archive: its end is missing", expected=expected,
                hint=DOWNLOAD_AGAIN) from None  # fmt: skip
        if any(member.endswith("constants.pkl") for member in members):
            refuse("a TorchScript program", _OTHER)
        if any(member.endswith("data.pkl") for member in members):
            return "zip"
        if members and all(member.endswith(".npy") for member in members):
            refuse("a NumPy archive", _OTHER)
        refuse(f"a ZIP archive with {_some(members)}", _UNPACK)
    if head[:1] == b"\x80" and head[1] <= 5:
        return "pickle"
    if re.match(rb"[\xef\xbb\xbf\s]*[{\[]", head):
        index = b"weight_map" in head
        refuse("the index of weights in several files" if index else "JSON text and no weights",
               "give the folder that holds the files" if index else "give the weights that it belongs to")  # fmt: skip
    text = head.decode("utf-8", errors="ignore")  # the last letter may be cut
    if len(text.encode()) >= len(head) - 3 and all(letter.isprintable() or letter.isspace() for letter in text):
        refuse(f"text and no weights: {' '.join(text.split())[:60]!r}", DOWNLOAD_AGAIN)
    refuse("neither a torch nor a safetensors file, or only a part of one", "choose another file, or download it again")


def header(path: Path, expected: str, name: str | None = None) -> Header:
    """The header of the safetensors file at `path`. name: as in `form`. Raises LonggenError if damaged, UsageError if another."""
    name = name or str(path)
    if (kind := form(path, expected, name)) != "safetensors":
        if kind == "gguf":
            raise _no_gguf(name, expected)
        raise UsageError(f"{name} is a torch file in spite of its name", expected=expected, hint="give it the ending .pt")

    def damaged(reason: str) -> LonggenError:
        return LonggenError(f"{name} is incomplete or damaged: {reason}", expected=expected, hint=DOWNLOAD_AGAIN)

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MOST_HEADER, size - 8):
                raise damaged(f"its table would be {length} bytes long, and the file is of {size}")
            content = json.loads(file.read(length))
        metadata = content.pop("__metadata__", None) or {}
        tensors = {key: (entry["dtype"], tuple(map(int, entry["shape"]))) for key, entry in content.items()}
        spans = {key: tuple(map(int, entry["data_offsets"])) for key, entry in content.items()}
        end = max((last for _, last in spans.values()), default=0)
    except OSError as error:
        raise system_failure(error, name) or damaged(str(error)) from None
    except MemoryError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise damaged(f"its table cannot be read ({type(error).__name__})") from None
    if not all(isinstance(dtype, str) and min(shape, default=0) >= 0 for dtype, shape in tensors.values()):
        raise damaged("its table has shapes that cannot be")
    if 8 + length + end > size:
        raise damaged(f"{size} of its {8 + length + end} bytes are there")
    metadata = {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    return Header(tensors, metadata, {key: (8 + length + first, last - first) for key, (first, last) in spans.items()})


def _no_gguf(name: str, expected: str) -> UsageError:
    return UsageError(f"{name} is a GGUF file, of weights quantized for llama.cpp or ComfyUI-GGUF", expected=expected, hint=PLAIN)


def read(path: Path, expected: str, name: str | None = None, data: bool = True) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The content of the torch or safetensors file at `path` by key, and its metadata. name: as in `form`.

    Code in a pickle is never run. Weights stay on disk until they are used; without `data`, those of a safetensors file are on
    the meta device. Raises UsageError where the file is something else, LonggenError where it is damaged.
    """
    import torch  # here: it costs seconds, and most calls read headers only
    from safetensors.torch import load_file

    name = name or str(path)
    kind = form(path, expected, name)
    try:
        if kind == "gguf":
            raise _no_gguf(name, expected)
        if kind == "safetensors":
            table = header(path, expected, name)
            if data:
                return load_file(path), table.metadata
            tensors = {key: torch.empty(shape, dtype=getattr(torch, DTYPES.get(dtype, "uint8")), device="meta")
                       for key, (dtype, shape) in table.tensors.items()}  # fmt: skip
            return tensors, table.metadata
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is an error below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
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


def check_shards(folder: Path) -> None:
    """Raises MissingError where the index of `folder` names files of weights that are not there, though others are."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise system_failure(error, str(index)) or LonggenError(
                f"{index} is incomplete or damaged: it is not an index as diffusers writes it",
                expected="JSON with a weight_map", hint="copy or download it again") from None  # fmt: skip
        if missing and len(missing) < len(names):
            raise MissingError(f"{folder} lacks {len(missing)} of its {len(names)} files of weights: {', '.join(missing[:4])}",
                               expected=f"every file that {index.name} names",
                               hint="download them too; the rest stays as it is")  # fmt: skip


def quantized(names: Iterable[str], dtypes: Iterable[str]) -> str | None:
    """In words, how weights of these names and dtypes (as safetensors writes them) were quantized; None where they were not."""
    names, dtypes = list(names), set(dtypes)
    for pattern, method in _QUANTIZED:
        if any(re.search(pattern, name) for name in names):
            return method
    if small := sorted(dtype for dtype in dtypes if dtype.startswith(("F8", "F4", "F6_"))):
        return f"8-bit float weights without scales (plain fp8, {small[0]})" if small[0].startswith("F8") else "4-bit float weights"
    if dtypes & {"I8", "U8"} and not dtypes & {"F32", "F16", "BF16", "F64"}:
        return "8-bit integer weights"
    return None


def is_lora(names: Iterable[str]) -> bool:
    return any(_LORA.search(name) for name in names)


def model_of(names: Iterable[str]) -> str | None:
    """In words, a known model with tensors of these names; None for an unknown one and a plain Wan text-to-video transformer."""
    names = list(names)
    transformer = [name for name in names if name.startswith("model.diffusion_model.")]
    is_pipeline = bool(transformer) and any(name.startswith(_COMPANIONS) for name in names)
    bare = [unwrapped(name) for name in (transformer if is_pipeline else names)]
    model = next((model for pattern, model in _MODELS if any(re.search(pattern, name) for name in bare)), None)
    if is_pipeline:
        model = model or ("a Wan transformer" if is_wan(bare) else "a transformer")
        return f"a whole pipeline in one file (a checkpoint of ComfyUI or Stable Diffusion: {model}, VAE and text encoder together)"
    return None if model in ("a FLUX transformer", "a VAE") and is_wan(bare) else model


def is_wan(names: Iterable[str]) -> bool:
    """Whether these names, without wrappers, are those of a Wan transformer, in Wan's own or in diffusers' form."""
    names = set(names)
    return "patch_embedding.weight" in names and any(name.startswith("blocks.0.") for name in names)


def unwrapped(name: str) -> str:
    """`model._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.norm3.bias` -> `blocks.0.norm3.bias`."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def says_causal(texts: Iterable[str]) -> bool:
    """Whether names or metadata say that a model sees its past only."""
    return any(_CAUSAL.search(text) for text in texts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing in it"
