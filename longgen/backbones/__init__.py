"""What a loaded backbone is, which one serves, and where. Nothing heavy is imported before a model is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from longgen.backbones.spec import BackboneSpec
from longgen.errors import UsageError
from longgen.technique import Step

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from longgen.plan import Plan


@dataclass
class Clock:
    """Where the schedule stands; the sampling loop moves it, the attention processors read it."""

    timesteps: tuple[float, ...] = ()
    index: int = 0

    @property
    def step(self) -> Step:
        return Step(self.index, self.timesteps)


class Backbone(Protocol):
    """A loaded diffusers pipeline `pipe`, and what longgen adds to it. Every family implements this."""

    spec: BackboneSpec
    pipe: Any
    device: torch.device
    dtype: str
    clock: Clock

    @property
    def transformer(self) -> torch.nn.Module: ...

    def latent_shape(self, plan: Plan) -> tuple[int, ...]:
        """The shape of the latents of `plan`, [1, C, T, h, w]."""
        ...

    def installed(self, plan: Plan) -> AbstractContextManager[None]:
        """Within the context, the transformer's self-attention follows `plan`; afterwards it is as it was."""
        ...

    def call_arguments(self, plan: Plan, prompt: str) -> dict[str, Any]:
        """The arguments of the pipeline's call that `plan` and `prompt` decide."""
        ...

    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        """Frames [few, height, width, 3] uint8 of latents [1, C, T, h, w], one latent frame at a time."""
        ...


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


def check_device(device: str, dtype: str, offload: str) -> None:
    """Raises UsageError where `device` is not there, or cannot do what is asked."""
    import torch

    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise UsageError(f"--device {device} is not there: {str(error).splitlines()[0]}", accepted=", ".join(["cpu", *cuda]),
                         do="leave --device out for the best one") from None  # fmt: skip
    if offload != "none" and place.type == "cpu":
        raise UsageError(f"--offload {offload} moves weights between a GPU and the host, and the device is cpu",
                         accepted="--offload none", do="leave --offload out")  # fmt: skip
    if dtype == "fp16" and place.type == "cpu":
        raise UsageError("--dtype fp16 cannot run on a CPU", accepted="fp32 or bf16", do="leave --dtype out")


def load(spec: BackboneSpec, device: str, dtype: str, offload: str = "none") -> Backbone:
    """Loads the weights of `spec`. Importing diffusers costs seconds.

    Raises UsageError, MissingError where the weights cannot be had, LonggenError where a file is damaged.
    """
    check_device(device, dtype, offload)
    _set_threads(spec, device)
    from longgen.backbones import wan

    return wan.load(spec, device, dtype, offload)


def decoder(spec: BackboneSpec, device: str) -> Callable[[Tensor], Iterator[np.ndarray]]:
    """`Backbone.decode` with nothing but the VAE of `spec` loaded. Raises as `load` does."""
    check_device(device, "fp32", "none")
    _set_threads(spec, device)
    from longgen.backbones import wan

    return wan.decoder(spec, device)


def _set_threads(spec: BackboneSpec, device: str) -> None:
    """The threads that serve `spec` best on a CPU, unless OMP_NUM_THREADS says otherwise; sums then repeat on any machine."""
    import torch

    if device == "cpu" and spec.cpu_threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(spec.cpu_threads)
