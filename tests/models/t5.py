"""A word tokenizer and a T5 encoder of random weights, as LTX-Video and CogVideoX read prompts with."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

WORDS = ("a", "small", "cyan", "triangle", "orbiting", "on", "sand", "background", "worst", "quality", "blurry")
TEXT_DIM = 16


def parts(length: int, **options: str) -> tuple[PreTrainedTokenizerFast, T5EncoderModel]:
    """For prompts of at most `length` tokens."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length, **options
    )
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(vocabulary), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
        )
    )
    return fast, encoder.eval()
