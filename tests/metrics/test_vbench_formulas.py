"""The formulas around the networks, by hand: consistency, dynamic degree, the middle frame, clip lists."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from longgen.errors import UsageError
from longgen.metrics.vbench.clips import clip_list
from longgen.metrics.vbench.consistency import Consistency
from longgen.metrics.vbench.dynamic import DynamicDegree, every, fastest_px, needed, threshold_px
from longgen.metrics.vbench.smoothness import MotionSmoothness, middle


def corner(frames: torch.Tensor) -> torch.Tensor:
    """An embedding to compute by hand with: the first pixel's three values, less 100."""
    return frames[:, :, 0, 0] - 100


def frames_of(*embeddings: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(embeddings, dtype=torch.float32).view(-1, 3, 1, 1) + 100


def test_consistency_by_hand() -> None:
    gauge = Consistency(corner)
    gauge.add(frames_of((3, 4, 0), (4, 3, 0)))
    gauge.add(frames_of((-4, -3, 0), (0, 0, 2)))
    # with the first: 0.96, -0.96 -> 0, 0; with the one before: 0.96, -1 -> 0, 0
    assert gauge.curve[1:] == pytest.approx([0.96, 0, 0], abs=1e-6)
    assert math.isnan(gauge.curve[0])
    assert gauge.value() == pytest.approx(0.32, abs=1e-6)


def test_consistency_looks_back_to_the_first_frame_and_the_last() -> None:
    gauge = Consistency(corner)
    gauge.add(frames_of((1, 0, 0), (0, 1, 0), (0, 5, 0), (9, 0, 0)))
    assert gauge.curve[1:] == pytest.approx([0, 0.5, 0.5], abs=1e-6)


def test_one_frame_has_no_consistency() -> None:
    gauge = Consistency(corner)
    gauge.add(frames_of((1, 2, 3)))
    assert gauge.value() is None


@pytest.mark.parametrize(("fps", "step"), [(8, 1), (16, 2), (24, 3), (30, 4), (12, 2), (20, 2), (60, 8), (3, 1), (29.97, 4)])
def test_every_eighth_of_a_second_is_looked_at(fps: float, step: int) -> None:
    assert every(fps) == step  # 12 / 8 = 1.5 and 20 / 8 = 2.5 both go to 2


@pytest.mark.parametrize(("frames", "fps", "count"), [(81, 16, 10), (321, 16, 40), (32, 16, 4), (2, 8, 0), (6, 8, 2), (10, 8, 2)])
def test_a_quarter_of_the_pairs_must_move(frames: int, fps: float, count: int) -> None:
    assert needed(len(range(0, frames, every(fps)))) == count


def test_far_is_measured_by_the_shorter_side() -> None:
    assert threshold_px(480, 832) == threshold_px(832, 480) == 11.25
    assert threshold_px(256, 256) == 6


def test_the_fastest_twentieth_is_meant() -> None:
    flow = torch.zeros(2, 10, 12)  # 120 pixels, of which 6 count
    flow[:, 0, 0] = torch.tensor([3.0, 4.0])
    flow[0, 9, 7:12] = -7
    assert fastest_px(flow) == pytest.approx((5 + 5 * 7) / 6)


def flow(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """In the place of RAFT's: nothing where two frames are equal, some pixels on noise, not the same back as there."""
    assert first.shape[2] % 8 == first.shape[3] % 8 == 0
    return (second - first)[:, :2] * (second[:, 2:] + 50) / 5000


@torch.inference_mode()
def test_dynamic_degree_against_all_pairs_at_once() -> None:
    frames = 255 * torch.rand(7, 3, 121, 128)
    gauge = DynamicDegree(flow, 16)
    for batch in frames.split(3):
        gauge.add(batch)
    taken = torch.nn.functional.pad(frames[::2], (0, 0, 3, 4), mode="replicate")  # 121 + 7 = 128
    want = [fastest_px(flow(a[None], b[None])[0]) for a, b in itertools.pairwise(taken)]
    assert [m for m in gauge.curve if not math.isnan(m)] == pytest.approx(want, rel=1e-3)
    assert [index for index, m in enumerate(gauge.curve) if not math.isnan(m)] == [2, 4, 6]
    assert gauge.value() == float(any(m > 6 * 121 / 256 for m in want))  # c = round(4 * 4 / 16) = 1
    assert len({round(m, 3) for m in want}) == 3


@pytest.mark.parametrize(
    ("lengths", "dynamic"),
    [
        ([9, 0, 0], 1),
        ([9, 0, 0, 0, 0], 0),
        ([0, 0, 0], 0),
        ([3, 3, 3], 0),
        ([0, 0, 3.01], 1),
        ([9, *8 * [0]], 0),
        ([9, 9, *7 * [0]], 1),
    ],
)
def test_a_pair_counts_above_the_threshold(lengths: list[float], dynamic: int) -> None:
    gauge = DynamicDegree(flow, 8)
    gauge.add(torch.zeros(1, 3, 128, 128))  # a threshold of 3 pixels
    gauge.curve += lengths
    assert gauge.value() == dynamic


@torch.inference_mode()
def test_what_is_too_small_or_too_short_for_raft_has_no_score() -> None:
    for gauge in (DynamicDegree(flow, 8), MotionSmoothness(flow)):
        gauge.add(torch.zeros(4, 3, 120, 200))
        assert gauge.value() is None
    for gauge in (DynamicDegree(flow, 8), MotionSmoothness(flow)):
        gauge.add(torch.zeros(1, 3, 200, 200))
        assert gauge.value() is None


def picture(across: float, down: float, height: int = 48, width: int = 64) -> torch.Tensor:
    """Smooth waves, moved by so many pixels."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return (128 + 100 * torch.sin((x - across) / 9) * torch.cos((y - down) / 7)).expand(3, -1, -1)


def test_the_middle_of_a_steady_motion_is_foretold() -> None:
    """A smooth picture moves by (6, -4) from a to b: v is half of it, and both ends lead to the picture between."""
    v = torch.tensor([3.0, -2.0]).view(2, 1, 1).expand(2, 48, 64)
    got = middle(picture(0, 0), picture(6, -4), v)
    inner = (slice(None), slice(4, -4), slice(4, -4))
    assert torch.equal(got[inner], picture(3, -2).round()[inner])
    wrong = middle(picture(0, 0), picture(6, -4), -v)
    assert (wrong - picture(3, -2))[inner].abs().mean() > 20


def test_flow_there_and_back_foretells_a_steady_motion() -> None:
    frames = torch.stack([picture(3 * step, -2 * step, 125, 203) for step in range(5)])
    there = torch.tensor([6.0, -4.0]).view(1, 2, 1, 1).expand(1, 2, 128, 208)  # from one even frame to the next

    def smoothness(flow: torch.Tensor) -> float:
        gauge = MotionSmoothness(lambda first, second: flow)
        gauge.add(frames)
        value = gauge.value()
        assert value is not None
        return value

    assert smoothness(torch.cat([there, -there])) > 0.99  # what comes in at the edges cannot be foretold
    wrong = [smoothness(torch.cat(flows)) for flows in ([-there, there], [there, there], [2 * there, -2 * there])]
    assert max(wrong) < 0.98


@torch.inference_mode()
def test_smoothness_of_a_still_a_jerky_and_a_reversed_video() -> None:

    def smoothness(frames: torch.Tensor) -> MotionSmoothness:
        gauge = MotionSmoothness(flow)
        for batch in frames.split(2):
            gauge.add(batch)
        return gauge

    still = (255 * torch.rand(1, 3, 128, 128)).round().expand(5, -1, -1, -1)
    assert smoothness(still).value() == pytest.approx(1, abs=1e-4)
    flash = still.clone()
    flash[3] = 255 - flash[3]
    curve = smoothness(flash).curve
    assert [math.isnan(value) for value in curve] == [True, False, True, False, True]
    assert curve[1] == pytest.approx(1, abs=1e-4)
    assert curve[3] == pytest.approx(1 - (255 - 2 * still[0]).abs().mean().item() / 255, abs=1e-3)
    noise = (255 * torch.rand(5, 3, 128, 128)).round()
    assert smoothness(noise.flip(0)).value() == pytest.approx(smoothness(noise).value(), abs=1e-4)
    assert smoothness(noise[:4]).value() == pytest.approx(smoothness(noise[:3]).value())  # the fourth has no frame after it


def test_clip_lists_by_hand() -> None:
    clips = clip_list(321, 16)
    assert len(clips) == 11
    assert (clips[0], clips[9], clips[10]) == ((0, 31), (288, 319), (289, 320))
    assert clip_list(81, 16) == [(0, 31), (32, 63), (49, 80)]
    assert clip_list(64, 16) == [(0, 31), (32, 63)]
    assert clip_list(20, 16) == [(0, 19)]
    assert clip_list(59, 29.97) == [(0, 57), (1, 58)]  # int(29.97) * 2 = 58
    assert clip_list(50, 10, seconds=3) == [(0, 29), (20, 49)]


def test_clips_of_less_than_a_frame_are_refused() -> None:
    with pytest.raises(UsageError, match="frames a second"):
        clip_list(10, 0.5)
