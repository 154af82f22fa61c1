"""Window-shuffled noise of FreeNoise: after the first window, each block of frames permutes the block one window earlier.

Paper: FreeNoise, arXiv 2310.15169; FreeLong (arXiv 2407.19918) starts from the same noise.

Legend: B batch, C channels, T latent frames, h x w latent cells, W window, S stride, i = W, W + S, ..

    frames [i, i + S) <- a random permutation of frames [i - W, i - W + S)                                     [code]
A shorter last block takes the first frames of its permutation [derived]; the reference fails there.

So every frame is a copy of one of the first W, and N(0, 1) as they are. The batch shares the permutations.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def window_shuffle(noise: Tensor, window: int, stride: int, generator: Generator) -> Tensor:
    """`noise` [B, C, T, h, w] shuffled with W = `window` and S = `stride` <= W; `generator` draws the permutations."""
    source = torch.arange(noise.shape[2], device=generator.device)
    for start in range(window, len(source), stride):
        block = source[start - window : start - window + stride]
        shuffled = block[torch.randperm(stride, generator=generator, device=generator.device)]
        source[start : start + stride] = shuffled[: len(source) - start]
    return noise[:, :, source.to(noise.device)]
