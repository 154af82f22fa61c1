"""LVSA against numbers that the authors' public code gives (commit c72a36b), and the steps of its grid in a plan.

Numbers: `compute_auto_kfi`, `compute_global_indices` and `get_window_bounds` of lvsa/sparse_attention.py, the offset being the step
modulo the interval.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longgen import describe, planner, preset
from longgen.backbones.registry import SPECS
from longgen.bench.step_types import step_types
from longgen.context.lvsa import Lvsa
from longgen.frameplan import Geometry, full_attention
from longgen.plan import Plan
from longgen.preset import Preset, Sample
from tests.backbones import family

WAN = SPECS["wan2.1-1.3b"]
# By latent frames, for each of the SETTINGS.
SETTINGS = [(3, 1, 21, 1.0), (4, 1, 21, 1.0), (4, 1, 33, 1.0), (3, 1, 33, 1.0), (3, 1, 13, 1.0), (7, 2, 21, 1.0), (10, 1, 21, 1.0),
            (3, 6, 13, 1.0), (3, 1, 21, 0.5), (3, 1, 21, 1.5), (3, 4, 33, 1.0), (3, 6, 21, 1.0)]  # fmt: skip
INTERVALS = {
    20: [1, 1, 1, 1, 3, 1, 1, 20, 9, 1, 1, 1],
    21: [1, 1, 1, 1, 4, 1, 1, 21, 10, 1, 1, 1],
    22: [2, 2, 1, 1, 4, 5, 22, 22, 10, 1, 1, 2],
    25: [2, 2, 1, 1, 4, 6, 25, 25, 12, 1, 1, 2],
    33: [2, 2, 1, 1, 6, 8, 33, 33, 16, 2, 1, 3],
    34: [2, 3, 2, 2, 6, 8, 34, 34, 16, 2, 2, 3],
    41: [3, 3, 2, 2, 8, 10, 41, 41, 20, 2, 2, 4],
    47: [3, 4, 2, 2, 9, 11, 47, 47, 23, 2, 2, 5],
    49: [3, 4, 2, 2, 9, 12, 49, 49, 24, 2, 2, 6],
    65: [5, 5, 3, 3, 12, 16, 65, 65, 32, 3, 3, 8],
    81: [6, 7, 3, 3, 16, 20, 81, 81, 40, 4, 4, 10],
    121: [9, 10, 5, 5, 24, 30, 121, 121, 60, 5, 5, 15],
    251: [19, 22, 11, 10, 50, 62, 251, 251, 125, 11, 11, 31],
}
# By latent frames and step: the globals, and the ends of the windows, each the first frame after it.
GLOBALS = {
    (41, 1): [0, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37, 40],
    (41, 5): [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38],
    (81, 0): [0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 66, 72, 78],
    (81, 40): [0, 1, 4, 10, 16, 22, 28, 34, 40, 46, 52, 58, 64, 70, 76],
}
STARTS = {
    (41, 1): [*[0] * 6, *range(1, 30), *[30] * 6],
    (41, 5): [*[0] * 6, *range(1, 31), *[31] * 5],
    (81, 0): [*[0] * 5, *range(1, 73), *[73] * 4],
    (81, 40): [*[0] * 5, *range(1, 73), *[73] * 4],
}
ENDS = {
    (41, 1): [12, 12, 12, 12, 12, 12, 12, 12, 13, 15, 15, 16, 18, 18, 19, 21, 21, 22, 24, 24, 25, 27, 27, 28, 30, 30, 31, 33,
              33, 34, 36, 36, 37, 39, 39, 40, 41, 41, 41, 41, 41],
    (41, 5): [11, 11, 11, 11, 11, 11, 11, 13, 13, 14, 16, 16, 17, 19, 19, 20, 22, 22, 23, 25, 25, 26, 28, 28, 29, 31, 31, 32,
              34, 34, 35, 37, 37, 38, 40, 40, 41, 41, 41, 41, 41],
    (81, 0): [9, 9, 9, 9, 9, 9, 10, 11, 12, 14, 15, 15, 16, 17, 18, 20, 21, 21, 22, 23, 24, 26, 27, 27, 28, 29, 30, 32, 33, 33,
              34, 35, 36, 38, 39, 39, 40, 41, 42, 44, 45, 45, 46, 47, 48, 50, 51, 51, 52, 53, 54, 56, 57, 57, 58, 59, 60, 62,
              63, 63, 64, 65, 66, 68, 69, 69, 70, 71, 72, 74, 75, 75, 76, 77, 78, 80, 81, 81, 81, 81, 81],
    (81, 40): [10, 10, 10, 10, 10, 10, 10, 12, 13, 13, 14, 15, 16, 18, 19, 19, 20, 21, 22, 24, 25, 25, 26, 27, 28, 30, 31, 31,
               32, 33, 34, 36, 37, 37, 38, 39, 40, 42, 43, 43, 44, 45, 46, 48, 49, 49, 50, 51, 52, 54, 55, 55, 56, 57, 58, 60,
               61, 61, 62, 63, 64, 66, 67, 67, 68, 69, 70, 72, 73, 73, 74, 75, 76, 78, 79, 79, 80, 81, 81, 81, 81],
}  # fmt: skip
# By latent frames, window, first and native length: of the mask of each step, in bits, the SHA-256, and how many it shows.
MASKS = {
    (41, 3, 1, 21): (["85c76fc56287", "f76d44e7f001", "30bafb118d12"], [861, 902, 861]),
    (81, 3, 1, 21): (["732b91615424", "44543bbcc315", "94c797dcc458", "5d1798d4e066", "fadf121798c2", "c68115af857f"],
                     [1701, 1782, 1782, 1701, 1782, 1782]),
    (61, 4, 2, 33): (["7819e705f887", "d604f7d93af8", "ba92d70c28b4"], [1891, 1830, 1891]),
    (49, 2, 3, 13): (["4cb6e80a2e41", "73709633e74b", "85adadc3dbc0", "7eade409a8b3", "4a2bb46f3874", "2da6e72b08ff",
                      "1582cc53beef", "cf831c38cc16", "a0ab09901ab1"], [637, 637, 637, 686, 637, 637, 637, 686, 686]),
}  # fmt: skip


def clip(frames_lat: int, native_lat: int = 21) -> Geometry:
    return Geometry(frames_lat, native_lat, (1.0,))


def mask(technique: Lvsa, geometry: Geometry, step: int = 0) -> np.ndarray:
    """What is visible in `step`, [T, T]."""
    plan = technique.at_step(step, geometry).apply(full_attention(geometry.frames_lat), geometry)
    return plan.passes[0].visible


def period(technique: Lvsa, geometry: Geometry) -> int:
    """After how many steps the grid is where it was."""
    return next(step for step in range(1, 1000) if technique.at_step(step, geometry) == technique.at_step(0, geometry))


def plan_of(frames_px: int, **options: object) -> Plan:
    return planner.build(Preset(name="lvsa", techniques=(Lvsa(**options),), sample=Sample(frames=frames_px)), WAN)  # type: ignore[arg-type]


@pytest.mark.parametrize("frames_lat", INTERVALS)
def test_the_interval_is_that_of_their_code(frames_lat: int) -> None:
    ours = [period(Lvsa(window=window, first=first, sparsity_scale=scale), clip(frames_lat, native))
            for window, first, native, scale in SETTINGS]  # fmt: skip
    assert ours == INTERVALS[frames_lat]


@pytest.mark.parametrize("rotate", [False, True])
def test_an_offset_beyond_the_interval_is_the_grid_that_it_comes_round_to(rotate: bool) -> None:
    grids = [mask(Lvsa(rotate=rotate, offset=offset), clip(41)) for offset in (2, 5, 41)]  # of an interval of 3
    assert all(np.array_equal(grid, grids[0]) for grid in grids)
    assert not np.array_equal(grids[0], mask(Lvsa(), clip(41)))


@pytest.mark.parametrize(("frames_lat", "step"), GLOBALS)
def test_what_a_frame_sees_is_what_their_code_shows(frames_lat: int, step: int) -> None:
    visible, of = mask(Lvsa(), clip(frames_lat), step), (frames_lat, step)
    for frame, (start, end) in enumerate(zip(STARTS[of], ENDS[of], strict=True)):
        assert np.flatnonzero(visible[frame]).tolist() == sorted({*GLOBALS[of], *range(start, end)}), frame


@pytest.mark.parametrize(("frames_lat", "window", "first", "native_lat"), MASKS)
def test_the_masks_of_all_steps(frames_lat: int, window: int, first: int, native_lat: int) -> None:
    digests, shown = MASKS[frames_lat, window, first, native_lat]
    technique, geometry = Lvsa(window=window, first=first), clip(frames_lat, native_lat)
    masks = [mask(technique, geometry, step) for step in range(len(digests))]
    assert [hashlib.sha256(np.packbits(visible).tobytes()).hexdigest()[:12] for visible in masks] == digests
    assert [int(visible.sum()) for visible in masks] == shown
    for step, visible in enumerate(masks):
        assert np.array_equal(mask(technique, geometry, step + 7 * len(masks)), visible)  # round it goes


@pytest.mark.parametrize("option", [{}, {"window": 1}, {"first": 4}, {"interval": 11}, {"sparsity_scale": 0.4}, {"offset": 3}])
@pytest.mark.parametrize("frames_lat", [22, 41, 81, 118])
def test_every_frame_sees_itself_and_as_many_as_the_others_and_is_a_key_frame_in_its_turn(
    frames_lat: int, option: dict[str, float]
) -> None:
    technique, geometry = Lvsa(**option), clip(frames_lat)  # type: ignore[arg-type]
    key_frames, budgets = np.zeros(frames_lat, dtype=bool), set()
    for step in range(period(technique, geometry)):
        visible = mask(technique, geometry, step)
        assert visible.diagonal().all()
        assert visible[:, : technique.first].all()
        budgets |= set(visible.sum(axis=1).tolist())
        key_frames |= visible.all(axis=0)
    assert key_frames.all()
    assert max(budgets) - min(budgets) <= technique.first  # as first frames are on the grid or not
    print(f"T {frames_lat} {option}: {sorted(budgets)} frames")


@pytest.mark.parametrize(("option", "frames_lat"), [({}, 1), ({}, 21), ({"sparsity_scale": 2.0}, 42), ({"interval": 1}, 81)])
def test_neutral_at_native_length_and_with_every_frame_a_key_frame(option: dict[str, float], frames_lat: int) -> None:
    technique, plain = Lvsa(**option), full_attention(frames_lat)  # type: ignore[arg-type]
    for step in (0, 1, 17):
        assert technique.at_step(step, clip(frames_lat)).apply(plain, clip(frames_lat)) is plain


def test_a_grid_that_stays() -> None:
    technique, geometry = Lvsa(rotate=False, offset=4), clip(81)
    assert technique.at_step(9, geometry) is technique
    assert np.array_equal(mask(technique, geometry), mask(Lvsa(), geometry, step=4))
    assert np.array_equal(mask(Lvsa(offset=4), geometry, step=5), mask(Lvsa(), geometry, step=9))
    assert not np.array_equal(mask(technique, geometry), mask(Lvsa(rotate=False), geometry))


def test_the_steps_of_a_plan_are_those_of_the_schedule() -> None:
    """Equal tables share a program, and the grid of a step is where it is without `steps` and `layers`."""
    whole = plan_of(321)
    assert len(whole.programs) == 1 + 6
    assert (whole.table == 1 + np.arange(whole.steps) % 6).all()
    part = plan_of(321, steps=(0.3, 0.7), layers=(3, 4))
    acts = np.zeros_like(part.table, dtype=bool)
    acts[3:5, 15:35] = True
    assert (part.table[~acts] == 0).all()
    for step in range(15, 35):
        (mine,), (other,) = (plan.programs[plan.table[3, step]].branches.values() for plan in (part, whole))  # type: ignore[union-attr]
        assert mine.key == other.key


def test_a_plan_draws_one_of_many_tables_and_exports_all() -> None:
    text = describe.plan_text(plan_of(1001), "bf16", "none")
    assert "the first of 19 tables, which follow one another step by step (to main-19)" in text
    assert text.count("branch ") == 1
    assert len(text.splitlines()) < 50
    assert len(describe.plan_dict(plan_of(1001))["branches"]) == 19
    assert "main-19/0/visible" in plan_of(1001).arrays()
    still = describe.plan_text(plan_of(321, rotate=False), "bf16", "none")
    assert "tables" not in still


def test_steps_that_compute_as_many_pairs_are_measured_as_one_type() -> None:
    types = step_types(plan_of(321))
    assert [(step_type.name, step_type.count) for step_type in types] == [("main-1", 17), ("main-2", 33)]
    assert all(len(np.unique(step_type.plan.table)) == 1 for step_type in types)


@pytest.mark.parametrize("name", ["gen-l-video", "fifo"])
def test_clips_of_native_length_see_all_of_themselves(name: str) -> None:
    loaded = preset.load(name, (), Sample(frames=321))
    plan = planner.build(loaded.model_copy(update={"techniques": (*loaded.techniques, Lvsa())}), WAN)
    assert not plan.table.any()


def test_in_longer_clips_the_grid_is_that_of_the_step() -> None:
    loaded = preset.load("gen-l-video", ("gen-l-video.frames=41",), Sample(frames=641))
    plan = planner.build(loaded.model_copy(update={"techniques": (*loaded.techniques, Lvsa())}), WAN)
    assert (plan.table == 1 + np.arange(plan.steps) % 3).all()


def test_a_resumed_run_goes_on_where_the_grid_would_have_been(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    """The step is that of the schedule, not one counted from where a run goes on."""
    plan = tiny_plan("lvsa", ("lvsa.interval=9",), frames=93, steps=3)
    state = family.stopped_after(tiny, plan, 1)
    assert torch.equal(family.sampled(tiny, plan, resume=state), family.sampled(tiny, plan))
    still = tiny_plan("lvsa", ("lvsa.interval=9", "lvsa.rotate=false"), frames=93, steps=3)
    assert not torch.equal(family.sampled(tiny, still, resume=state), family.sampled(tiny, plan, resume=state))


def test_the_second_expert_counts_on(model_folder: Callable[[str], Path]) -> None:
    """Each expert's layers hold the programs of all steps of the schedule."""
    backbone = family.loaded(model_folder("wan-experts"))
    plan = family.made(backbone, "lvsa", 4 * backbone.spec.native_px, 5, ("lvsa.window=1", "lvsa.interval=3"))
    with backbone.installed(plan):
        held = [layer.processor.programs for transformer in backbone.transformers for layer in backbone.layers(transformer)]
    assert len(held) == 2 * backbone.spec.layers
    for programs in held:
        assert [plan.programs.index(program) for program in programs] == [1, 2, 3, 1, 2]
