"""Which backbone, device and dtype are used where none is named."""

from __future__ import annotations

import shutil

from longgen.backbones.spec import BackboneSpec


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
