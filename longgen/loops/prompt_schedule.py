"""Prompts that change over time: the texts of a schedule's shots, and how they reach the model.

Legend: B batch, S shots, T latent frames, L text tokens, n tokens per latent frame, N = T n, C channels.

All frames in one call: the texts of all shots are concatenated, [B, S L, C], and every frame's cross-attention reads its own, by
the shares that `StepState.shares` has for it. Clips and chunks: each has the mean of its frames' texts. Only the conditional branch
of guidance changes; the other keeps the negative prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from longgen.pipelines.base import Text
from longgen.pipelines.step_state import StepState


def blend(texts: list[Text], share: np.ndarray) -> Text:
    """The mean of `texts` weighted by `share` [S], which sums to one; of masks, the union."""
    weighted = [(text, float(weight)) for text, weight in zip(texts, share, strict=True) if weight > 0]
    if len(weighted) == 1:
        return weighted[0][0]
    blended = {}
    for name, first in weighted[0][0].items():
        if name.endswith("mask"):
            blended[name] = torch.stack([text[name] for text, _ in weighted]).amax(dim=0)
        else:
            blended[name] = torch.stack([weight * text[name].float() for text, weight in weighted]).sum(dim=0).to(first)
    return blended


def with_text(arguments: dict[str, Any], text: Text, branch: int) -> dict[str, Any]:
    """The text arguments of a pipeline's model call, with `text` in its conditional branch.

    Guidance is either two calls, of which `branch` 0 is the conditional one, or one call of two samples, of which the second is.
    """
    if len(arguments["hidden_states"]) == 1:
        return {name: value if branch == 0 else arguments[name] for name, value in text.items()}
    return {name: torch.cat([arguments[name][:1], value.to(arguments[name])]) for name, value in text.items()}


class TextPerFrame:
    """Model calls over all frames get the texts of all shots, and their frames the `shares` [S, T] of each."""

    def __init__(self, texts: list[Text], shares: np.ndarray, step_state: StepState) -> None:
        self.texts, self.shares, self.step_state = texts, shares, step_state

    def __call__(self, transformer: Any, call: Callable[..., Any], arguments: dict[str, Any], branch: int) -> Any:
        by_shot = [with_text(arguments, text, branch) for text in self.texts]
        concatenated = {name: torch.cat([text[name] for text in by_shot], dim=1) for name in by_shot[0]}
        self.step_state.shares = self.shares
        try:
            return call(**arguments | concatenated)
        finally:
            self.step_state.shares = None
