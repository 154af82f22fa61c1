"""Groups of attention heads that see different frames: what each head attends to, measured once, and who is in which group.

Legend: B batch, c newest latent frames, K key frames that they see, n tokens per latent frame, R sampled rows, L layers, H heads,
D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from longgen.attention.ulysses import Ulysses
from longgen.device_tables import on_device
from longgen.technique import HeadTechnique

SAMPLED = 3  # a query token of so many of a frame is read, spread over all of the chunk


def frame_shares(q: Tensor, keys: Tensor, tokens: int, logits: np.ndarray | None = None) -> Tensor:
    """[H, K] float32: the mean share of each key frame in a head's attention, over evenly spaced rows of q and the batch.

    q [B, c n, H, D], keys [B, K n, H, D]: rotated. tokens: n. logits: [2, c, K], factors and addends of the pass's columns.
    """
    rows = np.linspace(0, q.shape[1] - 1, max(1, tokens // SAMPLED)).round().astype(np.int64)
    sampled = q[:, on_device(rows, q.device)].float() / q.shape[-1] ** 0.5
    columns = None if logits is None else on_device(logits[:, rows // tokens], q.device, torch.float32)[..., None]  # [2, R, K, 1]
    shares = []
    for head in range(q.shape[2]):  # one after the other, as the logits of all are large
        attention = (sampled[:, :, head] @ keys[:, :, head].float().transpose(1, 2)).unflatten(2, (-1, tokens))
        if columns is not None:
            attention = attention * columns[0] + columns[1]
        shares.append(attention.flatten(2).softmax(-1).unflatten(2, (-1, tokens)).sum(-1).mean((0, 1)))
    return torch.stack(shares)


@dataclass(eq=False)
class HeadGroups:
    """The groups of heads in the `layers` in which `technique` acts.

    split: the ranks that split the heads, of which H are this one's. attention: by layer [H, 3], measured. by_layer: the heads
    [some of H] of every group, by name; empty until they are assigned.
    """

    technique: HeadTechnique
    layers: tuple[int, ...]
    split: Ulysses | None = None
    attention: dict[int, Tensor] = field(default_factory=dict)
    by_layer: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def measured_in(self, start: int, stop: int) -> bool:
        """Whether heads are measured in the clean pass of the frames [start, stop)."""
        return not self.by_layer and start < self.technique.measured_lat <= stop

    def measure(self, layer: int, shares: Tensor, past: Sequence[int]) -> None:
        """shares [H, K]: of key frames, of which the first are `past`."""
        if layer in self.layers:
            first = sum(frame < self.technique.first_lat for frame in past)
            parts = shares[:, :first], shares[:, first : len(past)], shares[:, len(past) :]
            self.attention[layer] = torch.stack([part.sum(1) for part in parts], dim=1)

    def assign(self) -> None:
        attention = torch.stack([self.attention[layer] for layer in self.layers])
        own = slice(None)
        if self.split is not None:  # all ranks assign the heads of all of them
            attention = self.split.gathered(attention, 1)
            own = self.split.own(attention.shape[1])
        groups = self.technique.assign(attention.double().cpu().numpy())[:, own]
        for layer, of_head in zip(self.layers, groups, strict=True):
            self.by_layer[layer] = {
                name: torch.from_numpy(np.flatnonzero(of_head == name)).to(attention.device) for name in np.unique(of_head)
            }
