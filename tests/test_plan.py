"""What the plan decides, refuses and prices, worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from longgen import plan, preset
from longgen.backbones.spec import SPECS, TINY, BackboneSpec
from longgen.errors import UsageError
from longgen.frameplan import neutral
from longgen.plan import Plan

WAN = SPECS["wan2.1-1.3b"]
WINDOW = {"name": "window"}


def stacked(*tables: dict[str, object], **sample: object) -> Plan:
    made = preset.from_tables({"name": "stack", "sample": sample, "technique": list(tables)}, "stack")
    return plan.build(made, TINY)


def test_frames_are_rounded_up_and_it_is_said() -> None:
    made = stacked(WINDOW, frames=320)
    assert (made.frames_px, made.frames_lat, made.sample.frames) == (321, 81, 321)
    assert any("320 frames asked, 321 made" in note for note in made.notes)


def test_defaults_come_from_the_backbone() -> None:
    made = stacked()
    assert (made.frames_px, made.size, made.steps, made.sample.fps) == (81, (64, 64), TINY.steps, 16)
    assert not made.notes


def test_a_long_clip_without_techniques_is_warned_of() -> None:
    assert any("4.0 times" in note for note in stacked(frames=321).notes)


def test_attention_cost_is_the_mean_of_visible() -> None:
    made = stacked(WINDOW, frames=321)
    assert made.attention_cost == pytest.approx(21 / 81)
    half = stacked({"name": "window", "steps": [0, 0.5]}, frames=321, steps=20)
    assert half.attention_cost == pytest.approx((21 / 81 + 1) / 2)
    third = stacked({"name": "window", "layers": [0, 1]}, frames=321)
    assert third.attention_cost == pytest.approx((2 * 21 / 81 + 4) / 6)


def test_freespec_costs_both_branches_before_the_split() -> None:
    made = stacked({"name": "freespec"}, frames=321, steps=20)
    assert made.attention_cost == pytest.approx((1 + 21 / 81 + 21 / 81) / 2)
    assert made.table[:, :10].min() == made.table[:, :10].max() == 1
    assert made.table[:, 10:].min() == made.table[:, 10:].max() == 2


def test_operations_of_wan_at_321_frames_by_hand() -> None:
    made = plan.build(preset.load("direct", sample=preset.Sample(frames=321)), WAN)
    tokens, width = 81 * 1560, 1536
    assert made.tokens == tokens == 126_360
    attention = 4 * tokens**2 * width
    linear = tokens * (12 * width**2 + 4 * width * 8960) + 512 * 4 * width**2 + 4 * tokens * 512 * width
    assert made.operations(None) == attention + linear
    window = plan.build(preset.load("sliding-window", sample=preset.Sample(frames=321)), WAN)
    assert window.cost == pytest.approx((attention * 21 / 81 + linear) / (attention + linear))
    assert window.cost == pytest.approx(0.33, abs=0.01)  # what counting operations gives in the seeds' setting


@pytest.mark.parametrize("name", ["sliding-window", "freespec", "riflex"])
def test_at_native_length_nothing_acts_and_it_is_said(tiny_plan: Callable[..., Plan], name: str) -> None:
    made = tiny_plan(name)
    assert not made.table.any()
    assert made.cost == 1
    assert any("changes nothing at 81 frames" in note for note in made.notes)


def test_two_techniques_that_claim_the_same_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="freespec and window both decide the context window"):
        stacked(WINDOW, {"name": "freespec"}, frames=321)
    with pytest.raises(UsageError, match="riflex and riflex both decide the temporal rotary frequencies"):
        stacked({"name": "riflex"}, {"name": "riflex", "component": 2}, frames=321)


@pytest.mark.parametrize(("one", "other"), [({"layers": [0, 1]}, {"layers": [2, 3]}), ({"steps": [0, 0.5]}, {"steps": [0.5, 1]})])
def test_they_may_share_a_slot_in_different_layers_or_steps(one: dict[str, object], other: dict[str, object]) -> None:
    made = stacked(WINDOW | one, {"name": "freespec"} | other, frames=321)
    assert len({act.name for act in made.acting}) == 2


def test_riflex_stacks_with_window_and_with_freespec() -> None:
    for other in (WINDOW, {"name": "freespec"}):
        made = stacked({"name": "riflex"}, other, frames=321)
        for program in made.programs[1:]:
            assert program is not None
            for branch in program.branches.values():
                assert branch.scale is not None


@pytest.mark.parametrize(
    ("tables", "sample", "message"),
    [
        ([{"name": "window", "layers": [6]}], {}, "window.layers has 6, but tiny has 6 layers"),
        ([], {"frames": 4094}, "4094 frames are more than tiny can address"),
        ([], {"size": [72, 64]}, "width 72 does not fit tiny"),
        ([], {"size": [64, 8]}, "height 8 does not fit tiny"),
        ([{"name": "riflex", "component": 13}], {"frames": 321}, "12 temporal components"),
    ],
)
def test_refusals(tables: list[dict[str, object]], sample: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stacked(*tables, **sample)


def refusal(name: str, spec: BackboneSpec) -> str | None:
    """What of a preset `spec` cannot take, as the message should say it."""
    techniques = preset.load(name).techniques
    absent = [need for one in techniques for need in one.needs if need not in spec.capabilities]
    if absent:
        return rf"needs {absent[0]} \(.*\), which {spec.name} does not have"
    if any(isinstance(one.layers, str) and one.layers not in ("all", *spec.verdicts) for one in techniques):
        return f"nobody has probed which layers of {spec.name} are"
    if name == "riflex" and spec.intrinsic_component is None:
        return "riflex.component is not known for this backbone"
    return None


@pytest.mark.parametrize("name", preset.names())
@pytest.mark.parametrize("backbone", SPECS)
def test_every_preset_plans_on_every_backbone_or_says_why_not(name: str, backbone: str) -> None:
    spec = SPECS[backbone]
    chosen, reason = preset.load(name, sample=preset.Sample(frames=4 * spec.native_px)), refusal(name, spec)
    if reason:
        with pytest.raises(UsageError, match=reason):
            plan.build(chosen, spec)
        return
    made = plan.build(chosen, spec)
    assert made.table.shape == (SPECS[backbone].layers, made.steps)
    assert made.memory_bytes("bf16")["peak"] > 0
    for one in (p for branch, _, _ in made.branches().values() for p in branch.passes):
        assert one.visible[one.weight > 0].any(axis=1).all()
        assert np.isfinite(one.rel).all()


def test_a_negative_prompt_is_refused_where_guidance_is_an_input_of_the_model() -> None:
    with pytest.raises(UsageError, match="hunyuanvideo reads no negative prompt"):
        plan.build(preset.load("direct", sample=preset.Sample(negative_prompt="blurred")), SPECS["hunyuanvideo"])
    plan.build(preset.load("direct", sample=preset.Sample(negative_prompt="blurred")), SPECS["cogvideox-5b"])


def test_ltx_takes_no_single_step() -> None:
    """Its scheduler, as published, divides by zero at one step."""
    with pytest.raises(UsageError, match="1 step is too few for ltx-2b"):
        plan.build(preset.load("direct", sample=preset.Sample(steps=1)), SPECS["ltx-2b"])
    assert plan.build(preset.load("direct", sample=preset.Sample(steps=2)), SPECS["ltx-2b"]).steps == 2


def test_layers_follow_a_verdict_where_there_is_one() -> None:
    made = plan.build(preset.load("freeloc", sample=preset.Sample(frames=321)), WAN)
    by_name = {act.name: act.layers for act in made.acting}
    assert by_name["vrpr"] == (2, 3, 5, 8, 12, 17, 19, 20, 21, 26, 27, 28, 29)
    assert sorted(by_name["vrpr"] + by_name["tsa"]) == list(range(30))
    with pytest.raises(UsageError, match="nobody has probed which layers of wan2") as e:
        plan.build(preset.load("freeloc"), SPECS["wan2.1-14b"])
    assert e.value.given.startswith("vrpr.layers = 'position-sensitive'")
    assert "wan2.1-1.3b" in e.value.accepted
    assert "--set vrpr.layers=all" in e.value.do


def test_two_makers_of_noise_are_refused_and_one_can_be_silenced() -> None:
    with pytest.raises(UsageError, match="freepca and freenoise both make the initial noise"):
        stacked({"name": "freenoise", "layers": []}, {"name": "freepca"}, frames=321)
    made = stacked({"name": "freenoise", "layers": [], "noise": False}, {"name": "freepca"}, frames=321)
    assert made.noise is made.preset.techniques[1]


def test_a_stack_that_leaves_a_frame_nothing_to_see_is_refused() -> None:
    with pytest.raises(UsageError, match="some techniques leave frame 1 nothing to see"):
        plan._check_sight("some techniques", neutral(3).see_only(np.diag([True, False, True])))


@pytest.mark.parametrize("name", ["glc-noise", "vmcr", "gen-l-video", "fifo"])
def test_layers_are_refused_where_a_technique_knows_none(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}.layers is given"):
        stacked({"name": name, "layers": [0]}, frames=321)


def test_the_order_in_a_preset_does_not_matter() -> None:
    tables = [{"name": "sink"}, {"name": "flex"}, {"name": "vrpr"}, {"name": "window"}]
    one, other = stacked(*tables, frames=321), stacked(*reversed(tables), frames=321)
    assert [act.name for act in one.acting] == ["vrpr", "window", "sink", "flex"]
    keys = [{plan.key for plan, _, _ in made.branches().values()} for made in (one, other)]
    assert keys[0] == keys[1]


def test_flex_acts_by_the_distances_that_are_left() -> None:
    """Behind a window no frame sees further than in training, and flex is inert, which is said; a sink brings it back."""
    behind = stacked({"name": "flex"}, WINDOW, frames=321)
    assert any("flex changes nothing" in note for note in behind.notes)
    with_sink = stacked({"name": "flex"}, WINDOW, {"name": "sink"}, frames=321)
    (branch,) = (made for made, _, _ in with_sink.branches().values())
    assert branch.scale is not None
    assert branch.scale.min() == pytest.approx(20 / 80)


@pytest.mark.parametrize("name", sorted({*preset.names()} - {"fifo"}))  # whose steps are its own: tests/sampling/test_fifo.py
def test_every_preset_runs_two_steps_on_tiny(tiny: object, tiny_plan: Callable[..., Plan], name: str) -> None:
    import torch

    from longgen.sampling import direct

    layers = tuple(f"{one}.layers=all" for one in ("vrpr", "tsa")) if name == "freeloc" else ()
    made = tiny_plan(name, layers, frames=141, steps=2)
    noise = torch.randn(tiny.latent_shape(made), generator=torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    sample = made.sampling.sample if made.sampling else direct.sample
    final = sample(tiny, made, "a small red circle", noise, lambda state: None, None, torch.Generator())  # type: ignore[arg-type]
    assert torch.isfinite(final).all()


def test_exported_arrays(tiny_plan: Callable[..., Plan]) -> None:
    arrays = tiny_plan("freespec", frames=321, steps=20).arrays()
    for branch in ("global", "local"):
        assert arrays[f"{branch}/0/rel"].shape == arrays[f"{branch}/0/visible"].shape == (81, 81)
        assert (arrays[f"{branch}/0/weight"] == 1).all()
    assert arrays["global/0/visible"].all()
    assert (arrays["local/0/visible"].sum(1) == 21).all()
    assert arrays["global/steps"].tolist() == list(range(10))
    assert arrays["local/steps"].tolist() == list(range(20))
    assert arrays["local/layers"].tolist() == list(range(6))
    assert arrays["techniques/freespec/layers"].tolist() == list(range(6))
