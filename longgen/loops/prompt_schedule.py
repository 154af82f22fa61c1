"""Prompts that change over time: the texts of a schedule's shots, and how the model gets them.

Legend: B batch, S shots, T latent frames, L text tokens, n tokens per latent frame, N = T n.

One pass: the texts of all shots stand one after the other, [B, S L, C], and every frame's cross-attention reads its own,
by the shares that `Clock.shares` has for it. Clips: each clip has the mean of its frames' texts. Only the conditioned branch
of guidance changes; the other keeps the negative prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan

Text = dict[str, Tensor]  # the transformer's text arguments, of one prompt, [1, ...] each


def texts_of(backbone: PipelineBackbone, plan: Plan) -> list[Text]:
    """The texts of the schedule's shots."""
    assert plan.schedule is not None
    with torch.no_grad():
        return [backbone.text(shot.prompt) for shot in plan.schedule.shots]


def mean_of(texts: list[Text], share: np.ndarray) -> Text:
    """The texts mixed by `share` [S], which sums to one; of masks, what any of them shows."""
    used = [(text, float(part)) for text, part in zip(texts, share, strict=True) if part > 0]
    if len(used) == 1:
        return used[0][0]
    mixed = {}
    for name, first in used[0][0].items():
        if name.endswith("mask"):
            mixed[name] = torch.stack([text[name] for text, _ in used]).amax(dim=0)
        else:
            mixed[name] = torch.stack([part * text[name].float() for text, part in used]).sum(dim=0).to(first)
    return mixed


def conditioned(arguments: dict[str, Any], text: Text, call: int) -> dict[str, Any]:
    """The text arguments of a call with `text` where the prompt is: in the first of two calls, or the second of two samples."""
    if len(arguments["hidden_states"]) == 1:
        return {name: value if call == 0 else arguments[name] for name, value in text.items()}
    return {name: torch.cat([arguments[name][:1], value.to(arguments[name])]) for name, value in text.items()}


def in_every_frame(backbone: PipelineBackbone, plan: Plan) -> Callable[[Any, Callable[..., Any], dict[str, Any]], Any]:
    """For one pass: model calls get the texts of all shots, and their frames the shares of each."""
    texts, step_state, counted = texts_of(backbone, plan), backbone.step_state, {"step": -1, "call": 0}
    assert plan.shares is not None
    shares = torch.from_numpy(plan.shares)

    def through(module: Any, call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        counted["call"] = counted["call"] + 1 if counted["step"] == step_state.index else 0  # guidance makes two calls a step
        counted["step"] = step_state.index
        each = [conditioned(arguments, text, counted["call"]) for text in texts]
        joined = {name: torch.cat([text[name] for text in each], dim=1) for name in each[0]}
        step_state.shares = shares
        try:
            return call(**arguments | joined)
        finally:
            step_state.shares = None

    return through
