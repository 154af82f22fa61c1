"""What the plan decides, refuses and prices, worked by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longgen import catalog, cost, planner, preset, stack
from longgen.attention.kvcache import chunk_view
from longgen.backbones.causal_wan import SELF_FORCING, TINY_CAUSAL
from longgen.backbones.registry import SPECS
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import TINY
from longgen.errors import UsageError
from longgen.frameplan import full_attention
from longgen.plan import Plan
from longgen.sampling.chain import Chain
from longgen.sampling.multidiffusion import MultiDiffusion
from tests.stacks import STACKS

WAN = SPECS["wan2.1-1.3b"]
WINDOW = {"name": "window"}


def stacked(*tables: dict[str, object], spec: BackboneSpec = TINY, **sample: object) -> Plan:
    made = preset.from_tables({"name": "stack", "sample": sample, "technique": list(tables)}, "stack")
    return planner.build(made, spec)


def test_frames_are_rounded_up_and_it_is_said() -> None:
    made = stacked(WINDOW, frames=320)
    assert (made.frames_px, made.frames_lat, made.sample.frames) == (321, 81, 321)
    assert any("rounded 320 frames up to 321" in note for note in made.notes)


def test_defaults_come_from_the_backbone() -> None:
    made = stacked()
    assert (made.frames_px, made.size, made.steps, made.sample.fps) == (81, (64, 64), TINY.steps, 16)
    assert not made.notes


def test_a_long_clip_without_techniques_is_warned_of() -> None:
    assert any("4.0 times" in note for note in stacked(frames=321).notes)


def test_attention_cost_is_the_mean_of_visible() -> None:
    made = stacked(WINDOW, frames=321)
    assert cost.attention_ratio(made) == pytest.approx(21 / 81)
    half = stacked({"name": "window", "steps": [0, 0.5]}, frames=321, steps=20)
    assert cost.attention_ratio(half) == pytest.approx((21 / 81 + 1) / 2)
    third = stacked({"name": "window", "layers": [0, 1]}, frames=321)
    assert cost.attention_ratio(third) == pytest.approx((2 * 21 / 81 + 4) / 6)


def test_freespec_costs_both_branches_before_the_split() -> None:
    made = stacked({"name": "freespec"}, frames=321, steps=20)
    assert cost.attention_ratio(made) == pytest.approx((1 + 21 / 81 + 21 / 81) / 2)
    assert made.table[:, :10].min() == made.table[:, :10].max() == 1
    assert made.table[:, 10:].min() == made.table[:, 10:].max() == 2


def test_operations_of_wan_at_321_frames_by_hand() -> None:
    made = planner.build(preset.load("direct", sample=preset.Sample(frames=321)), WAN)
    tokens, width = 81 * 1560, 1536
    assert made.tokens == tokens == 126_360
    attention = 4 * tokens**2 * width
    linear = tokens * (12 * width**2 + 4 * width * 8960) + 512 * 4 * width**2 + 4 * tokens * 512 * width
    assert cost.flops(made, None) == attention + linear
    window = planner.build(preset.load("sliding-window", sample=preset.Sample(frames=321)), WAN)
    assert cost.ratio(window) == pytest.approx((attention * 21 / 81 + linear) / (attention + linear))
    assert cost.ratio(window) == pytest.approx(0.33, abs=0.01)  # what counting operations gives in the seeds' setting


@pytest.mark.parametrize("name", ["sliding-window", "freespec", "riflex"])
def test_at_native_length_nothing_acts_and_it_is_said(tiny_plan: Callable[..., Plan], name: str) -> None:
    made = tiny_plan(name)
    assert not made.table.any()
    assert cost.ratio(made) == 1
    assert any("changes nothing at 81 frames" in note for note in made.notes)


def test_two_techniques_that_claim_the_same_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="freespec and window both decide the context window"):
        stacked(WINDOW, {"name": "freespec"}, frames=321)
    with pytest.raises(UsageError, match="riflex and riflex both decide the temporal rotary frequencies"):
        stacked({"name": "riflex"}, {"name": "riflex", "component": 2}, frames=321)


@pytest.mark.parametrize(("one", "other"), [({"layers": [0, 1]}, {"layers": [2, 3]}), ({"steps": [0, 0.5]}, {"steps": [0.5, 1]})])
def test_they_may_share_a_slot_in_different_layers_or_steps(one: dict[str, object], other: dict[str, object]) -> None:
    made = stacked(WINDOW | one, {"name": "freespec"} | other, frames=321)
    assert len({act.name for act in made.techniques}) == 2


def test_riflex_stacks_with_window_and_with_freespec() -> None:
    for other in (WINDOW, {"name": "freespec"}):
        made = stacked({"name": "riflex"}, other, frames=321)
        for program in made.programs[1:]:
            assert program is not None
            for branch in program.branches.values():
                assert branch.frequency_scale is not None


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
    absent = [need for one in techniques for need in one.requires if need not in spec.capabilities]
    if absent:
        return rf"needs {absent[0]} \(.*\), which {spec.name} does not have"
    if any(isinstance(one.layers, str) and one.layers not in ("all", *spec.verdicts) for one in techniques):
        return f"{spec.name} has not been probed at this length"
    if name in ("chain", "svi") and not spec.clean_lat:
        return f"a chain hands latent frames from clip to clip, and {spec.name} cannot begin with any"
    if name == "riflex" and spec.intrinsic_component is None:
        return "riflex.component is unknown for this backbone"
    if spec.sound is not None and any(isinstance(one, (MultiDiffusion, Chain)) for one in techniques):
        return f"{name} makes the video of {spec.name} clip by clip, and its sound is one piece"
    if name in ("deep-forcing", "infinity-rope", "krea") and spec.chunk_lat > 6:  # their windows: 7, 5 and 6
        return f"hide part of a chunk of {spec.chunk_lat} latent frames from itself"
    if name in ("memrope", "dummy-forcing") and spec.chunk_lat > 6:  # made for chunks of 3
        return "slots are fewer than a sink of 3" if name == "memrope" else "measures heads after 6 latent frames"
    return None


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("backbone", SPECS)
def test_every_preset_plans_on_every_backbone_or_says_why_not(name: str, backbone: str) -> None:
    spec = SPECS[backbone]
    chosen, reason = preset.load(name, sample=preset.Sample(frames=4 * spec.native_px)), refusal(name, spec)
    if reason:
        with pytest.raises(UsageError, match=reason):
            planner.build(chosen, spec, conditions=planner.stand_in(spec))
        return
    made = planner.build(chosen, spec, conditions=planner.stand_in(spec))
    assert made.table.shape == (SPECS[backbone].layers, made.steps)
    assert cost.memory_bytes(made, "bf16")["peak"] > 0
    for one in (p for branch, _, _ in made.branches().values() for p in branch.passes):
        assert one.visible[one.weight > 0].any(axis=1).all()
        assert np.isfinite(one.rel).all()


def test_a_negative_prompt_is_refused_where_guidance_is_an_input_of_the_model() -> None:
    with pytest.raises(UsageError, match="hunyuanvideo reads no negative prompt"):
        planner.build(preset.load("direct", sample=preset.Sample(negative_prompt="blurred")), SPECS["hunyuanvideo"])
    planner.build(preset.load("direct", sample=preset.Sample(negative_prompt="blurred")), SPECS["cogvideox-5b"])


def test_ltx_takes_no_single_step() -> None:
    """Its scheduler, as published, divides by zero at one step."""
    with pytest.raises(UsageError, match="1 step is too few for ltx-2b"):
        planner.build(preset.load("direct", sample=preset.Sample(steps=1)), SPECS["ltx-2b"])
    assert planner.build(preset.load("direct", sample=preset.Sample(steps=2)), SPECS["ltx-2b"]).steps == 2


def test_layers_follow_a_verdict_where_there_is_one() -> None:
    made = planner.build(preset.load("freeloc", sample=preset.Sample(frames=321)), WAN)
    by_name = {act.name: act.layers for act in made.techniques}
    assert by_name["vrpr"] == (2, 3, 5, 8, 12, 17, 19, 20, 21, 26, 27, 28, 29)
    assert sorted(by_name["vrpr"] + by_name["tsa"]) == list(range(30))
    with pytest.raises(UsageError, match=r"wan2\.1-14b has not been probed at this length") as e:
        planner.build(preset.load("freeloc"), SPECS["wan2.1-14b"])
    assert "position-sensitive layers are unknown (vrpr.layers)" in e.value.given
    assert "a probe of it" in e.value.expected
    assert "longgen probe --backbone wan2.1-14b" in e.value.hint
    assert "--layers all" in e.value.hint


def test_two_makers_of_noise_are_refused_and_one_can_be_silenced() -> None:
    with pytest.raises(UsageError, match="freepca and freenoise both make the initial noise"):
        stacked({"name": "freenoise", "layers": []}, {"name": "freepca"}, frames=321)
    made = stacked({"name": "freenoise", "layers": [], "noise": False}, {"name": "freepca"}, frames=321)
    assert made.noise is made.preset.techniques[1]


def test_a_stack_that_leaves_a_frame_nothing_to_see_is_refused() -> None:
    with pytest.raises(UsageError, match="some techniques leave frame 1 with no frame to attend to"):
        stack.check_visibility("some techniques", full_attention(3).see_only(np.diag([True, False, True])))


@pytest.mark.parametrize("name", ["glc-noise", "vmcr", "gen-l-video", "fifo"])
def test_layers_are_refused_where_a_technique_knows_none(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}.layers cannot be set"):
        stacked({"name": name, "layers": [0]}, frames=321)


def test_the_order_in_a_preset_does_not_matter() -> None:
    tables = [{"name": "sink"}, {"name": "flex"}, {"name": "vrpr"}, {"name": "window"}]
    one, other = stacked(*tables, frames=321), stacked(*reversed(tables), frames=321)
    assert [act.name for act in one.techniques] == ["vrpr", "window", "sink", "flex"]
    keys = [{plan.key for plan, _, _ in made.branches().values()} for made in (one, other)]
    assert keys[0] == keys[1]


def test_flex_acts_by_the_distances_that_are_left() -> None:
    """Behind a window no frame sees further than in training, and flex is inert, which is said; a sink brings it back."""
    behind = stacked({"name": "flex"}, WINDOW, frames=321)
    assert any("flex changes nothing" in note for note in behind.notes)
    with_sink = stacked({"name": "flex"}, WINDOW, {"name": "sink"}, frames=321)
    (branch,) = (made for made, _, _ in with_sink.branches().values())
    assert branch.frequency_scale is not None
    assert branch.frequency_scale.min() == pytest.approx(20 / 80)


TAKEN = [name for name in STACKS if name != "fifo"  # whose steps are its own: tests/sampling/test_fifo.py
         and not (refusal(name, TINY) or "").startswith("needs")]  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_every_preset_runs_two_steps_on_tiny(tiny: object, tiny_plan: Callable[..., Plan], name: str) -> None:
    import torch

    from longgen.loops import sample
    from longgen.loops.denoiser import Denoiser

    layers = tuple(f"{one}.layers=all" for one in ("vrpr", "tsa")) if name == "freeloc" else ()
    made = tiny_plan(name, layers, frames=141, steps=2)
    noise = torch.randn(tiny.latent_shape(made), generator=torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    final = sample(Denoiser(tiny, made, "a small red circle"), noise, torch.Generator())  # type: ignore[arg-type]
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


# Rollouts

CAUSAL = [spec for spec in SPECS.values() if spec.causal]
ROLLED = [name for name in STACKS if any(catalog.name_of(one) == "rollout" for one in preset.load(name).techniques)]
IN_ROLLOUTS = {  # by what they say they require
    name for name in catalog.TECHNIQUES if {*catalog.technique(name).requires} <= {*SELF_FORCING.capabilities}
}


def test_rollouts_take_their_own_techniques() -> None:
    assert {"ans", "window", "sink", "rebase", "flex", "riflex", "ntk", "yarn", "rollout"} <= IN_ROLLOUTS


@pytest.mark.parametrize("name", catalog.TECHNIQUES)
def test_a_technique_works_in_a_rollout_or_is_refused_in_the_user_s_words(name: str) -> None:
    if name in IN_ROLLOUTS:
        assert name in [act.name for act in stacked({"name": name}, spec=SELF_FORCING, frames=321).techniques]
        return
    with pytest.raises(UsageError) as caught:
        stacked({"name": name}, spec=SELF_FORCING, frames=321)
    requires = {need for need in catalog.technique(name).requires if need not in SELF_FORCING.capabilities}
    assert "whole-clip" in requires
    assert any(caught.value.given.startswith(f"{name} needs {need} (") for need in requires)
    assert "which self-forcing does not have" in caught.value.given
    assert "wan2.1-1.3b" in caught.value.expected
    assert caught.value.hint == "choose one of them, or a preset without it"


@pytest.mark.parametrize("backbone", [name for name, spec in SPECS.items() if not spec.causal])
def test_a_rollout_is_refused_where_frames_see_each_other_both_ways(backbone: str) -> None:
    assert set(ROLLED) == FRAMES_SEEN.keys()
    for name in ROLLED:
        with pytest.raises(UsageError, match=f"rollout needs kv-cache .*, which {backbone} does not have") as caught:
            planner.build(preset.load(name), SPECS[backbone], conditions=planner.stand_in(SPECS[backbone]))
        assert caught.value.expected == "backbones that have it: " + ", ".join(spec.name for spec in CAUSAL)


@pytest.mark.parametrize("spec", CAUSAL, ids=lambda spec: spec.name)
def test_a_rollout_and_a_native_window_are_implied_without_a_word(spec: BackboneSpec) -> None:
    for frames in (spec.native_px, 321):
        made = stacked(spec=spec, frames=frames)
        assert [act.name for act in made.techniques] == ["window", "rollout"]
        assert made.preset.techniques == ()
        assert made.notes == ()
        assert made.chunk_lat == spec.chunk_lat
    assert made.slots_lat == spec.native_lat
    shorter = stacked({"name": "window", "frames": 9}, spec=spec, frames=321)
    assert [act.name for act in shorter.techniques] == ["window", "rollout"]
    assert shorter.slots_lat == 9


def test_what_a_person_gave_is_noted_where_it_does_nothing() -> None:
    made = stacked({"name": "window", "frames": 21}, {"name": "flex"}, {"name": "rebase"}, spec=SELF_FORCING, frames=81)
    for name in ("window", "flex", "rebase"):
        assert any(note.startswith(f"{name} changes nothing at 81 frames") for note in made.notes)
    still = stacked({"name": "window", "frames": 21}, spec=SELF_FORCING, frames=1)
    assert any(note.startswith("window changes nothing at 1 frame of") for note in still.notes)


def test_flex_behind_rebase_is_noted_as_inert() -> None:
    """Re-based, 21 frames are 20 apart at most, and that is within training; without rebase it acts."""
    tables: list[dict[str, object]] = [{"name": "window", "frames": 18}, {"name": "sink"}, {"name": "flex"}]
    behind = stacked(*tables, {"name": "rebase"}, spec=SELF_FORCING, frames=321)
    assert behind.notes == ("flex changes nothing at 321 frames of self-forcing: it is the identity there",)
    assert stacked(*tables, spec=SELF_FORCING, frames=321).notes == ()
    wide = stacked({"name": "window", "frames": 30}, *tables[1:], {"name": "rebase"}, spec=SELF_FORCING, frames=321)
    assert wide.notes == ()
    (branch,) = (made for made, _, _ in wide.branches().values())
    assert branch.frequency_scale is not None
    assert branch.frequency_scale[21] == pytest.approx(20 / 32)


def test_the_notes_of_a_rollout_stand_in_its_run_json(causal: Any, tmp_path: Path) -> None:
    from longgen.run import Job, generate_one

    made = stacked({"name": "sink"}, {"name": "flex"}, {"name": "rebase"}, spec=causal.spec, frames=13, steps=1)
    assert any(note.startswith("flex changes nothing at 13 frames of tiny-causal") for note in made.notes)
    generate_one(causal, Job(made, "a small red circle", 0, tmp_path / "short.mp4"))
    assert json.loads((tmp_path / "short.run" / "run.json").read_text())["notes"] == list(made.notes)


@pytest.mark.parametrize(("chunk", "window"), [(3, 2), (3, 1), (4, 3)])
@pytest.mark.parametrize(
    "others", [[], [{"name": "sink"}], [{"name": "sink"}, {"name": "rebase"}]], ids=["alone", "sink", "rebase"]
)
def test_a_window_shorter_than_a_chunk_is_refused(chunk: int, window: int, others: list[dict[str, object]]) -> None:
    tables = [{"name": "window", "frames": window}, {"name": "rollout", "chunk": chunk}, *others]
    with pytest.raises(UsageError, match=f"window.* hide part of a chunk of {chunk} latent frames from itself") as caught:
        stacked(*tables, spec=SELF_FORCING, frames=321)
    assert caught.value.expected == f"a window of at least {chunk}"
    assert caught.value.hint == f"--set window.frames={chunk} or more"
    stacked({"name": "window", "frames": chunk}, {"name": "rollout", "chunk": chunk}, *others, spec=SELF_FORCING, frames=321)


@pytest.mark.parametrize("pair", list(itertools.combinations(sorted(IN_ROLLOUTS), 2)), ids=" + ".join)
def test_every_pair_in_a_rollout_is_of_the_form_that_a_cache_serves(pair: tuple[str, str]) -> None:
    """Or it is refused when it is planned; never in the middle of a video."""
    both = [catalog.technique(name) for name in pair]
    if set(both[0].exclusive) & set(both[1].exclusive):
        with pytest.raises(UsageError, match=f"{pair[0]} and {pair[1]} both decide|{pair[1]} and {pair[0]} both decide"):
            stacked(*({"name": name} for name in pair), spec=TINY_CAUSAL, frames=321)
        return
    made = stacked(*({"name": name} for name in pair), spec=TINY_CAUSAL, frames=321)
    for frames_lat, queries in ((3, 3), (24, 3), (27, 3), (81, 3), (21, 21), (81, 18)):  # chunks, and what a switch runs again
        programs, table = made.programs_for_chunk(frames_lat, queries)
        for index in np.unique(table).tolist():
            program = programs[index]
            assert program is None or program.fusion is None
            if program is not None:
                assert len(program.branches) == 1 or program.heads is not None
                for frame_plan in program.branches.values():
                    chunk_view(frame_plan, list(range(frames_lat)))


def test_what_is_held_is_all_that_is_seen() -> None:
    made = stacked({"name": "window", "frames": 6}, {"name": "sink"}, {"name": "rebase"}, spec=TINY_CAUSAL, frames=321)
    (whole,), (held,) = (
        programs[1:] for programs, _ in (made.programs_for_chunk(30, 3), made.programs_for_chunk(30, 3, [0, 1, 2, 26]))
    )
    assert whole is not None
    assert held is not None
    for program, past in ((whole, [0, 1, 2, 24, 25, 26]), (held, [0, 1, 2, 26])):
        one = program.branches["main"].passes[0]
        frames = [*past, 27, 28, 29]
        assert [np.flatnonzero(row).tolist() for row in one.visible] == [frames] * 3
        assert np.array_equal(one.rel[-1, frames], np.arange(len(frames))[::-1])


def rollout_by_hand(spec: BackboneSpec, frames_lat: int, window: int, sink: int, steps: int) -> tuple[float, float]:
    """Operations and frame pairs of a layer: a pass for each step, and one for the cache but after the last chunk."""
    tokens, width, text = int(np.prod(spec.frame_grid(spec.size))), spec.width, spec.text_tokens
    linear = 3 * tokens * (12 * width**2 + 4 * width * spec.ffn_dim) + 4 * 3 * tokens * text * width
    operations = pairs = 0.0
    for end in range(3, frames_lat + 3, 3):
        seen = len({*range(min(sink, end)), *range(max(0, end - window), end)})
        passes = steps + (end < frames_lat)
        operations += passes * (linear + 4 * 3 * tokens * seen * tokens * width)
        pairs += passes * 3 * seen
    return operations, pairs


@pytest.mark.parametrize("spec", CAUSAL, ids=lambda spec: spec.name)
@pytest.mark.parametrize(("window", "sink"), [(21, 0), (9, 3), (1000, 0)])
@pytest.mark.parametrize(("frames_px", "steps", "within"), [(81, 4, 1e-4), (385, 4, 1e-4), (385, 2, 1e-4), (2401, 4, 0.01)])
def test_the_cost_of_a_rollout_by_hand(
    spec: BackboneSpec, window: int, sink: int, frames_px: int, steps: int, within: float
) -> None:
    """Against direct sampling of all frames at once; of more than 33 chunks some are counted and the rest drawn between them."""
    tables: list[dict[str, object]] = [{"name": "window", "frames": window}, *([{"name": "sink", "frames": sink}] if sink else [])]
    tables.append({"name": "rollout", "chunk": 3, "first_steps": steps})
    made = stacked(*tables, spec=spec, frames=frames_px, steps=steps)
    frames_lat, tokens, width, text = made.frames_lat, made.tokens, spec.width, spec.text_tokens
    operations, pairs = rollout_by_hand(spec, frames_lat, window, sink, steps)
    direct = tokens * (12 * width**2 + 4 * width * spec.ffn_dim) + 4 * text * width**2 + 4 * tokens * (text + tokens) * width
    print(f"{spec.name} {frames_px}: {cost.ratio(made):.4f}, {cost.attention_ratio(made):.4f}")
    assert cost.ratio(made) == pytest.approx(operations / (steps * direct), rel=within)
    assert cost.attention_ratio(made) == pytest.approx(pairs / (steps * frames_lat**2), rel=within)


def test_memory_of_a_rollout_does_not_grow_with_its_length() -> None:
    by_hand = (3 * 21 * 1560 + 2 * 512) * 1536 * 30 * 2  # keys twice and values, of 21 frames, and the text's; in bfloat16
    for frames in (321, 16797):
        made = planner.build(preset.load("flex", sample=preset.Sample(frames=frames)), SELF_FORCING)
        assert cost.cache_bytes(made, "bf16") == by_hand
        assert cost.cache_bytes(made, "fp32") == 2 * by_hand
        guided = planner.build(preset.load("flex", sample=preset.Sample(frames=frames, guidance_scale=3.0)), SELF_FORCING)
        assert cost.cache_bytes(guided, "bf16") == 2 * by_hand  # of both texts
        memory = cost.memory_bytes(made, "bf16")
        assert memory["peak"] == sum(memory[part] for part in ("weights", "companions", "activations"))
        plain = planner.build(preset.load("direct", sample=preset.Sample(frames=9)), WAN)  # a chunk's activations, and no cache
        assert memory["activations"] == cost.memory_bytes(plain, "bf16")["activations"] + by_hand
    assert cost.cache_bytes(planner.build(preset.load("direct"), WAN), "bf16") == 0


@pytest.mark.parametrize("name", ROLLED)
@pytest.mark.parametrize("backbone", [spec.name for spec in CAUSAL])
def test_the_command_line_plans_every_rollout(name: str, backbone: str) -> None:
    from typer.testing import CliRunner

    from longgen.cli import app

    done = CliRunner().invoke(app, ["plan", "--backbone", backbone, "--preset", name, "--frames", "501"])
    if reason := refusal(name, SPECS[backbone]):
        assert done.exit_code == 2
        assert reason in " ".join(done.output.split())
        return
    assert done.exit_code == 0, done.output
    assert f"{name} on {backbone}" in done.output
    chunk = SPECS[backbone].chunk_lat
    assert f"{-(-126 // chunk)} chunks of {chunk} latent frame" in done.output


FRAMES_SEEN = {  # M in all, as the papers and their code say it, and the largest relative time at 126 latent frames
    "self-forcing": (21, 20), "flex": (21, 125), "longlive": (12, 125), "flex-longlive": (12, 125), "deep-forcing": (21, 23),
    "deep-forcing-pc": (21, 15),
    "infinity-rope": (6, 5), "dummy-forcing": (7, 125), "rolling-sink": (21, 20), "memrope": (12, 11), "krea": (6, 5),
    "longlive-2": (32, 125),
}  # fmt: skip


@pytest.mark.parametrize("name", ROLLED)
def test_the_presets_see_as_many_frames_as_their_papers_say(name: str) -> None:
    made = planner.build(preset.load(name, sample=preset.Sample(frames=501)), SELF_FORCING)
    branches = [one for one, _, _ in made.branches().values()]
    assert (made.columns_lat or made.slots_lat, max(branch.reach for branch in branches)) == FRAMES_SEEN[name]
    assert bool(made.notes) == (len(branches) > 1) == (name == "dummy-forcing")


@pytest.mark.parametrize("name", [name for name in STACKS if not (refusal(name, TINY_CAUSAL) or "").startswith("needs")])
def test_every_preset_runs_on_a_causal_backbone(causal: Any, name: str) -> None:
    import torch

    from longgen.loops import sample
    from longgen.loops.denoiser import Denoiser

    made = planner.build(preset.load(name, sample=preset.Sample(frames=93, steps=2)), causal.spec)
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(causal, made, "a small red circle")
    final = sample(denoiser, denoiser.initial_noise(generator), generator)
    assert final.shape == (1, 48, 24, 4, 6)
    assert torch.isfinite(final).all()
