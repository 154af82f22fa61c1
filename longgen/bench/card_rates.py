"""Measures the rates of a device that estimates of time are made from: arithmetic, attention, launches, waits and copies."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch

from longgen.pipelines.loading import DTYPES

REPEATS = 3  # the fastest counts


def card_rates(device: str, dtype: str) -> dict[str, float]:
    """Rates by name, each with its unit in the name; those that the device cannot do are left out. Takes a few seconds.

    On a CPU the sizes are small: there the numbers rehearse the measurement and mean little.
    """
    target, kind = torch.device(device), DTYPES[dtype]
    small = target.type == "cpu"
    side, wide, tokens, megabytes = (256, 128, 256, 4) if small else (8192, 2048, 16384, 256)
    x = torch.randn(side, side, dtype=torch.float32).to(target, kind)
    heads = torch.randn(1, 12, tokens, 128).to(target, kind)
    host = torch.zeros(megabytes * 2**20, dtype=torch.uint8)
    one = torch.zeros(1, device=target)

    def launches() -> None:
        for _ in range(1000):
            one.add_(1)

    def waits() -> None:
        for _ in range(100):
            one.item()

    def float64() -> Callable[[], object]:
        precise = torch.randn(wide, wide, dtype=torch.float64).to(target)
        return lambda: precise @ precise

    rates = {
        f"{dtype}_matmul_tflops": 2e-12 * side**3 / _seconds(target, lambda: x @ x),
        "attention_tflops": 4e-12 * tokens**2 * 12 * 128 / _seconds(
            target, lambda: torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)),
        "launch_microseconds": 1e3 * _seconds(target, launches),
        "wait_microseconds": 1e4 * _seconds(target, waits),
        "host_to_device_gigabytes_per_second": 1e-3 * megabytes * 1.048576 / _seconds(target, lambda: host.to(target, copy=True)),
    }  # fmt: skip
    with contextlib.suppress(TypeError, RuntimeError):  # a device without float64
        rates["fp64_matmul_tflops"] = 2e-12 * wide**3 / _seconds(target, float64())
    return {name: float(f"{rate:.4g}") for name, rate in rates.items()}


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Of the fastest of REPEATS calls, after one that warms up."""
    times = []
    for _ in range(1 + REPEATS):
        _synchronise(device)
        start = time.perf_counter()
        work()
        _synchronise(device)
        times.append(time.perf_counter() - start)
    return max(min(times[1:]), 1e-9)


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
