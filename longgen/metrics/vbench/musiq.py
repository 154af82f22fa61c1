"""MUSIQ (Ke et al., 2108.05997), trained on SPAQ, by pyiqa, which users install: it is not licensed for commercial use."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from longgen.errors import LonggenError, MissingError
from longgen.metrics.vbench import pictures, weights


def installed() -> bool:
    return importlib.util.find_spec("pyiqa") is not None


class Musiq:
    """`rate`: frames [F, 3, H, W] from 0 to 255 -> [F], MUSIQ's score over 100. Source: vbench/imaging_quality.py, `longer`."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def rate(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._network(frame[None]).flatten() for frame in pictures.for_musiq(frames)]) / 100


def library() -> Any:
    """pyiqa's class MUSIQ. Raises MissingError if pyiqa is not installed."""
    if not installed():
        raise MissingError("imaging_quality needs pyiqa, which is not installed", expected="pyiqa (not for commercial use)",
                           hint="pip install pyiqa, or leave imaging_quality out")  # fmt: skip
    from pyiqa.archs.musiq_arch import MUSIQ

    return MUSIQ


def load(path: Path, device: str) -> Musiq:
    """From musiq_spaq_ckpt-358bb6af.pth. Raises MissingError without pyiqa."""
    network = library()(pretrained=False)
    try:
        network.load_state_dict(weights.read(path))
    except RuntimeError as error:
        raise LonggenError(f"{path} does not hold MUSIQ's weights: {str(error).splitlines()[-1].strip()}", hint="download it again",
                           expected="musiq_spaq_ckpt-358bb6af.pth as published") from None  # fmt: skip
    return Musiq(network.to(device).eval())
