"""The definition of a frame plan, in double precision and complex numbers: one softmax over all tokens. Slow.

Legend: B batch, T frames, n tokens per frame, N = T n, L text tokens, H heads, D head dim, P channel pairs of a rotary table.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from longgen.attention.rotary import Rotary
from longgen.frameplan import FramePlan


def dense(
    plan: FramePlan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: Rotary,
    stock: tuple[Tensor, Tensor],
    text: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention output [B, N, H, D] of q, k, v before rotary positions. stock: cos and sin [N, P]; text: k and v [B, L, H, D].

    Logits between frames i and j turn temporal pair c by rel[i, j] theta_c scale_c, and pairs of space by the difference of
    their stock angles. Text keys are not turned; a query meets them at time rel[i, 0].
    """
    frames_lat, heads, half = plan.frames_lat, q.shape[2], q.shape[3] // 2
    tokens = q.shape[1] // frames_lat
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))  # [B, H, N, D]
    turned_q, turned_k = (torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) for x in (q, k))
    angle = torch.atan2(stock[1].double(), stock[0].double())  # [N, P]
    theta = torch.zeros(angle.shape[1], dtype=torch.float64)
    theta[rotary.pairs] = torch.from_numpy(rotary.frequencies * (1 if plan.frequency_scale is None else plan.frequency_scale))
    is_time = torch.zeros(angle.shape[1], dtype=torch.bool)
    is_time[rotary.pairs] = True
    frame, place = torch.arange(q.shape[2]) // tokens, torch.arange(q.shape[2]) % tokens
    total = torch.zeros_like(q)
    for one in plan.passes:
        rel = torch.from_numpy(one.rel)[frame][:, frame]
        logits = torch.zeros(q.shape[0], heads, q.shape[2], q.shape[2], dtype=torch.float64)
        texts = torch.zeros(q.shape[0], heads, q.shape[2], 0 if text is None else text[0].shape[1], dtype=torch.float64)
        for head in range(heads):
            for pair in range(half):
                column = pair if angle.shape[1] == half else head * half + pair  # one table for all heads, or one for each
                own = angle[:, column]
                turn = rel * theta[column] if is_time[column] else own[:, None] - own[None, :]
                products = turned_q[:, head, :, None, pair] * turned_k[:, head, None, :, pair].conj()
                logits[:, head] += (products * torch.exp(1j * turn)).real
                if text is not None:
                    at = torch.from_numpy(one.rel[:, 0] - one.rel[0, 0])[frame] * theta[column] if is_time[column] else own
                    text_k = torch.view_as_complex(text[0].double().transpose(1, 2).unflatten(-1, (-1, 2)).contiguous())
                    met = turned_q[:, head, :, None, pair] * text_k[:, head, None, :, pair].conj()
                    texts[:, head] += (met * torch.exp(1j * at)[:, None]).real
        seen = torch.from_numpy(one.visible)[frame][:, frame]
        names = ("band", "logit_scale", "positive_logit_scale", "logit_bias")
        band, factor, positive, addend = (torch.from_numpy(one.column(name))[frame][:, frame] for name in names)
        logits = torch.cat([logits * factor, texts], dim=-1) * plan.logit_scale / (2 * half) ** 0.5
        if plan.centred:
            shown = torch.cat(
                [torch.from_numpy(one.visible)[frame][:, frame], torch.ones(texts.shape[-2:], dtype=torch.bool)], dim=1
            )
            logits -= (logits * shown).sum(-1, keepdim=True) / shown.sum(-1, keepdim=True).clamp(min=1)
        seen = seen & ((place[:, None] - place[None, :]).abs() < band * tokens)
        pairs = logits[..., : len(frame)]
        logits[..., : len(frame)] = (torch.where(pairs > 0, positive * pairs, pairs) + addend).masked_fill(~seen, -np.inf)
        values = v if text is None else torch.cat([v, text[1].double().transpose(1, 2)], dim=2)
        weights = logits.softmax(-1).nan_to_num(0)  # a row of weight 0 may see nothing
        total += torch.from_numpy(one.weight)[frame].view(1, 1, -1, 1) * (weights @ values)
    return total.transpose(1, 2)
