"""Single files as people have them: a transformer under its authors' names, in safetensors, ComfyUI's scaled fp8 or GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from diffusers.loaders.single_file_utils import convert_ltx_vae_checkpoint_to_diffusers, convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from torch import Tensor

from tests.models import checkpoint

PREFIX = "model.diffusion_model."
_LTX = [("proj_in.", "patchify_proj."), ("time_embed.", "adaln_single."), (".norm_q.", ".q_norm."), (".norm_k.", ".k_norm.")]
_IMAGES = [("condition_embedder.image_embedder.norm1.", "img_emb.proj.0."),
           ("condition_embedder.image_embedder.norm2.", "img_emb.proj.4."),
           ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."),
           ("condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."),
           ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"), (".add_k_proj.", ".k_img."),
           (".add_v_proj.", ".v_img."), (".norm_added_k.", ".norm_k_img.")]  # fmt: skip
_HUNYUAN = [  # hyvideo/modules/models.py of Tencent-Hunyuan/HunyuanVideo fa14b00
    ("context_embedder.time_text_embed.timestep_embedder.linear_1.", "txt_in.t_embedder.mlp.0."),
    ("context_embedder.time_text_embed.timestep_embedder.linear_2.", "txt_in.t_embedder.mlp.2."),
    ("context_embedder.time_text_embed.text_embedder.", "txt_in.c_embedder."),
    ("context_embedder.proj_in.", "txt_in.input_embedder."),
    ("context_embedder.token_refiner.refiner_blocks.", "txt_in.individual_token_refiner.blocks."),
    (".attn.to_out.0.", ".self_attn_proj."), ("norm_out.linear.", "adaLN_modulation.1."), ("ff.net.0.proj.", "mlp.fc1."),
    ("ff.net.2.", "mlp.fc2."),
]  # fmt: skip
_HUNYUAN_BLOCKS = [
    ("norm1.linear.", "img_mod.linear."), ("norm1_context.linear.", "txt_mod.linear."), ("attn.norm_q.", "img_attn_q_norm."),
    ("attn.norm_k.", "img_attn_k_norm."), ("attn.norm_added_q.", "txt_attn_q_norm."), ("attn.norm_added_k.", "txt_attn_k_norm."),
    ("attn.to_out.0.", "img_attn_proj."), ("attn.to_add_out.", "txt_attn_proj."), ("ff.net.0.proj.", "img_mlp.fc1."),
    ("ff.net.2.", "img_mlp.fc2."), ("ff_context.net.0.proj.", "txt_mlp.fc1."), ("ff_context.net.2.", "txt_mlp.fc2."),
]  # fmt: skip
_HUNYUAN_REST = [
    ("x_embedder.", "img_in."), ("time_text_embed.timestep_embedder.linear_1.", "time_in.mlp.0."),
    ("time_text_embed.timestep_embedder.linear_2.", "time_in.mlp.2."),
    ("time_text_embed.guidance_embedder.linear_1.", "guidance_in.mlp.0."),
    ("time_text_embed.guidance_embedder.linear_2.", "guidance_in.mlp.2."),
    ("time_text_embed.text_embedder.linear_1.", "vector_in.in_layer."),
    ("time_text_embed.text_embedder.linear_2.", "vector_in.out_layer."), ("proj_out.", "final_layer.linear."),
]  # fmt: skip


def _renamed(name: str, table: list[tuple[str, str]]) -> str:
    for theirs, authors in table:
        name = name.replace(theirs, authors)
    return name


def authors(family: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` of diffusers' transformer as its authors name and fuse them."""
    if family == "hunyuan":
        return _hunyuan(dict(weights))
    if family == "wan":
        return {checkpoint.wans_name(_renamed(name, _IMAGES)): weight for name, weight in weights.items()}
    return {_renamed(name, _LTX): weight for name, weight in weights.items()}


def _hunyuan(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {}

    def fuse(new: str, *names: str) -> None:
        for end in ("weight", "bias"):
            if f"{names[0]}.{end}" in weights:
                result[f"{new}.{end}"] = torch.cat([weights.pop(f"{name}.{end}") for name in names])

    for block in sorted({name.rpartition(".attn.to_q.")[0] for name in weights if ".attn.to_q." in name}):
        q_k_v = tuple(f"{block}.attn.to_{part}" for part in "qkv")
        if block.startswith("single"):
            fuse(block.replace("single_transformer_blocks", "single_blocks") + ".linear1", *q_k_v, f"{block}.proj_mlp")
        elif block.startswith("context"):
            fuse(_renamed(block + ".", _HUNYUAN) + "self_attn_qkv", *q_k_v)
        else:
            new = block.replace("transformer_blocks", "double_blocks")
            fuse(f"{new}.img_attn_qkv", *q_k_v)
            fuse(f"{new}.txt_attn_qkv", *(f"{block}.attn.add_{part}_proj" for part in "qkv"))
    for name, weight in weights.items():
        if name.startswith("norm_out.linear."):
            scale, shift = weight.chunk(2)
            result[name.replace("norm_out.linear", "final_layer.adaLN_modulation.1")] = torch.cat([shift, scale])
        elif name.startswith("context_embedder."):
            result[_renamed(name, _HUNYUAN)] = weight
        elif name.startswith("single_transformer_blocks."):
            table = [("single_transformer_blocks", "single_blocks"), ("proj_out.", "linear2."), ("attn.norm_q.", "q_norm."),
                     ("attn.norm_k.", "k_norm."), ("norm.linear.", "modulation.linear.")]  # fmt: skip
            result[_renamed(name, table)] = weight
        elif name.startswith("transformer_blocks."):
            block, number, rest = name.split(".", 2)
            rest = next((new + rest[len(old) :] for old, new in _HUNYUAN_BLOCKS if rest.startswith(old)), rest)
            result[f"double_blocks.{number}.{rest}"] = weight
        else:
            result[_renamed(name, _HUNYUAN_REST)] = weight
    return result


def wan_vae(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Wan 2.1 VAE under its authors' names: those that diffusers' table takes to the names at hand."""
    inner = [f"residual.{i}.{end}" for i in (0, 2, 3, 6) for end in ("gamma", "weight", "bias")]
    inner += [f"{layer}.{end}" for layer in ("shortcut", "resample.1", "time_conv", "norm", "to_qkv", "proj")
              for end in ("gamma", "weight", "bias")]  # fmt: skip
    rows = [
        f"{half}.{stack}.{index}" for half, stack in (("encoder", "downsamples"), ("decoder", "upsamples")) for index in range(15)
    ]
    rows += [f"{half}.middle.{index}" for half in ("encoder", "decoder") for index in range(3)]
    names = [f"{row}.{end}" for row in rows for end in inner]
    names += [f"{layer}.{end}" for layer in ("conv1", "conv2", "encoder.conv1", "decoder.conv1", "encoder.head.0", "encoder.head.2",
              "decoder.head.0", "decoder.head.2") for end in ("gamma", "weight", "bias")]  # fmt: skip
    table = {new: old for new, old in convert_wan_vae_to_diffusers({name: name for name in names}).items() if new in tensors}
    return {table[name]: tensor for name, tensor in tensors.items()}


def ltx_vae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same of LTX-Video 0.9's, with the prefix that its files give it."""
    layers = ("conv1.conv", "conv2.conv", "norm3.norm", "conv_shortcut", "conv.conv", "conv")
    inner = [f"{place}{layer}.{end}" for place in ("", *(f"res_blocks.{i}." for i in range(4))) for layer in layers
             for end in ("weight", "bias")]  # fmt: skip
    rows = [
        f"{half}.{stack}.{index}" for half, stack in (("encoder", "down_blocks"), ("decoder", "up_blocks")) for index in range(10)
    ]
    names = [f"vae.{row}.{end}" for row in rows for end in inner]
    names += [f"vae.{half}.{conv}.conv.{end}" for half in ("encoder", "decoder") for conv in ("conv_in", "conv_out")
              for end in ("weight", "bias")]  # fmt: skip
    names += ["vae.per_channel_statistics.mean-of-means", "vae.per_channel_statistics.std-of-means"]
    candidates = {name: torch.empty(0, 0) for name in names}  # the table reads a shape
    at = {id(tensor): name for name, tensor in candidates.items()}
    table = {new: at[id(tensor)] for new, tensor in convert_ltx_vae_checkpoint_to_diffusers(dict(candidates)).items()}
    return {table[name]: tensor for name, tensor in tensors.items()}


def save(path: Path, weights: Mapping[str, Tensor], prefix: str = "", metadata: dict[str, str] | None = None) -> Path:
    save_file({prefix + name: weight.detach().clone().contiguous() for name, weight in weights.items()}, path, metadata)
    return path


def scaled_fp8(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As ComfyUI's scaled checkpoints: matrices of the blocks in 8 bits, each with a scale; a marker; the rest as it is."""
    result = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, weight in weights.items():
        if weight.ndim == 2 and name.endswith(".weight") and "blocks." in name:
            scale = weight.float().abs().max() / 448
            result[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
            result[name.removesuffix("weight") + "scale_weight"] = scale
        else:
            result[name] = weight
    return result


def save_gguf(path: Path, weights: Mapping[str, Tensor], kind: str = "F16", architecture: str = "wan") -> Path:
    """As ComfyUI-GGUF writes it: matrices in `kind`, what has one axis in float32."""
    writer, number = gguf.GGUFWriter(str(path), architecture), gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[number][0]
    for name, weight in weights.items():
        array: Any = weight.detach().float().numpy()
        if weight.ndim != 2 or weight.shape[-1] % block:
            writer.add_tensor(name, array)
        elif kind in ("F16", "F32"):
            writer.add_tensor(name, array.astype("float16" if kind == "F16" else "float32"))
        else:
            writer.add_tensor(name, gguf.quantize(array, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
