"""Notes on prompts that are longer than the text encoder reads. diffusers' pipelines truncate them without a word."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longgen.backbones.registry import family_of
from longgen.backbones.spec import BackboneSpec
from longgen.textfile import on_one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from longgen.pipelines.base import PipelineBackbone
    from longgen.plan import Plan

MAX_QUOTED = 160  # characters of the unread text that a note quotes


def cut_notes(plan: Plan, prompts: Iterable[str], tokenizer: Tokenizer | None) -> tuple[str, ...]:
    """A note for each text of a video by `plan` that is longer than the model reads; none without a tokenizer."""
    if tokenizer is None:
        return ()
    if plan.schedule is None:
        texts = [("the prompt", prompt) for prompt in dict.fromkeys(prompts)]
    else:
        texts = [(f"shot {number}", shot.prompt) for number, shot in enumerate(plan.schedule.shots, start=1)]
    if plan.guided and plan.sample.negative_prompt:
        texts.append(("the negative prompt", plan.sample.negative_prompt))
    notes = []
    for name, text in texts:
        tokens, unread = _truncated(plan.spec, tokenizer, text)
        if unread:
            quoted = on_one_line(unread)
            if len(quoted) > MAX_QUOTED:
                quoted = f"{quoted[: MAX_QUOTED // 2].rstrip()} … {quoted[-MAX_QUOTED // 2 :].lstrip()}"
            limit = f"{plan.spec.name} reads {plan.spec.text_tokens}"
            notes.append(f"{name} has {tokens} tokens, and {limit}; not read: '{quoted}'")
    return tuple(notes)


def tokenizer_of(backbone: PipelineBackbone) -> Tokenizer | None:
    """The tokenizer of a loaded pipeline; None where it is not one of the library tokenizers."""
    return getattr(backbone.pipe.tokenizer, "backend_tokenizer", None)


def tokenizer_on_disk(spec: BackboneSpec) -> Tokenizer | None:
    """The tokenizer of `spec` if its file is on this machine; loads nothing else."""
    from tokenizers import Tokenizer

    path: Any = Path(spec.source) / "tokenizer" / "tokenizer.json"
    if not os.path.isdir(spec.source):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(spec.source, "tokenizer/tokenizer.json")
    if not isinstance(path, str | Path) or not os.path.isfile(path):
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the library has no type of its own; loading the model reports what is wrong with the file
        return None


def _truncated(spec: BackboneSpec, tokenizer: Tokenizer, text: str) -> tuple[int, str]:
    """How many tokens `text` has, special ones included, and the end of it that the text encoder does not read."""
    tokenized, chars_before, tokens_before, lost = family_of(spec).tokenized(text, spec)
    tokenizer.no_truncation()  # transformers sets both anew with each call
    tokenizer.no_padding()
    encoded = tokenizer.encode(tokenized)
    tokens = len(encoded.ids) - tokens_before
    if tokens <= spec.text_tokens:
        return tokens, ""
    has_leading = encoded.special_tokens_mask[:1] == [1] and encoded.offsets[0] == (0, 0)
    trailing = tokenizer.num_special_tokens_to_add(is_pair=False) - has_leading  # these are kept, in place of words
    first_unread = encoded.offsets[tokens_before + spec.text_tokens - lost - trailing][0]
    end = chars_before + len(text) if chars_before else None
    return tokens, tokenized[first_unread:end].strip()
