"""Which backbone, device and dtype are used where none is named."""

from __future__ import annotations

import functools
import glob
import os
import shutil
import sys

from longgen.backbones.spec import BackboneSpec

DRIVER_FILES = (  # what the kernel shows where there is a driver, in containers too, which often lack nvidia-smi
    "/proc/driver/nvidia/version",
    "/dev/nvidia[0-9]*",  # a card of NVIDIA; /dev/nvidiactl alone is none
    "/dev/kfd",  # AMD's, of ROCm
    "/dev/dxg",  # any, seen from Linux in Windows (WSL 2)
)


@functools.cache
def gpu_driver() -> str | None:
    """A sign that this machine has the driver of a GPU that torch may use: a file or a program. It costs no import."""
    present = next((path for pattern in DRIVER_FILES for path in sorted(glob.glob(pattern))), None)
    return present or shutil.which("nvidia-smi")


def has_gpu() -> bool:
    """Whether torch can use a GPU here, of NVIDIA or, by ROCm, of AMD: the one function that decides.

    torch takes seconds to import, so it is asked where there is a driver, or where it is imported anyway.
    """
    if "torch" not in sys.modules and (gpu_driver() is None or os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")):
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
