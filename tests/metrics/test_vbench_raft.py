"""RAFT is upstream's network, under torchvision's names: every name, and numbers of upstream's program where torchvision is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from longgen.errors import LonggenError, MissingError
from longgen.metrics.vbench import raft
from longgen.metrics.vbench.scorer import VBench

ROWS = [line.split() for line in Path(__file__).with_name("raft_names.txt").read_text().splitlines()[1:]]
SHAPES = {upstream: [] if shape == "-" else [*map(int, shape.split("x"))] for upstream, _, shape in ROWS}
OURS = {upstream: ours for upstream, ours, _ in ROWS if ours != "-"}
# flow[0, :, 5::40, 7::40] of vbench/third_party/RAFT at github.com/Vchitect/VBench 45e79ec, iters=20, state and frames as below
UPSTREAM = [0.829, 0.3683, 2.3935, 3.028, 3.9446, 3.4623, 7.8766, 7.4733, 3.8566, 6.7074, 8.5885, 6.6587, 0.9464, 2.2274, -0.4341,
            2.5734, 1.4, 0.4551, -3.1892, -2.1878, 0.4667, -5.3913, -3.8189, -3.764, 1.0563, -7.9789, -3.6447, -0.4754, -0.4987,
            -1.1566, -2.2611, 0.0296]  # fmt: skip


def random_state() -> dict[str, torch.Tensor]:
    """Weights drawn in the order of upstream's names, so that its program can draw them too; the flow stays a few pixels long."""
    draw, state = torch.Generator().manual_seed(0), {}
    for name in OURS:
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        value = torch.randn(SHAPES[name], generator=draw)
        if name.endswith("running_var"):
            value = 1 + value.abs()
        elif value.ndim > 1:
            value = value * (2 / value[0].numel()) ** 0.5
        else:
            value = 0.1 * value + (("norm" in name or ".downsample.1." in name) and name.endswith("weight"))
        state[name] = value * (0.03 if "flow_head.conv2" in name else 1)
    return state


@pytest.fixture
def torchvision() -> None:
    try:
        raft.library()
    except MissingError as error:
        pytest.skip(error.given)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """As upstream's file is: saved by DataParallel, with each norm of a downsampling twice."""
    state = random_state()
    twice = {name.replace("downsample.1", "norm3"): tensor for name, tensor in state.items() if "downsample.1" in name}
    torch.save({f"module.{name}": tensor for name, tensor in (state | twice).items()}, tmp_path / "raft-things.pth")
    return tmp_path / "raft-things.pth"


def test_every_name_of_upstream_has_its_torchvision_name() -> None:
    state = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}
    got = raft.renamed(state)
    assert {name: [*tensor.shape] for name, tensor in got.items()} == {ours: SHAPES[name] for name, ours in OURS.items()}
    assert all(got[ours] is state[name] for name, ours in OURS.items())
    again = raft.renamed(got)
    assert again == got  # torchvision's own names stay
    assert len(got) == len(OURS) == 169
    assert sum(tensor.numel() for name, tensor in got.items() if "running" not in name and "tracked" not in name) == 5_257_536


@pytest.mark.usefixtures("torchvision")
def test_the_names_are_torchvisions() -> None:
    state = raft.library().raft_large(weights=None).state_dict()
    assert {name: [*tensor.shape] for name, tensor in state.items()} == {ours: SHAPES[name] for name, ours in OURS.items()}


@pytest.mark.usefixtures("torchvision")
def test_the_flow_is_that_of_upstreams_program(published: Path) -> None:
    first, second = 255 * torch.rand(2, 1, 3, 128, 136, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        flow = raft.load(published, "cpu")(first, second)
    assert flow.shape == (1, 2, 128, 136)
    assert flow[0, :, 5::40, 7::40].flatten().tolist() == pytest.approx(UPSTREAM, abs=2e-3)


@pytest.mark.usefixtures("torchvision")
def test_torchvisions_own_file_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft, "ITERATIONS", 2)
    theirs = raft.library().raft_large(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "raft_large_C_T_V1-22a6c225.pth")
    first, second = 255 * torch.rand(2, 1, 3, 128, 136)
    with torch.inference_mode():
        ours = raft.load(tmp_path / "raft_large_C_T_V1-22a6c225.pth", "cpu")(first, second)
        want = theirs(2 * (first / 255) - 1, 2 * (second / 255) - 1, num_flow_updates=2)[-1]
    assert torch.equal(ours, want)


@pytest.mark.usefixtures("torchvision")
def test_the_least_side_is_the_least_that_torchvision_takes(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft, "ITERATIONS", 1)
    network = raft.load(published, "cpu")
    wide, _ = raft.padded(torch.rand(1, 3, raft.LEAST_PX, raft.LEAST_PX))
    narrow, _ = raft.padded(torch.rand(1, 3, raft.LEAST_PX - 1, raft.LEAST_PX))
    with torch.inference_mode():
        assert network(wide, wide).isfinite().all()
        with pytest.raises(ValueError, match="too small"):
            network(narrow, narrow)


@pytest.mark.parametrize(("height", "width"), [(480, 832), (121, 130), (127, 135)])
def test_padding_repeats_edges_on_both_sides(height: int, width: int) -> None:
    frames = torch.rand(1, 3, height, width)
    wide, inside = raft.padded(frames)
    assert wide.shape[2] % 8 == wide.shape[3] % 8 == 0
    assert torch.equal(wide[(..., *inside)], frames)
    top, bottom = inside[0].start, wide.shape[2] - inside[0].stop
    assert bottom - top in (0, 1)  # what is odd goes below, as in upstream's InputPadder("sintel")
    assert torch.equal(wide[..., 0, inside[1]], frames[..., 0, :])


@pytest.mark.usefixtures("torchvision")
def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "raft-things.pth")
    with pytest.raises(LonggenError, match="does not hold RAFT's weights"):
        raft.load(tmp_path / "raft-things.pth", "cpu")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raft-things.pth").write_bytes(b"not a zip")
    with pytest.raises(LonggenError, match="is damaged"):
        raft.load(tmp_path / "raft-things.pth", "cpu")


def forget_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("dimension", ["dynamic_degree", "subject_consistency"])
def test_a_torchvision_that_does_not_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dimension: str) -> None:
    """It breaks transformers as well, so DINO's dimension says it too."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    forget_torchvision(monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingError, match="operator torchvision::nms does not exist") as caught:
        VBench("cpu", tmp_path, [dimension])
    assert torch.__version__ in caught.value.expected
    assert 'pip install "longgen[vbench]"' in caught.value.hint


def test_without_torchvision_only_the_dimensions_of_motion_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    forget_torchvision(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what importing a library that is not there meets
    for dimension in ("dynamic_degree", "motion_smoothness_raft"):
        with pytest.raises(MissingError, match="torchvision, which RAFT needs"):
            VBench("cpu", tmp_path, [dimension])
    with pytest.raises(MissingError, match="weights of VBench are missing"):
        VBench("cpu", tmp_path, ["aesthetic_quality", "imaging_quality"])
