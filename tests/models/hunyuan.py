"""A whole HunyuanVideo pipeline of random weights: "hunyuan"."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from tests.models.t5 import WORDS

NAMES = ("hunyuan",)


def build(name: str, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = _tokenizer()
        size = dict(vocab_size=len(tokenizer), num_attention_heads=2, intermediate_size=32, pad_token_id=0, bos_token_id=1,
                    eos_token_id=2)  # fmt: skip
        pipe = HunyuanVideoPipeline(
            text_encoder=LlamaModel(LlamaConfig(hidden_size=32, num_hidden_layers=3, max_position_embeddings=512, **size)).eval(),
            tokenizer=tokenizer,
            transformer=_transformer(),
            vae=AutoencoderKLHunyuanVideo(block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=CLIPTextModel(
                CLIPTextConfig(hidden_size=16, num_hidden_layers=1, max_position_embeddings=77, **size)
            ).eval(),
            tokenizer_2=tokenizer,
        )
        pipe.save_pretrained(folder)


def _transformer() -> HunyuanVideoTransformer3DModel:
    transformer = HunyuanVideoTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, num_layers=2, num_single_layers=1, num_refiner_layers=1, mlp_ratio=2.0,
        text_embed_dim=32, pooled_projection_dim=16, rope_axes_dim=(8, 8, 8),
    )  # fmt: skip
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.attn.norm_q.weight.data.fill_(2.0)  # attention that picks, so that positions and windows matter
    return transformer


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token a word. The pipeline cuts off the first 95 tokens, which must be its template's and not the prompt's."""
    words = pre_tokenizers.Whitespace()
    template = {word for word, _ in words.pre_tokenize_str(DEFAULT_PROMPT_TEMPLATE["template"])}
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *WORDS, *sorted(template - set(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = words
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )
