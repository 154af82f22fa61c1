"""RAFT is upstream's network: numbers of its program, its lookup and its upsampling written as loops, torchvision where it is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from longgen.errors import LonggenError
from longgen.metrics.vbench import raft

# flow[0, :, 5::40, 7::40] of vbench/third_party/RAFT at github.com/Vchitect/VBench 45e79ec, iters=20, state and frames as below
UPSTREAM = [0.829, 0.3683, 2.3935, 3.028, 3.9446, 3.4623, 7.8766, 7.4733, 3.8566, 6.7074, 8.5885, 6.6587, 0.9464, 2.2274, -0.4341,
            2.5734, 1.4, 0.4551, -3.1892, -2.1878, 0.4667, -5.3913, -3.8189, -3.764, 1.0563, -7.9789, -3.6447, -0.4754, -0.4987,
            -1.1566, -2.2611, 0.0296]  # fmt: skip


def random_state() -> dict[str, torch.Tensor]:
    """Weights drawn in the order of their names, so that another program can draw them too; the flow stays a few pixels long."""
    draw, state = torch.Generator().manual_seed(0), {}
    for name, tensor in sorted(raft.Raft().state_dict().items()):
        if name.endswith("num_batches_tracked"):
            state[name] = tensor
            continue
        value = torch.randn(tensor.shape, generator=draw)
        if name.endswith("running_var"):
            value = 1 + value.abs()
        elif tensor.ndim > 1:
            value = value * (2 / tensor[0].numel()) ** 0.5
        else:
            value = 0.1 * value + (("norm" in name or ".downsample.1." in name) and name.endswith("weight"))
        state[name] = value * (0.03 if "flow_head.conv2" in name else 1)
    return state


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> raft.Raft:
    """Loaded from a file as upstream's are: saved by DataParallel, with each norm of a downsampling twice."""
    state = random_state()
    twice = {name.replace("downsample.1", "norm3"): tensor for name, tensor in state.items() if "downsample.1" in name}
    path = tmp_path_factory.mktemp("raft") / "raft-things.pth"
    torch.save({f"module.{name}": tensor for name, tensor in (state | twice).items()}, path)
    return raft.load(path, "cpu")


def test_the_flow_is_that_of_upstreams_program(network: raft.Raft) -> None:
    first, second = 255 * torch.rand(2, 1, 3, 128, 136, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        flow = network(first, second)
    assert sum(tensor.numel() for tensor in network.parameters()) == 5_257_536
    assert flow.shape == (1, 2, 128, 136)
    assert flow[0, :, 5::40, 7::40].flatten().tolist() == pytest.approx(UPSTREAM, abs=2e-3)


def test_the_flow_is_that_of_torchvision(tmp_path: Path) -> None:
    try:
        from torchvision.models.optical_flow import raft_large
    except (ImportError, RuntimeError):
        pytest.skip("torchvision is not there, or not built for this torch")
    theirs = raft_large().eval()
    torch.save(theirs.state_dict(), tmp_path / "raft_large_C_T_V1-22a6c225.pth")
    first, second = 255 * torch.rand(2, 1, 3, 128, 136)
    with torch.inference_mode():
        ours = raft.load(tmp_path / "raft_large_C_T_V1-22a6c225.pth", "cpu")(first, second)
        want = theirs(2 * first / 255 - 1, 2 * second / 255 - 1, num_flow_updates=20)[-1]
    assert torch.allclose(ours, want, atol=1e-4 * want.abs().max().item())


def test_the_lookup_reads_products_around_a_place() -> None:
    first, second = torch.randn(2, 1, 5, 16, 16, dtype=torch.float64)
    place = 15 * torch.rand(1, 2, 16, 16, dtype=torch.float64)
    got = raft.Correlation(first, second)(place).view(4, 9, 9, 16, 16)
    for level, i, j, row, column in ((0, 4, 4, 3, 2), (0, 0, 8, 9, 15), (1, 2, 6, 8, 8), (2, 5, 3, 0, 7), (3, 4, 5, 12, 1)):
        pooled = torch.nn.functional.avg_pool2d(second, 2**level) if level else second
        products = torch.einsum("c,chw->hw", first[0, :, row, column], pooled[0]) / math.sqrt(5)
        x, y = (place[0, :, row, column] / 2**level).tolist()
        x, y = x + i - 4, y + j - 4  # the first axis of the window is x
        want = 0.0
        for cell_y in (math.floor(y), math.floor(y) + 1):
            for cell_x in (math.floor(x), math.floor(x) + 1):
                if 0 <= cell_x < products.shape[1] and 0 <= cell_y < products.shape[0]:
                    want += (1 - abs(x - cell_x)) * (1 - abs(y - cell_y)) * products[cell_y, cell_x].item()
        assert got[level, i, j, row, column].item() == pytest.approx(want, abs=1e-9)


def test_upsampling_is_a_convex_mean_of_nine_cells() -> None:
    flow, mask = torch.randn(1, 2, 3, 4), torch.randn(1, 576, 3, 4)
    got = raft.upsampled(flow, mask)
    for axis, row, column in ((0, 0, 0), (1, 13, 30), (0, 23, 9)):
        y, x = row // 8, column // 8
        share = torch.softmax(mask.view(9, 8, 8, 3, 4)[:, row % 8, column % 8, y, x], dim=0)
        cells = [(y + down, x + across) for down in (-1, 0, 1) for across in (-1, 0, 1)]
        cells = [8 * flow[0, axis, b, a].item() if 0 <= b < 3 and 0 <= a < 4 else 0.0 for b, a in cells]
        want = sum(part * cell for part, cell in zip(share.tolist(), cells, strict=True))
        assert got[0, axis, row, column].item() == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(480, 832), (121, 130), (127, 135)])
def test_padding_repeats_edges_on_both_sides(height: int, width: int) -> None:
    frames = torch.rand(1, 3, height, width)
    wide, inside = raft.padded(frames)
    assert wide.shape[2] % 8 == wide.shape[3] % 8 == 0
    assert torch.equal(wide[(..., *inside)], frames)
    top, bottom = inside[0].start, wide.shape[2] - inside[0].stop
    assert bottom - top in (0, 1)  # what is odd goes below, as in upstream's InputPadder("sintel")
    assert torch.equal(wide[..., 0, inside[1]], frames[..., 0, :])


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "raft-things.pth")
    with pytest.raises(LonggenError, match="does not hold RAFT's weights"):
        raft.load(tmp_path / "raft-things.pth", "cpu")
    (tmp_path / "raft-things.pth").write_bytes(b"not a zip")
    with pytest.raises(LonggenError, match="is damaged"):
        raft.load(tmp_path / "raft-things.pth", "cpu")
