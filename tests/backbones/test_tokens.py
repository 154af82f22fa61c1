"""What a text encoder does not read: every family's own pipeline, at small size, cuts where the note says it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from longgen import planner, preset
from longgen.backbones.find import find
from longgen.backbones.settings import ModelSettings
from longgen.pipelines import token_limit
from longgen.pipelines.loading import load
from tests.models import small


def embedded(backbone: Any, prompt: str, given: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [part.float() for name, part in backbone.text(prompt, given).items() if name != "pooled_projections"]


@pytest.mark.parametrize("name", ["tiny", *small.PLAIN[1:], "hunyuan-i2v"])
def test_the_words_that_are_named_are_those_that_change_nothing(name: str, tiny: Any, model_folder: Callable[[str], Path]) -> None:
    backbone = tiny if name == "tiny" else load(find(str(model_folder(name))), ModelSettings("cpu", "fp32"))
    limit = backbone.spec.text_tokens
    words = [("small", "cyan", "triangle", "orbiting", "sand")[index % 5] for index in range(limit + 5)]
    direct = preset.load("direct", (), preset.Sample(size=(64, 64)))
    made = planner.build(direct, backbone.spec, conditions=planner.stand_in(backbone.spec))
    given = backbone.given(made, torch.Generator())
    made = replace(made, sample=made.sample.model_copy(update={"negative_prompt": None}))
    tokenizer = token_limit.tokenizer_of(backbone)
    (note,) = token_limit.cut_notes(made, [" ".join(words)], tokenizer)
    unread = note.partition("not read: '")[2].removesuffix("'").split()
    assert f"{backbone.spec.name} reads {limit}" in note
    assert unread == words[len(words) - len(unread) :]
    kept = words[: len(words) - len(unread)]
    whole = embedded(backbone, " ".join(words), given)
    for part, same in zip(whole, embedded(backbone, " ".join([*kept, *("a" for _ in unread)]), given), strict=True):
        assert torch.equal(part, same)
    other = embedded(backbone, " ".join([*kept[:-1], "a", *unread]), given)
    assert any(not torch.equal(part, changed) for part, changed in zip(whole, other, strict=True))
    assert token_limit.cut_notes(made, [" ".join(kept[:-1])], tokenizer) == ()
