"""What an attention call costs beside its arithmetic, by kind of device: how finely a frame plan is cut depends on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallCosts:
    """In pairs of tokens attended: `call` of an attention call, `merge` and `rotate` of a frame of one token.

    batched: whether query frames of equal structure share one call over strided views, and rotation is one block: few launches for
    more memory at a time.
    """

    call: float
    merge: float
    rotate: float
    batched: bool


CPU = CallCosts(call=2500, merge=10, rotate=100, batched=False)  # measured on two cores
ACCELERATOR = CallCosts(call=2e6, merge=10, rotate=100, batched=True)  # 50 microseconds of an H100 at 1536 channels [derived]

CPU_BYTES, DEVICE_BYTES = 1_400_000, 2**29  # of logits that are written down at once: measured on the CPU, where caches hold them


def costs_on(device_type: str) -> CallCosts:
    """The costs on a device of `device_type`, as `torch.device.type`."""
    return CPU if device_type == "cpu" else ACCELERATOR
