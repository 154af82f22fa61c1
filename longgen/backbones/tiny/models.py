"""The models of the laboratory and their sentences: the built-in ones, and one that is part of the repository only.

`tiny-causal-unsaid` is `tiny-causal`, trained on to sentences that leave the colour out and to a past without noise: what an
object looks like it can only see in the frames before, and its own errors it has never seen. So a rollout can drift.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from longgen.backbones import registry, tiny_grammar
from longgen.backbones.causal_wan import TINY_CAUSAL

# Twelve steps: with six, colours that it cannot know blend, and its first frames have no object.
UNSAID = replace(TINY_CAUSAL, name="tiny-causal-unsaid", checkpoint=str(Path(__file__).parent / "weights-unsaid"), steps=12)
SPECS = {name: registry.SPECS[name] for name in ("tiny", "tiny-causal")} | {UNSAID.name: UNSAID}


def held_out(model: str) -> tuple[tiny_grammar.Words, ...]:
    """The sentences that `model` was not trained on."""
    return tiny_grammar.UNSAID_HELD_OUT if model == UNSAID.name else tiny_grammar.HELD_OUT
