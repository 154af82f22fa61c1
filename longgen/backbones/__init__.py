"""Which backbone serves, and where. Nothing heavy is imported before a model is loaded."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from longgen.backbones.spec import BackboneSpec

if TYPE_CHECKING:
    from longgen.backbones.wan import WanBackbone


def has_gpu() -> bool:
    """Whether torch can use an NVIDIA GPU here. torch is asked only where there is a driver."""
    if shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()


def default_backbone() -> str:
    """`wan2.1-1.3b` where there is a GPU, the built-in `tiny` elsewhere."""
    return "wan2.1-1.3b" if has_gpu() else "tiny"


def default_device() -> str:
    return "cuda" if has_gpu() else "cpu"


def default_dtype(spec: BackboneSpec, device: str) -> str:
    """The backbone's own dtype on a GPU, fp32 on a CPU."""
    return "fp32" if device == "cpu" else spec.dtype


def load(spec: BackboneSpec, device: str, dtype: str, offload: str = "none") -> WanBackbone:
    """Loads the weights of `spec`; see `longgen.backbones.wan.load`. Importing diffusers costs seconds."""
    from longgen.backbones import wan

    return wan.load(spec, device, dtype, offload)
