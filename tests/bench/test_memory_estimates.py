"""Memory estimates of plans against the tensors alive as a GPU computes them, on a fake one at the published sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from longgen import cost
from longgen.bench import count
from longgen.bench.memory import AllocationTracker
from tests import launches

SAMPLE = [
    ("wan2.1-14b", "fifo"),
    ("ltx-2b", "freepca"),
    ("ltx-2b", "freeloc@stripes"),
    ("ltx-2b", "fifo"),
    ("cogvideox-5b", "direct"),
    ("cogvideox-5b", "freelongpp"),
    ("cogvideox-2b", "sliding-window"),
]


def alive(name: str, backbone: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of the tensors at the peak of a model call that is not the first, weights and tables apart."""
    peaks: list[int] = []
    counted = count._Watch.count

    def tracked(watch: Any, run: Callable[[], Any]) -> Any:
        with AllocationTracker() as account:
            operators = counted(watch, run)
        peaks.append(account.peak)
        return operators

    monkeypatch.setattr(count._Watch, "count", tracked)
    count.count_plan(launches.plan_of(name, backbone), "bf16")
    return max(peaks)


@pytest.mark.parametrize(("backbone", "name"), SAMPLE)
def test_no_more_is_alive_on_a_gpu_than_was_estimated(backbone: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = cost.memory_bytes(launches.plan_of(name, backbone), "bf16")["activations"]
    assert 1 / 1.03 < estimate / alive(name, backbone, monkeypatch) < 1.25
