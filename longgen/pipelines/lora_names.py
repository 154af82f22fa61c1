"""What trainers call the layers of a model and the halves of a LoRA: from any trainer's key to a layer in diffusers.

diffusers, PEFT, DiffSynth, kohya, musubi, ComfyUI and the models' authors each have names of their own. They are looked up in a
table made from the model's own layers, so that nothing is guessed and nothing is left over unseen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from longgen.backbones import formats

_PARTS = [  # the end of a key -> which part of a layer's LoRA it is
    (r"[._]lora_A(\.[\w-]+)?\.weight|\.lora_A(\.[\w-]+)?|[._]lora_down\.weight|[._]lora\.down\.weight"
     r"|\.lora_linear_layer\.down\.weight", "A"),
    (r"[._]lora_B(\.[\w-]+)?\.bias|[._]lora_up\.bias", "bias"),
    (r"[._]lora_B(\.[\w-]+)?\.weight|\.lora_B(\.[\w-]+)?|[._]lora_up\.weight|[._]lora\.up\.weight"
     r"|\.lora_linear_layer\.up\.weight", "B"),
    (r"\.alpha", "alpha"), (r"\.diff", "diff"), (r"\.diff_b", "diff_b"),
]  # fmt: skip
KINDS = [  # a part of a key -> what has it, where it is no plain LoRA
    (r"lokr_", "a LoKr of LyCORIS"), (r"hada_", "a LoHa of LyCORIS"), (r"(^|\.)b?oft_", "an OFT"),
    (r"lora_mid", "a LoCon with lora_mid"),
    (r"dora_scale|lora_magnitude_vector", "a DoRA"), (r"lora_embedding_", "a LoRA of embeddings"), (r"ia3_", "an (IA)3"),
    (r"\.(w_norm|b_norm)$", "a LyCORIS file with norms"), (r"\.(a1|b1)\.weight$", "a GLoRA"),
    (r"\.modules_to_save\.", "a LoRA with whole layers beside it (modules_to_save)"),
]  # fmt: skip
TRAINERS = [  # a part of a key -> whose names they are
    (r"^lycoris_", "LyCORIS"), (r"^lora_(unet|te|transformer|dit)", "kohya or musubi"),
    (r"\.lora_[AB]\.default\.|^pipe\.", "DiffSynth"),
    (r"^base_model\.model\.", "PEFT"), (r"^diffusion_model\.", "ComfyUI"), (r"^transformer(_2)?\.", "diffusers"),
]  # fmt: skip
MODELS = [  # a part of a layer's name, with _ for . -> the model that has such layers
    (r"k_img|v_img|img_emb|image_embedder", "a Wan image-to-video model"), (r"vace_", "a Wan VACE model"),
    (r"individual_token_refiner|img_attn_qkv|context_embedder_token_refiner", "HunyuanVideo"),
    (r"transformer_blocks_\d+_(img_mod|txt_mlp)", "Qwen-Image"),
    (r"double_blocks|single_transformer_blocks|ff_context", "FLUX or HunyuanVideo"),
    (r"joint_blocks", "Stable Diffusion 3"),
    (r"(down|up|mid)_block|input_blocks|output_blocks|middle_block", "Stable Diffusion (a UNet)"),
    (r"(?<!transformer_)blocks_\d+_(self_attn|cross_attn|attn[12]|ffn)", "a Wan model"),
    (r"transformer_blocks_\d+_attn", "LTX-Video or CogVideoX"),
]  # fmt: skip
TEXT = re.compile(r"^(lora_te\d?_|text_encoders?[\w]*\.|te\d?\.|cond_stage_model\.|conditioner\.|lora_te\.|text_model\.)")
_UNET = re.compile(r"^(lora_(unet|transformer|dit|wan)|lycoris(_transformer|_unet)?)[._]")
_OUTER = {"base_model", "model", "pipe", "dit", "unet", "lora"} | formats.WRAPPERS
_WAN = [  # diffusers -> Wan's authors
    ("attn1.", "self_attn."), ("attn2.", "cross_attn."), (".to_q", ".q"), (".to_k", ".k"), (".to_v", ".v"), (".to_out.0", ".o"),
    ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"), (".norm2", ".norm3"), (".scale_shift_table", ".modulation"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"), ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
]  # fmt: skip
_LTX = [("proj_in", "patchify_proj"), ("time_embed.", "adaln_single."), (".norm_q", ".q_norm"), (".norm_k", ".k_norm")]
# The layers of a block in diffusers, which its authors fuse -> the authors' names, also as ComfyUI has them
_HUNYUAN: list[tuple[str, str, list[tuple[tuple[str, ...], tuple[str, ...]]]]] = [
    ("transformer_blocks.{}.", "double_blocks.{}.", [
        (("attn.to_q", "attn.to_k", "attn.to_v"), ("img_attn_qkv", "img_attn.qkv")),
        (("attn.to_out.0",), ("img_attn_proj", "img_attn.proj")),
        (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), ("txt_attn_qkv", "txt_attn.qkv")),
        (("attn.to_add_out",), ("txt_attn_proj", "txt_attn.proj")), (("ff.net.0.proj",), ("img_mlp.fc1", "img_mlp.0")),
        (("ff.net.2",), ("img_mlp.fc2", "img_mlp.2")), (("ff_context.net.0.proj",), ("txt_mlp.fc1", "txt_mlp.0")),
        (("ff_context.net.2",), ("txt_mlp.fc2", "txt_mlp.2")), (("norm1.linear",), ("img_mod.linear", "img_mod.lin")),
        (("norm1_context.linear",), ("txt_mod.linear", "txt_mod.lin"))]),
    ("single_transformer_blocks.{}.", "single_blocks.{}.", [
        (("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), ("linear1",)), (("proj_out",), ("linear2",)),
        (("norm.linear",), ("modulation.linear", "modulation.lin"))]),
]  # fmt: skip


def part_of(name: str) -> tuple[str, str] | None:
    """`diffusion_model.blocks.0.ffn.2.lora_down.weight` -> `diffusion_model.blocks.0.ffn.2`, `A`."""
    for pattern, part in _PARTS:
        if match := re.fullmatch(rf"(.+?)({pattern})", name):
            return match[1], part
    return None


def aliases(shapes: Mapping[str, Any], family: str) -> dict[str, tuple[str, ...]]:
    """What trainers call the layers that have parameters in `shapes`, with `_` for `.` -> the layers in diffusers.

    Several where the model's authors fuse them.
    """
    names = {name.removesuffix(".weight").removesuffix(".bias") for name in shapes}
    table: dict[str, tuple[str, ...]] = {}
    theirs = {"wan": _WAN, "causal-wan": _WAN, "ltx": _LTX}.get(family, [])
    for name in names:
        other = name
        for ours, original in theirs:
            other = other.replace(ours, original)
        if theirs is _WAN:
            other = {"proj_out": "head.head", "scale_shift_table": "head.modulation"}.get(other, other)
        for one in (name, other, name.removesuffix(".0") if name.endswith(".to_out.0") else name):
            table[one.replace(".", "_")] = (name,)
    if family == "hunyuan":
        for ours, original, layers in _HUNYUAN:
            for number in {name.split(".")[1] for name in names if name.startswith(ours.partition("{")[0])}:
                for parts, called in layers:
                    targets = tuple(ours.format(number) + part for part in parts)
                    if set(targets) <= names:
                        table |= {(original.format(number) + one).replace(".", "_"): targets for one in called}
    return table


def bare(layer: str) -> str:
    """A trainer's name of a layer without what stands before it, with `_` for `.`."""
    layer = _UNET.sub("", layer).replace(".processor", "")
    parts = layer.split(".")
    while len(parts) > 1 and (parts[0] in _OUTER or parts[0] in ("transformer_2", "dit2")):
        parts = parts[1:]
    return "_".join(part for part in parts if not part.startswith("_") or part not in formats.WRAPPERS)
