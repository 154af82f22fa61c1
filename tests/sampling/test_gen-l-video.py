"""Gen-L-Video's clips and weights against sums over single frames. Runs on every family: test_clips.py.

Legend: T latent frames, L frames of a clip, S stride.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longgen import cost, planner, preset
from longgen.backbones.registry import SPECS
from longgen.backbones.wan import TINY
from longgen.errors import UsageError
from longgen.plan import Plan
from longgen.preset import Sample
from longgen.sampling.clips import Clips
from longgen.sampling.gen_l_video import GenLVideo

NATIVE = TINY.native_lat


def built(*sets: str, frames_px: int = 401, name: str = "gen-l-video") -> Plan:
    return planner.build(preset.load(name, sets, Sample(frames=frames_px)), TINY)


def clips(technique: GenLVideo, frames_lat: int, length: int) -> Clips:
    return technique.clips(frames_lat, length, 500.0, 0)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int | None]:
    length = draw(st.integers(1, 25))
    return draw(st.integers(length + 1, 120)), length, draw(st.none() | st.integers(1, length))


@settings(deadline=None)
@given(layouts(), st.sampled_from(["uniform", "pyramid"]))
@example((22, 21, None), "uniform")
@example((100, 1, None), "pyramid")
def test_every_frame_has_clips_whose_weights_sum_to_one(layout: tuple[int, int, int | None], weights: str) -> None:
    """Clips are S apart from frame 0 on, and one more ends the video where T - L is no multiple of S."""
    frames_lat, length, stride = layout
    technique = GenLVideo(stride=stride, weights=weights)
    made = clips(technique, frames_lat, length)
    step = stride or max(1, length // 2)
    starts = [start for start in range(frames_lat) if start + length <= frames_lat and start % step == 0]
    starts += [frames_lat - length] * (starts[-1] != frames_lat - length)
    assert made.frames.tolist() == [[start + j for j in range(length)] for start in starts]
    assert made.anchors == (0,) * len(starts)
    height = [1 if weights == "uniform" else min(j + 1, length - j) for j in range(length)]
    total = [sum(height[i - start] for start in starts if start <= i < start + length) for i in range(frames_lat)]
    assert min(total) > 0
    expected = [[height[j] / total[start + j] for j in range(length)] for start in starts]
    assert np.allclose(made.weight, expected, rtol=1e-12, atol=0)
    held = np.zeros(frames_lat)
    np.add.at(held, made.frames, made.weight)
    assert np.allclose(held, 1, atol=1e-12)
    assert technique.calls(frames_lat, length) == len(starts)


def test_the_numbers_of_the_code() -> None:
    """64 frames in clips of 16: 8 apart by default, 4 apart in the code's configs."""
    for stride, starts in ((None, range(0, 49, 8)), (4, range(0, 49, 4))):
        assert clips(GenLVideo(stride=stride), 64, 16).frames[:, 0].tolist() == list(starts)
    weight = clips(GenLVideo(), 64, 16).weight
    assert set(weight[:, 0]) == {1.0, 0.5}
    pyramid = clips(GenLVideo(weights="pyramid"), 64, 16).weight[1]  # of 1 .. 8, 8 .. 1, each frame in two clips
    assert np.allclose(pyramid, [i / 9 for i in (*range(1, 9), *range(8, 0, -1))])


def test_a_video_of_one_clip_is_seen_whole() -> None:
    for frames_px in (81, 41, 1):
        native = built(frames_px=frames_px)
        assert native.calls == 1
        assert cost.ratio(native) == 1
        assert native.call_geometry == native.geometry
        assert native.call_geometry.frames_lat == native.frames_lat
        assert any("gen-l-video changes nothing" in note for note in native.notes)
    longer = built("gen-l-video.frames=101")
    assert longer.calls == 1


def test_every_option_is_obeyed() -> None:
    """T = 101: clips of 21 every 10, so that nine of them fit."""
    assert built().call_geometry.frames_lat == NATIVE
    assert built().calls == 9
    assert built("gen-l-video.frames=11").call_geometry.frames_lat == 11
    assert built("gen-l-video.frames=11").calls == 19
    assert built("gen-l-video.stride=5").calls == 17
    assert built("gen-l-video.stride=21").calls == 5
    assert cost.attention_ratio(built()) == pytest.approx(9 * (21 / 101) ** 2)
    assert cost.ratio(built()) < cost.ratio(built("gen-l-video.stride=5"))


def test_the_length_of_the_video_has_no_end() -> None:
    """A backbone with a table of so many positions sees clips, which are shorter."""
    longest = max(spec.most_lat for spec in SPECS.values())
    frames_px = 4 * longest + 1
    with pytest.raises(UsageError, match=r"more than .* can address"):
        built(frames_px=frames_px, name="direct")
    assert built(frames_px=frames_px).call_geometry.frames_lat == NATIVE


@pytest.mark.parametrize(
    ("sets", "frames_px", "length"),
    [(["gen-l-video.stride=22"], 401, NATIVE), (["gen-l-video.stride=22"], 41, NATIVE),
     (["gen-l-video.stride=6", "gen-l-video.frames=5"], 401, 5)],
)  # fmt: skip
def test_a_stride_that_leaves_frames_out_is_refused(sets: list[str], frames_px: int, length: int) -> None:
    """By the plan, whatever the length of the video."""
    with pytest.raises(
        UsageError, match=rf"gen-l-video.stride = {length + 1} is more than the window of {length} latent frames"
    ) as caught:
        built(*sets, frames_px=frames_px)
    assert caught.value.expected == f"1 to {length}"
    assert f"--set gen-l-video.stride={length}" in caught.value.hint


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stride=0", "gen-l-video.stride = 0: .*greater than or equal to 1"),
        ("weights=round", "gen-l-video.weights = 'round': .*'uniform'"),
        ("shift=1", "gen-l-video.*shift"),
    ],
)
def test_wrong_values_are_refused(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        built(f"gen-l-video.{setting}")
