"""Statistics of one layer's attention, computed blockwise: no [N, N] matrix is ever materialised.

Papers: FreeLOC, arXiv 2603.25209 (the differences of logits and of entropies); FreeSpec, arXiv 2605.06509 (the effective rank);
Dummy Forcing, arXiv 2601.20499 (the shares of heads).

Legend: B batch, H heads, D head dim, C = H D, N query tokens, M key tokens, A = q k^T / sqrt(D) the logits, F [N, C] the output of
attention before its projection, s its singular values.

    logit change      ||A' - A||_F / ||A||_F, with A' of keys shifted in time                                           [2nd]
                      ||q x^T||_F^2 = <q^T q, x^T x> for any x [M, D], so two D x D matrices a head are enough
    entropy change    ||h' - h|| / ||h||, h the entropies of the rows of softmax(A), h' those of rows limited to a window  [2nd]
    effective rank    exp(-sum p ln p), p = s / sum s; s^2 are the eigenvalues of F^T F                               [paper]
    shares of a head  mean attention of the newest frames on the first, on those between it and them, and on them     [code]

Differences are taken within one call, on its own q and k: what the layer itself does, before anything else has changed [derived].
Entropies are of QUERIES evenly spaced tokens of every frame, or of all if there are fewer [derived]. Text keys take part in
entropies and outputs, but not in the logit change: no shift moves them.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from longgen.attention.head_groups import frame_shares
from longgen.attention.lowering import ranges_of
from longgen.attention.observer import AttentionInputs
from longgen.fusion.freespec import gram

QUERIES = 16  # tokens of a frame whose entropy is computed


def logit_change(inputs: AttentionInputs, shift: float) -> tuple[float, float]:
    """||A' - A||_F^2 and ||A||_F^2, both times D, with the keys shifted to times later by `shift` latent frames."""
    q = _heads(inputs.rotate(inputs.q, inputs.times[-inputs.shape[0] :]))
    k = inputs.rotate(inputs.k, inputs.times)
    shifted = inputs.rotate(inputs.k, inputs.times + shift)
    q_gram = gram(q)
    return float((q_gram * gram(_heads(shifted - k))).sum()), float((q_gram * gram(_heads(k))).sum())


def _heads(x: Tensor) -> Tensor:
    """x [B, N, H, D] as [B H, N, D]."""
    return x.transpose(1, 2).flatten(0, 1)


def entropy_change(inputs: AttentionInputs, visible: np.ndarray) -> tuple[float, float]:
    """||h' - h||^2 and ||h||^2 over the queries, with h' where query frame i sees only the key frames `visible` [Q, K]."""
    frames, tokens = inputs.shape[0], inputs.q.shape[1] // inputs.shape[0]
    q, k = inputs.rotate(inputs.q, inputs.times[-frames:]), inputs.rotate(inputs.k, inputs.times)
    if inputs.text is not None:
        k = torch.cat([k, inputs.text[0]], dim=1)
    sampled = torch.from_numpy(np.unique(np.linspace(0, tokens - 1, min(QUERIES, tokens)).round().astype(int))).to(q.device)
    change = total = 0.0
    for frame in range(frames):
        rows = q[:, frame * tokens + sampled].float() * q.shape[-1] ** -0.5
        logits = torch.einsum("bqhd,bkhd->bhqk", rows, k.float())
        mask = torch.from_numpy(visible[frame]).to(q.device).repeat_interleave(tokens)
        mask = torch.cat([mask, mask.new_ones(k.shape[1] - len(mask))])  # text is visible to all
        full, limited = (_entropy(part).cpu().double() for part in (logits, logits[..., mask]))  # not every device has doubles
        change += float((limited - full).square().sum())
        total += float(full.square().sum())
    return change, total


def _entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax over the last axis, in nats."""
    logs = logits.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def output_gram(inputs: AttentionInputs, visible: np.ndarray) -> Tensor:
    """F^T F [B, C, C] in double precision, of the layer's output where query frame i sees the key frames `visible` [Q, K]."""
    frames, tokens = inputs.shape[0], inputs.q.shape[1] // inputs.shape[0]
    q, k = inputs.rotate(inputs.q, inputs.times[-frames:]), inputs.rotate(inputs.k, inputs.times)
    edges = [0, *(np.flatnonzero((visible[1:] != visible[:-1]).any(axis=1)) + 1).tolist(), frames]  # between unequal rows
    total: Tensor | None = None
    for first, last in itertools.pairwise(edges):
        ranges = [slice(start * tokens, stop * tokens) for start, stop in ranges_of(visible[first])]
        keys, values = (torch.cat([x[:, part] for part in ranges], dim=1) for x in (k, inputs.v))
        part = gram(inputs.attend(q[:, first * tokens : last * tokens], keys, values).flatten(2))
        total = part if total is None else total + part
    assert total is not None
    return total


def effective_rank(grams: Tensor) -> Tensor:
    """exp(entropy of the normalised singular values) [B] of features with these Gram matrices [B, C, C]; 0 where they are zero."""
    singular = torch.linalg.eigvalsh(grams).clamp_min(0).sqrt()
    share = singular / singular.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(singular.dtype).tiny)
    return torch.special.entr(share).sum(dim=-1).exp() * (singular.sum(dim=-1) > 0)


def head_shares(inputs: AttentionInputs) -> Tensor:
    """[H, 3]: the mean attention of each head on the first frame, on those between it and the query frames, and on these."""
    frames, keys = inputs.shape
    q, k = inputs.rotate(inputs.q, inputs.times[-frames:]), inputs.rotate(inputs.k, inputs.times)
    shares = frame_shares(q, k, inputs.q.shape[1] // frames)
    return torch.stack([part.sum(dim=1) for part in shares.split([1, keys - frames - 1, frames], dim=1)], dim=1)
