"""Maps the keys of LoRA files to layers in diffusers, whichever trainer wrote them.

diffusers, PEFT, DiffSynth, kohya, musubi, ComfyUI and the models' authors each have names of their own. They are looked up in a
table made from the model's own layers, so that nothing is guessed and no key is overlooked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from longgen.backbones import formats
from longgen.backbones.spec import Family

_PARTS = [  # the end of a key -> the part of a layer's LoRA
    (r"[._]lora_A(\.[\w-]+)?\.weight|\.lora_A(\.[\w-]+)?|[._]lora_down\.weight|[._]lora\.down\.weight"
     r"|\.lora_linear_layer\.down\.weight", "A"),
    (r"[._]lora_B(\.[\w-]+)?\.bias|[._]lora_up\.bias", "bias"),
    (r"[._]lora_B(\.[\w-]+)?\.weight|\.lora_B(\.[\w-]+)?|[._]lora_up\.weight|[._]lora\.up\.weight"
     r"|\.lora_linear_layer\.up\.weight", "B"),
    (r"\.alpha", "alpha"), (r"\.diff", "diff"), (r"\.diff_b", "diff_b"),
]  # fmt: skip
UNSUPPORTED = [  # a part of a key -> what has it, where it is not a plain LoRA
    (r"lokr_", "a LoKr of LyCORIS"), (r"hada_", "a LoHa of LyCORIS"), (r"(^|\.)b?oft_", "an OFT"),
    (r"lora_mid", "a LoCon with lora_mid"),
    (r"dora_scale|lora_magnitude_vector", "a DoRA"), (r"lora_embedding_", "a LoRA of embeddings"), (r"ia3_", "an (IA)3"),
    (r"\.(w_norm|b_norm)$", "a LyCORIS file with norms"), (r"\.(a1|b1)\.weight$", "a GLoRA"),
    (r"\.modules_to_save\.", "a LoRA with whole layers beside it (modules_to_save)"),
]  # fmt: skip
TRAINERS = [  # a part of a key -> the trainer with such keys
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
TEXT_ENCODER = re.compile(r"^(lora_te\d?_|text_encoders?[\w]*\.|te\d?\.|cond_stage_model\.|conditioner\.|lora_te\.|text_model\.)")
SECOND_EXPERT = re.compile(r"(pipe\.)?(transformer_2|dit2)\.")
_UNET = re.compile(r"^(lora_(unet|transformer|dit|wan)|lycoris(_transformer|_unet)?)[._]")
_OUTER = {"base_model", "model", "pipe", "dit", "unet", "lora"} | formats.WRAPPERS


def part_of(name: str) -> tuple[str, str] | None:
    """`diffusion_model.blocks.0.ffn.2.lora_down.weight` -> `diffusion_model.blocks.0.ffn.2`, `A`."""
    for pattern, part in _PARTS:
        if match := re.fullmatch(rf"(.+?)({pattern})", name):
            return match[1], part
    return None


def layer_aliases(shapes: Mapping[str, Any], family: Family) -> dict[str, tuple[str, ...]]:
    """What trainers call the layers that have parameters in `shapes`, with `_` for `.` -> the layers in diffusers.

    Several where the model's authors fuse them.
    """
    layers = {name.removesuffix(".weight").removesuffix(".bias") for name in shapes}
    table = {layer: (layer,) for layer in layers} | dict(family.author_layers(layers))
    table |= {layer.removesuffix(".0"): (layer,) for layer in layers if layer.endswith(".to_out.0")}
    return {name.replace(".", "_"): targets for name, targets in table.items()}


def bare(layer: str) -> str:
    """A trainer's name of a layer without its prefixes, with `_` for `.`."""
    layer = _UNET.sub("", layer).replace(".processor", "")
    parts = layer.split(".")
    while len(parts) > 1 and (parts[0] in _OUTER or parts[0] in ("transformer_2", "dit2")):
        parts = parts[1:]
    return "_".join(part for part in parts if not part.startswith("_") or part not in formats.WRAPPERS)
