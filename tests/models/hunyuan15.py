"""Whole HunyuanVideo-1.5 pipelines of random weights: "hunyuan15"; "hunyuan15-i2v", from a picture; "hunyuan15-steps", few."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from longgen.backbones.hunyuan15 import HUNYUANVIDEO_1_5, tokenized
from tests.models.t5 import WORDS

NAMES = ("hunyuan15", "hunyuan15-i2v", "hunyuan15-steps")
SPLIT = r"<\|im_\w+\|>|\n|relation|transit|atmo|assist|\w+|[^\w\s]| {2,}"  # the template before a prompt has 108, as Qwen's
CHAT = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")  # fmt: skip
TARGET = 45  # pixels: the square whose bucket at 2:1 is 64x32


def build(name: str, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pictured = name != "hunyuan15"
        tokenizer = _tokenizer()
        more: dict[str, Any] = {
            "image_encoder": _siglip(),
            "feature_extractor": SiglipImageProcessor(size={"height": 378, "width": 378}),
        }
        kind = HunyuanVideo15ImageToVideoPipeline if pictured else HunyuanVideo15Pipeline
        pipe = kind(
            text_encoder=_qwen(len(tokenizer)), tokenizer=tokenizer, transformer=_transformer(name),
            vae=AutoencoderKLHunyuanVideo15(block_out_channels=(4, 4, 8, 8, 8), latent_channels=4, layers_per_block=1),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
            text_encoder_2=T5EncoderModel(
                T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
            ).eval(),
            tokenizer_2=ByT5Tokenizer(), guider=ClassifierFreeGuidance(guidance_scale=6.0), **(more if pictured else {}),
        )  # fmt: skip
        pipe.save_pretrained(folder)


def _transformer(name: str) -> HunyuanVideo15Transformer3DModel:
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=24, num_layers=2, num_refiner_layers=1,
        mlp_ratio=2.0, text_embed_dim=32, text_embed_2_dim=16, image_embed_dim=16, rope_axes_dim=(8, 8, 8), target_size=TARGET,
        use_meanflow=name == "hunyuan15-steps",
    )  # fmt: skip
    for block in transformer.transformer_blocks:
        block.attn.norm_q.weight.data.fill_(2.0)  # attention that picks, so that positions and windows matter
    return transformer


def _tokenizer() -> PreTrainedTokenizerFast:
    template = sorted({*re.findall(SPLIT, tokenized("", HUNYUANVIDEO_1_5).text), "system", "user"} - set(WORDS))
    vocabulary = ["<pad>", "<unk>", *WORDS, *template]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="right", chat_template=CHAT
    )


def _qwen(vocabulary: int) -> Qwen2_5_VLTextModel:
    config = Qwen2_5_VLTextConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    )  # fmt: skip
    return Qwen2_5_VLTextModel(config).eval()


def _siglip() -> SiglipVisionModel:
    """Of a picture of 378x378 it makes 729 tokens, as the published one, whose number the pipeline has written down."""
    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=378, patch_size=14
        )
    ).eval()
