"""Counts of operators on a device that is not there, and the times that are estimated from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from longgen import cards, cost, device_tables, planner, preset
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.registry import SPECS, family_of
from longgen.backbones.spec import BackboneSpec
from longgen.bench import fake_cuda as fakes
from longgen.bench import run, table
from longgen.bench.count import StepCount, as_dict, count_plan, run_seconds, total
from longgen.bench.operators import OperatorCounter
from longgen.bench.step_types import step_types
from longgen.cards import CARDS, DOUBLE, EIGEN, HALF, MATMUL, OTHER, Operator
from longgen.errors import LonggenError, UsageError
from longgen.pipelines import processors
from longgen.plan import Plan
from tests.bench.small import CAUSAL, SETUP, SHAPE, built, plan_of, planned
from tests.test_price import OTHERS, WAN, WITHIN

FLOAT32 = "float32"


def plan_at(name: str, spec: BackboneSpec, frames: int) -> Plan:
    return planner.build(preset.load(name, (), preset.Sample(frames=frames)), spec, conditions=planner.stand_in(spec))


def counter_of(work: Any) -> Counter[Operator]:
    """What `work` of a tensor [4, 6] on the fake device calls."""
    with fakes.fake_cuda() as mode, torch.no_grad(), OperatorCounter(fakes.DEVICE, mode) as counter:
        x = torch.empty(4, 6, device=fakes.DEVICE)
        counter.place = "here"
        work(x)
        counter.place = None
    return counter.by_place.get("here", Counter())


# Operators


@pytest.mark.parametrize(
    ("work", "launches", "copies", "waits"),
    [
        (lambda x: x.view(6, 4).transpose(0, 1)[1:], 0, 0, 0),
        (lambda x: x + 1, 1, 0, 0),
        (lambda x: torch.from_numpy(np.ones((4, 6))).to(x.device), 0, 1, 0),
        (lambda x: x[:, [1, 2]], 1, 1, 0),
        (lambda x: x.new_tensor([1.0, 2.0]), 0, 1, 0),
        (lambda x: x.cpu(), 0, 0, 1),
        (lambda x: (x > 0).cpu().nonzero().tolist()[23], 1, 0, 1),
        (lambda x: float(x[0, 0]), 1, 0, 1),
        (lambda x: x[x > 0], 2, 0, 1),
        (lambda x: x.index_put_((x[:, 0] > 0,), x), 2, 0, 1),
        (lambda x: x.masked_fill_(x > 0, 1.0), 2, 0, 0),
        (lambda x: (x > 0).nonzero(), 2, 0, 1),
        (lambda x: torch.bincount(x.flatten().long(), minlength=9), 2, 0, 1),
        (lambda x: torch.linalg.eigh(x[:, :4]), 1, 0, 1),
        (lambda x: torch.ones(3) + 1, 0, 0, 0),
        (lambda x: torch.nn.functional.scaled_dot_product_attention(*[x.view(1, 1, 4, 6)] * 3), 1, 0, 0),
    ],
)  # fmt: skip
def test_an_operator_is_a_launch_a_copy_or_a_wait(work: Any, launches: int, copies: int, waits: int) -> None:
    found = counter_of(work)
    assert tuple(total(found, field) for field in ("launches", "copies", "waits")) == (launches, copies, waits)


@pytest.mark.parametrize(
    ("work", "kind", "precision", "flops", "moved"),
    [
        (lambda x: x @ x.T, MATMUL, FLOAT32, 2 * 4 * 6 * 4, 4 * (24 + 24 + 16)),
        (lambda x: x + x, OTHER, FLOAT32, 24, 4 * 72),
        (lambda x: torch.add(x, x[:1].expand(4, 6)), OTHER, FLOAT32, 24, 4 * (24 + 6 + 24)),
        (lambda x: x.index_select(0, torch.zeros(2, dtype=torch.long, device=x.device)), OTHER, FLOAT32, 12, 4 * 24),
        (lambda x: torch.linalg.eigvalsh(x[:, :4].double()), EIGEN, DOUBLE, 640, None),
        (lambda x: x.bfloat16() * 2, OTHER, HALF, 24, 2 * 48),
    ],
)  # fmt: skip
def test_its_arithmetic_and_its_bytes_are_counted(work: Any, kind: str, precision: str, flops: int, moved: int | None) -> None:
    operator = [*counter_of(work)][-1]
    assert (operator.kind, operator.precision, operator.flops) == (kind, precision, flops)
    assert moved is None or operator.bytes == moved


def test_a_count_leaves_nothing_behind() -> None:
    registry, parts = fakes._guards(), (torch.cuda._lazy_init, torch.nn.functional.scaled_dot_product_attention)
    before = (registry[fakes._CUDA], *parts, processors.attention_with_lse, torch.Tensor.new_tensor)
    count_plan(plan_of("sliding-window"), "bf16")
    parts = (torch.cuda._lazy_init, torch.nn.functional.scaled_dot_product_attention)
    assert (registry[fakes._CUDA], *parts, processors.attention_with_lse, torch.Tensor.new_tensor) == before
    assert not torch._C._only_lift_cpu_tensors()
    assert not device_tables._tables
    assert _get_current_dispatch_mode() is None


# Layers and steps


def arithmetic(count: StepCount, layer: int = 0) -> float:
    """Operations of one layer in matrix products, attention, eigenproblems and transforms."""
    found = count.layers[layer].operators
    return sum(number * operator.flops for operator, number in found.items() if operator.kind != OTHER or "fft" in operator.name)


@pytest.mark.parametrize("name", ["direct", "sliding-window", "freelong", "ntk", "sink-window"])
def test_a_layer_s_arithmetic_is_that_of_the_plan(name: str) -> None:
    plan = plan_at(name, replace(WAN, layers=3), 129)
    for kind, count in zip(step_types(plan), count_plan(plan, "bf16"), strict=True):
        program = plan.programs[kind.plan.table[0, 0]]
        assert arithmetic(count) == pytest.approx(cost.flops(plan, program), rel=WITHIN)
        assert [layer.layers for layer in count.layers] == [3]


@pytest.mark.parametrize("family", [name for name in OTHERS if not name.endswith("i2v")])  # whose layers are the same
def test_every_family_s_layers_are_counted(family: str) -> None:
    spec = OTHERS[family]
    batch = 2 if family_of(spec).batches_guidance else 1
    within = 0.07 if spec.family == "hunyuan15" else 0.05  # it sorts text by its mask: on shapes alone, twice as many tokens
    for name in ("direct", "sliding-window"):
        plan = plan_at(name, spec, 2 * spec.native_px - 1)
        (count,) = count_plan(plan, "bf16")
        assert sum(layer.layers for layer in count.layers) == spec.layers
        for number in range(len(count.layers)):
            expected = batch * cost.flops(plan, plan.programs[plan.table[0, 0]])
            assert arithmetic(count, number) == pytest.approx(expected, rel=within)


def test_double_precision_and_eigenproblems_are_apart() -> None:
    plan = plan_at("freespec", WAN, 129)
    fused = as_dict(count_plan(plan, "bf16")[0].layer.operators)
    fusion = plan.programs[plan.table[0, 0]].fusion  # type: ignore[union-attr]
    assert fusion is not None
    assert fused["eigenproblems"] == 2
    assert fused["operations"][DOUBLE] == pytest.approx(fusion.double_flops(plan.call_grid, plan.spec.width), rel=0.15)


def test_the_depth_of_the_model_does_not_matter() -> None:
    shallow, deep = (count_plan(plan_at("freelong", replace(WAN, layers=layers), 129), "bf16") for layers in (2, 12))
    for one, other in zip(shallow, deep, strict=True):
        assert one.layer.operators == other.layer.operators
        assert one.rest == other.rest


def test_layers_with_other_programs_are_counted_apart() -> None:
    plan = planner.build(
        preset.load("sink-window", ("window.layers=[0, 2, 3]", "sink.layers=[0, 2, 3]"), preset.Sample(frames=129)),
        replace(WAN, layers=5),
    )
    (count,) = count_plan(plan, "bf16")
    assert sorted(layer.layers for layer in count.layers) == [2, 3]
    stock, windowed = sorted(count.layers, key=lambda layer: as_dict(layer.operators)["attention_calls"])
    assert (stock.layers, windowed.layers) == (2, 3)
    launches = [total(layer.operators, "launches") for layer in count.layers]
    assert total(count.layer.operators, "launches") == max(launches) > min(launches)


@pytest.mark.parametrize(
    ("name", "spec"),
    [("gen-l-video", SHAPE), ("glc-diffusion", SHAPE), ("fifo", SHAPE), ("self-forcing", CAUSAL), ("longlive", CAUSAL)],
)  # fmt: skip
def test_every_loop_s_steps_are_counted(name: str, spec: BackboneSpec) -> None:
    plan = plan_of(name, spec=spec, steps=None)
    counts = count_plan(plan, "bf16")
    assert [(count.name, count.in_a_run) for count in counts] == [(kind.name, kind.count) for kind in step_types(plan)]
    for count in counts:
        assert total(count.layer.operators, "launches") > 40
        assert total(count.rest, "launches") > 5
    assert run_seconds(counts, CARDS["h100"]) > 0


def test_the_last_chunk_of_a_rollout_sees_more_than_the_first() -> None:
    first, last, clean = count_plan(plan_of("direct", spec=CAUSAL, steps=None), "bf16")
    assert arithmetic(first) < arithmetic(last)
    assert (first.calls, last.calls, clean.calls) == (4, 4, 1)


# Seconds


def test_time_is_the_host_s_or_the_device_s() -> None:
    card = replace(CARDS["h100"], launch_s=1e-5)
    small, large = Operator("add", OTHER, HALF, 1, 2), Operator("mm", MATMUL, HALF, 989e12 * cards.MATMUL_SHARE, 1)
    assert cards.seconds([(small, 1000)], card) == pytest.approx(0.01)
    assert cards.seconds([(small, 1000), (large, 2)], card) == pytest.approx(2, rel=1e-3)
    moved = Operator("copy_", OTHER, HALF, 0, 3.35e12 * cards.BANDWIDTH_SHARE)
    assert cards.device_seconds(moved, card) == pytest.approx(1)
    waits = cards.seconds([(small._replace(waits=1), 10)], card) - cards.seconds([(small, 10)], card)
    assert waits == pytest.approx(10 * cards.WAIT_S)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "4090"), ("Tesla T4", None), ("NVIDIA H100 PCIe", None), ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("AMD Instinct MI300X", None),
    ],
)  # fmt: skip
def test_a_card_is_known_by_its_driver_s_name(driver: str, name: str | None) -> None:
    found = cards.card_of(driver)
    assert (found and found.name) == name


def test_an_unknown_card_is_refused() -> None:
    with pytest.raises(UsageError, match="h200"):
        cards.card_named("h20")


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("direct", "wan2.1-1.3b"), ("freespec", "wan2.1-1.3b"), ("gen-l-video", "ltx-2b"),
     ("direct", "cogvideox-5b"), ("direct", "hunyuanvideo")],
)  # fmt: skip
def test_what_plan_quotes_is_what_the_count_gives(name: str, backbone: str) -> None:
    """Without torch, so from arithmetic and bytes alone: within a fifth at the published size, where the host is not in the way."""
    spec = SPECS[backbone]
    plan = plan_at(name, spec, 4 * spec.native_px - 3)
    counts = count_plan(plan, "bf16")
    for card in CARDS.values():
        assert cost.seconds(plan, card, "bf16") == pytest.approx(run_seconds(counts, card), rel=0.2), card.name


def test_a_rollout_s_time_grows_with_its_length() -> None:
    short, long = (cost.seconds(plan_at("self-forcing", SELF_FORCING, frames), CARDS["h100"], "bf16") for frames in (81, 321))
    assert 4 < long / short < 16


# Checked against what is measured


def test_bench_says_by_how_much_the_estimate_was_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU whose rates are known; here the CPU is given one's."""
    monkeypatch.setattr(run, "card_of_run", lambda settings: CARDS["a100"])
    plans = planned("freelong", steps=4)
    result = run.bench(plans, lambda: built(), SETUP, 1, True)
    assert result.as_dict()["card"] == "a100"
    for row in result.rows:
        assert row.estimated_seconds is not None
        assert row.estimate_error == pytest.approx(row.estimated_seconds / row.run_seconds - 1)
        told = next(one for one in result.as_dict()["presets"] if one["preset"] == row.preset)
        assert told["estimate_error"] == pytest.approx(row.estimate_error, abs=1e-4)
    text = " ".join(table.text(result).split())
    assert "estimates, from the rates of an A100, were off by: stock -" in text
    assert "freelong -" in text


def test_without_a_known_card_nothing_is_estimated() -> None:
    assert run.card_of_run(SETUP) is None
    result = run.bench(planned(steps=4), lambda: built(), SETUP, 1, True)
    assert "card" not in result.as_dict()
    assert "estimate" not in table.text(result)


def test_an_estimate_that_cannot_be_made_stops_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(plan: Plan, dtype: str) -> None:
        raise LonggenError("operators of direct cannot be counted: of no account")

    monkeypatch.setattr(run, "card_of_run", lambda settings: CARDS["a100"])
    monkeypatch.setattr(run, "count_plan", fails)
    result = run.bench(planned(steps=4), lambda: built(), SETUP, 1, True)
    assert result.rows[0].complete
    assert "no estimate: operators of direct cannot be counted" in table.text(result)


def test_an_operator_that_needs_values_is_an_error_of_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    def values(x: torch.Tensor) -> None:
        raise RuntimeError("aten.unknown needs values")

    monkeypatch.setattr(processors.executor, "run", lambda *_: values(torch.ones(1)))
    with pytest.raises(LonggenError, match="operators of sliding-window cannot be counted: "):
        count_plan(plan_of("sliding-window"), "bf16")
