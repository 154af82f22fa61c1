"""FreeNoise's shuffled noise: after the first window, blocks of frames repeat the blocks a window earlier in random order.

Paper: FreeNoise, arXiv 2310.15169; FreeLong (arXiv 2407.19918) starts from the same noise.

Legend: B batch, C channels, T latent frames, h x w latent cells, W window, S stride, i = W, W + S, ..

    frames [i, i + S) <- a random permutation of frames [i - W, i - W + S)                                     [code]
A last block that is cut short takes as many frames of its permutation [derived]; the reference fails there.

So every frame is one of the first W, whole, and N(0, 1) where they are. The whole batch shares the permutations.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def window_shuffle(noise: Tensor, window: int, stride: int, generator: Generator) -> Tensor:
    """`noise` [B, C, T, h, w] shuffled with W = `window` and S = `stride` <= W; the permutations come from `generator`."""
    source = torch.arange(noise.shape[2], device=generator.device)
    for start in range(window, len(source), stride):
        block = source[start - window : start - window + stride]
        shuffled = block[torch.randperm(stride, generator=generator, device=generator.device)]
        source[start : start + stride] = shuffled[: len(source) - start]
    return noise[:, :, source.to(noise.device)]
