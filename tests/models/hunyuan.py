"""Whole HunyuanVideo pipelines of random weights: "hunyuan", and "hunyuan-i2v", which starts from a picture and looks at it too."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE as PICTURE_TEMPLATE
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tests.models.t5 import WORDS

NAMES = ("hunyuan", "hunyuan-i2v")
MARKS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>"]


def build(name: str, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pictured = name == "hunyuan-i2v"
        tokenizer = _picture_tokenizer() if pictured else _tokenizer()
        size = dict(vocab_size=len(tokenizer), num_attention_heads=2, intermediate_size=32, pad_token_id=0, bos_token_id=1,
                    eos_token_id=2)  # fmt: skip
        llama = LlamaConfig(hidden_size=32, num_hidden_layers=3, max_position_embeddings=1024 if pictured else 512, **size)
        kind = HunyuanVideoImageToVideoPipeline if pictured else HunyuanVideoPipeline
        more = {"image_processor": CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336)} if pictured else {}
        pipe = kind(
            text_encoder=_llava(llama, tokenizer) if pictured else LlamaModel(llama).eval(),
            tokenizer=tokenizer,
            transformer=_transformer("token_replace" if pictured else None),
            vae=AutoencoderKLHunyuanVideo(block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=CLIPTextModel(
                CLIPTextConfig(hidden_size=16, num_hidden_layers=1, max_position_embeddings=77, **size)
            ).eval(),
            tokenizer_2=tokenizer,
            **more,
        )
        pipe.save_pretrained(folder)


def _transformer(condition: str | None) -> HunyuanVideoTransformer3DModel:
    transformer = HunyuanVideoTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, num_layers=2, num_single_layers=1, num_refiner_layers=1, mlp_ratio=2.0,
        text_embed_dim=32, pooled_projection_dim=16, rope_axes_dim=(8, 8, 8), image_condition_type=condition,
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


def _llava(text: LlamaConfig, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Of a picture of 336x336 it makes 576 tokens, as the published one, whose number the pipeline has written down."""
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=336,
                              patch_size=14, projection_dim=16)  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, pad_token_id=0)
    return LlavaForConditionalGeneration(config).eval()


def _picture_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word or mark, two of "relationships": the picture's is the sixth, and the template has 103."""
    words = pre_tokenizers.Split(Regex(r"\n\n|relation|\w+|[^\w\s]"), "removed", invert=True)
    before = PICTURE_TEMPLATE["template"].partition("{}")[0]
    bare = before
    for mark in MARKS:
        bare = bare.replace(mark, " ")
    template = {word for word, _ in words.pre_tokenize_str(bare)} | {"assistant", "\n\n"}
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *MARKS, *WORDS, *sorted(template - set(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = words
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )
