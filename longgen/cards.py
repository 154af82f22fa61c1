"""Peak rates of GPUs, and how long a list of operators takes at them: estimates, never measurements.

Rates are the publishers', dense (without sparsity), of matrix products in float32 without TF32, as torch's default is:

    H100 SXM, H200 SXM   NVIDIA's data sheets, as quoted in glennklockwood.com/garden/processors/h100 and, of the H200,
                         itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html
    A100 80GB SXM        NVIDIA's data sheet (nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf), as quoted in
                         glennklockwood.com/garden/processors/A100; bf16 outside of matrix products is twice float32 [derived]
    RTX 4090             NVIDIA's Ada architecture white paper, bf16 with sums in float32, as quoted in
                         waredb.com/processor/nvidia-geforce-rtx-4090

What kernels reach of them is assumed [derived], except attention: FlashAttention-2, which torch has, reaches 35% of an H100
[FlashAttention-3, arXiv 2407.08608, abstract; 37% at 16,384 tokens in its figure] and 50 to 73% of an A100 [arXiv 2307.08691,
abstract]; of a 4090, which its papers do not have, the A100's share is assumed [derived].

Eigenproblems: cuSOLVER takes 22.9 ms for one of 1,536 rows in float32 on an A100 [github.com/ROCm/rocm-jax/issues/278], which is
1.6 TFLOPS at 10 n^3; half of that is taken in double precision. They wait for one small kernel after another and reach under 3%
of an H100 [Extracting the Potential of Emerging Hardware Accelerators for Symmetric Eigenvalue Decomposition, abstract], so no
more is taken for other cards, and 40% of its double precision for a 4090 [derived].
"""

from __future__ import annotations

import glob
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from longgen.errors import unknown_name

HALF, SINGLE, DOUBLE = "half", "float32", "float64"
PRECISIONS = (HALF, SINGLE, DOUBLE)
MATMUL, ATTENTION, EIGEN, OTHER = "matmul", "attention", "eigenproblem", "other"

TERA = 1e12
MATMUL_SHARE = 0.7  # of the peak rate that matrix products reach [derived]
BANDWIDTH_SHARE = 0.8  # of the peak bandwidth that element-wise kernels reach [derived]
WAIT_S = 20e-6  # of the host for the device, beside what the device computes until then [derived]
DRIVER_INFORMATION = "/proc/driver/nvidia/gpus/*/information"  # has a line `Model: NVIDIA H100 80GB HBM3`; in containers too


@dataclass(frozen=True)
class Card:
    """A GPU. matmul: TFLOPS of matrix products by precision; vector: of everything else. bandwidth: TB/s.

    attention_share: of `matmul` that attention reaches. eigen: TFLOPS of symmetric eigenproblems at 10 n^3 operations, in double
    precision. launch_s: of the host for a kernel, torch's dispatch included: 5 to 25 microseconds, of which the least is taken
    [jiahuanglin.xyz/all_lessons/gpu_kernel_serving/18_pytorch_to_kernel.html]. models: what drivers call it; others of the name,
    as an H100 PCIe, an RTX 4090 Laptop GPU or a part of a card, have other rates.
    """

    name: str
    title: str
    matmul: dict[str, float]
    vector: dict[str, float]
    bandwidth: float
    attention_share: float
    eigen: float
    models: tuple[str, ...]
    launch_s: float = 5e-6


_H100 = Card(
    "h100", "an H100", {HALF: 989, SINGLE: 67, DOUBLE: 67}, {HALF: 134, SINGLE: 67, DOUBLE: 34}, bandwidth=3.35,
    attention_share=0.35, eigen=0.8, models=("H100 80GB HBM3",),
)  # fmt: skip
_H200 = replace(_H100, name="h200", title="an H200", bandwidth=4.8, models=("H200",))
_A100 = Card(
    "a100", "an A100", {HALF: 312, SINGLE: 19.5, DOUBLE: 19.5}, {HALF: 39, SINGLE: 19.5, DOUBLE: 9.7}, bandwidth=2.04,
    attention_share=0.7, eigen=0.8, models=("A100-SXM4-80GB", "A100 80GB PCIe"),
)  # fmt: skip
_4090 = Card(
    "4090", "an RTX 4090", {HALF: 165, SINGLE: 82.6, DOUBLE: 1.29}, {HALF: 82.6, SINGLE: 82.6, DOUBLE: 1.29}, bandwidth=1.01,
    attention_share=0.7, eigen=0.5, models=("GeForce RTX 4090",),
)  # fmt: skip
CARDS = {card.name: card for card in (_H100, _H200, _A100, _4090)}
DEFAULT = "h100"


class Operator(NamedTuple):
    """A call of an operator. name: torch's. flops: floating-point operations in `precision`. bytes: read and written by the device.

    launches: kernels, 1 but for views and copies from the host; copies: from the host; waits: of the host for the device.
    """

    name: str
    kind: str
    precision: str
    flops: float
    bytes: float
    launches: int = 1
    copies: int = 0
    waits: int = 0


def card_named(name: str) -> Card:
    """Raises UsageError for a card that is not in the table."""
    if name not in CARDS:
        raise unknown_name("card", name, CARDS, "use one of them")
    return CARDS[name]


def card_of(device_name: str) -> Card | None:
    """The card that a driver calls `device_name`, as `NVIDIA H100 80GB HBM3`; None if it is not in the table."""
    model = device_name.strip().removeprefix("NVIDIA ")
    return next((card for card in CARDS.values() if model in card.models), None)


def card_here() -> Card | None:
    """The card of this machine's first GPU, as its driver names it; None where there is none, or none of the table (all AMD's)."""
    return card_of(_model_in_files() or _model_of_nvidia_smi())


def _model_in_files() -> str:
    """What the kernel shows of the driver; nothing where there is no such file, as in Windows (WSL 2)."""
    for path in sorted(glob.glob(DRIVER_INFORMATION)):
        try:
            lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        return next((line.partition(":")[2] for line in lines if line.startswith("Model:")), "")
    return ""


def _model_of_nvidia_smi() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.partition("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        return ""


def arithmetic_seconds(flops: float, kind: str, precision: str, card: Card) -> float:
    """The time of `flops` operations of a kind at the rate that kernels reach."""
    rates = {
        MATMUL: card.matmul[precision] * MATMUL_SHARE,
        ATTENTION: card.matmul[precision] * card.attention_share,
        EIGEN: card.eigen,
        OTHER: card.vector[precision],
    }
    return flops / (rates[kind] * TERA)


def moving_seconds(bytes_: float, card: Card) -> float:
    """The time in which kernels read and write so many bytes."""
    return bytes_ / (card.bandwidth * BANDWIDTH_SHARE * TERA)


def device_seconds(operator: Operator, card: Card) -> float:
    """The time of one call on the device: of its arithmetic or of its bytes, whichever is longer."""
    arithmetic = arithmetic_seconds(operator.flops, operator.kind, operator.precision, card)
    return max(arithmetic, moving_seconds(operator.bytes, card))


def seconds(operators: Iterable[tuple[Operator, float]], card: Card) -> float:
    """The time of operators, each with how often it is called: of the host, which launches, or of the device; and the waits."""
    host = device = waits = 0.0
    for operator, count in operators:
        host += count * operator.launches * card.launch_s
        device += count * device_seconds(operator, card)
        waits += count * (operator.copies + operator.waits) * WAIT_S
    return max(host, device) + waits
