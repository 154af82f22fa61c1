"""RAFT optical flow (Teed & Deng, 2003.12039), VBench's motion network, in torchvision's implementation.

torchvision's `raft_large` is upstream's network with other parameter names. It is imported lazily: a torchvision that was built for
another torch fails at import.

Legend: B pairs; H, W pixels; the first channel of a flow is along x. Frames are [B, 3, H, W] float32 from 0 to 255.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from longgen.errors import LonggenError, MissingError
from longgen.metrics.vbench import weights

ITERATIONS = 20  # of the update, as in VBench
LEAST_PX = 121  # of a side: below it the coarsest correlation level is a single cell, which torchvision rejects
_TORCHVISION = (  # names of github.com/princeton-vl/RAFT, and torchvision's
    (r"^fnet\.", "feature_encoder."), (r"^cnet\.", "context_encoder."), (r"_encoder\.conv1\.", "_encoder.convnormrelu.0."),
    (r"_encoder\.norm1\.", "_encoder.convnormrelu.1."), (r"_encoder\.conv2\.", "_encoder.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."), (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"\.encoder\.convc(\d)\.", r".motion_encoder.convcorr\1.0."), (r"\.encoder\.convf(\d)\.", r".motion_encoder.convflow\1.0."),
    (r"\.encoder\.conv\.", ".motion_encoder.conv.0."), (r"\.gru\.conv(\w)(\d)\.", r".recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."), (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)  # fmt: skip

Flow = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Two frames whose sides are multiples of 8 -> flow [B, 2, H, W] in pixels, from the first to the second."""


class Raft:
    """A `Flow`. `network`: torchvision's, with its weights loaded."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network.eval()

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        first, second = (2 * (frame / 255) - 1 for frame in (first, second))
        return self._network(first, second, num_flow_updates=ITERATIONS)[-1]


def library() -> Any:
    """torchvision.models.optical_flow. Raises MissingError if it is not installed or fails to import."""
    try:
        from torchvision.models import optical_flow
    except Exception as error:  # one that was built for another torch raises RuntimeError, OSError or AttributeError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingError(f"torchvision, which RAFT needs, could not be imported: {reason}",
                           expected=f"one built for torch {torch.__version__}",
                           hint='pip install "longgen[vbench]", with the --index-url that torch came from') from None  # fmt: skip
    return optical_flow


def load(path: Path, device: str) -> Raft:
    """From raft-things.pth or torchvision's raft_large_C_T_V1-22a6c225.pth. Raises MissingError, LonggenError."""
    state = renamed(weights.read(path))
    network = library().raft_large(weights=None)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise LonggenError(f"{path} does not hold RAFT's weights: {str(error).splitlines()[-1].strip()}", hint="download it again",
                           expected="raft-things.pth or raft_large_C_T_V1-22a6c225.pth as published") from None  # fmt: skip
    return Raft(network.to(device))


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` with torchvision's parameter names, which are left as they are. Upstream stores norms of downsampling twice: norm3 is
    dropped."""
    tensors = {}
    for name, tensor in state.items():
        if ".norm3." not in name:
            for upstream, ours in _TORCHVISION:
                name = re.sub(upstream, ours, name)
            tensors[name] = tensor
    return tensors


def padded(frames: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, slice]]:
    """Frames [B, 3, any, any] replicate-padded to multiples of 8, and the slices of the original inside."""
    height, width = frames.shape[2:]
    more_h, more_w = -height % 8, -width % 8
    top, left = more_h // 2, more_w // 2
    wide = F.pad(frames, (left, more_w - left, top, more_h - top), mode="replicate")
    return wide, (slice(top, top + height), slice(left, left + width))
