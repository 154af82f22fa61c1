"""Peak rates of GPUs, and how long a list of operators takes at them: estimates, never measurements.

Rates are the publishers', dense (without sparsity): data sheets of the H100 SXM, the H200 SXM and the A100 80GB SXM, and the Ada
architecture's white paper (RTX 4090, bf16 with sums in float32). What kernels reach of them is assumed [derived], except
attention: FlashAttention-2, which torch has, reaches 35% of an H100 [arXiv 2407.08608] and up to 73% of an A100 [arXiv
2307.08691].
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from longgen.errors import unknown_name

HALF, SINGLE, DOUBLE = "half", "float32", "float64"
PRECISIONS = (HALF, SINGLE, DOUBLE)
MATMUL, ATTENTION, EIGEN, OTHER = "matmul", "attention", "eigenproblem", "other"

TERA = 1e12
MATMUL_SHARE = 0.7  # of the peak rate that matrix products reach [derived]
BANDWIDTH_SHARE = 0.8  # of the peak bandwidth that element-wise kernels reach [derived]
WAIT_S = 20e-6  # of the host for the device, beside what the device computes until then [derived]


@dataclass(frozen=True)
class Card:
    """A GPU. matmul: TFLOPS of matrix products by precision; vector: of everything else. bandwidth: TB/s.

    attention_share: of `matmul` that attention reaches. eigen: TFLOPS of symmetric eigenproblems at 10 n^3 operations, in double
    precision [derived]. launch_s: of the host for a kernel. patterns: parts of the device's name by which it is known.
    """

    name: str
    title: str
    matmul: dict[str, float]
    vector: dict[str, float]
    bandwidth: float
    attention_share: float
    eigen: float
    patterns: tuple[str, ...]
    launch_s: float = 5e-6


_H100 = Card(
    "h100", "an H100", {HALF: 989, SINGLE: 67, DOUBLE: 67}, {HALF: 134, SINGLE: 67, DOUBLE: 34}, bandwidth=3.35,
    attention_share=0.35, eigen=0.3, patterns=("H100",),
)  # fmt: skip
_H200 = replace(_H100, name="h200", title="an H200", bandwidth=4.8, patterns=("H200",))
_A100 = Card(
    "a100", "an A100", {HALF: 312, SINGLE: 19.5, DOUBLE: 19.5}, {HALF: 39, SINGLE: 19.5, DOUBLE: 9.7}, bandwidth=2.0,
    attention_share=0.7, eigen=0.25, patterns=("A100",),
)  # fmt: skip
_4090 = Card(
    "4090", "an RTX 4090", {HALF: 165, SINGLE: 82.6, DOUBLE: 1.3}, {HALF: 82.6, SINGLE: 82.6, DOUBLE: 1.3}, bandwidth=1.01,
    attention_share=0.7, eigen=0.15, patterns=("RTX 4090",),
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
    return next((card for card in CARDS.values() if any(pattern in device_name for pattern in card.patterns)), None)


def card_here() -> Card | None:
    """The card of this machine's first GPU, as its driver names it; None where there is none, or none of the table."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return card_of(names.partition("\n")[0])


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
