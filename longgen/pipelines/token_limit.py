"""What a text encoder does not read of a text: the words beyond the tokens that it takes. Pipelines cut them off in silence.

Legend: text, what people wrote; written, what the pipeline has tokenized of it.
"""

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

SHOWN = 160  # characters of what is not read that a note shows


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
    found = ((name, _beyond(plan.spec, tokenizer, text)) for name, text in texts)
    return tuple(
        f"{name} has {cut[0]} tokens, and {plan.spec.name} reads {plan.spec.text_tokens}; not read: '{_shown(cut[1])}'"
        for name, cut in found
        if cut is not None
    )


def tokenizer_of(backbone: PipelineBackbone) -> Tokenizer | None:
    """The tokenizer of a loaded pipeline; None where it has one of another kind."""
    return getattr(backbone.pipe.tokenizer, "backend_tokenizer", None)


def tokenizer_on_disk(spec: BackboneSpec) -> Tokenizer | None:
    """The tokenizer of `spec` where its file is on this machine, without loading anything else."""
    from tokenizers import Tokenizer

    path: Any = Path(spec.source) / "tokenizer" / "tokenizer.json"
    if not os.path.isdir(spec.source):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(spec.source, "tokenizer/tokenizer.json")
    if not isinstance(path, str | Path) or not os.path.isfile(path):
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the library has no type of its own; loading the model says what is wrong with the file
        return None


def _beyond(spec: BackboneSpec, tokenizer: Tokenizer, text: str) -> tuple[int, str] | None:
    """How many tokens `text` has, special ones included, and its end that is not read; None where all of it is."""
    written, before, taken = family_of(spec).tokenized(text)
    tokenizer.no_truncation()  # transformers sets both anew with each call
    tokenizer.no_padding()
    encoded = tokenizer.encode(written)
    count = len(encoded.ids) - taken
    if count <= spec.text_tokens:
        return None
    leading = encoded.special_tokens_mask[:1] == [1] and encoded.offsets[0] == (0, 0)
    closing = tokenizer.num_special_tokens_to_add(is_pair=False) - leading  # those at the end stay, in place of words
    first = encoded.offsets[taken + spec.text_tokens - closing][0]
    rest = written[first : before + len(text)] if before else written[first:]
    return (count, rest.strip()) if rest.strip() else None


def _shown(rest: str) -> str:
    line = on_one_line(rest)
    return line if len(line) <= SHOWN else f"{line[: SHOWN // 2].rstrip()} … {line[-SHOWN // 2 :].lstrip()}"
