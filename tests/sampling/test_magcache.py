"""MagCache: ratios measured once and kept, steps that are skipped by them, and what cannot be.

Legend: R_k what the blocks add to their input in step k, r_k the mean over tokens of |R_k| / |R_(k-1)|.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longgen import progress, run, rundir
from longgen.backbones.find import find
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY
from longgen.errors import LonggenError, UsageError
from longgen.loops import magcache, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.loading import load
from longgen.plan import Plan
from tests.backbones import family
from tests.models import small

STEPS = 8


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "longgen" / "magcache"


@pytest.fixture
def cached(model_folder: Callable[[str], Path]) -> Callable[..., Any]:
    """cached("wan", "mag:0.1"): a fresh small model."""
    return lambda name, cache=None: load(find(str(model_folder(name))), ModelSettings("cpu", "fp32", cache=cache))


def windowed(backbone: Any, steps: int = STEPS) -> Plan:
    return family.made(backbone, "sliding-window", 33, steps, ("window.frames=3",))


def sampled(backbone: Any, plan: Plan) -> tuple[Tensor, list[int], list[int]]:
    """The latents of `plan` with skipping, the calls of the last block of each transformer, and how often ratios were measured."""
    calls: Counter[int] = Counter()
    measured: list[int] = []
    hooks = contextlib.ExitStack()

    def begin() -> Callable[[int], None]:
        measured.append(0)
        return lambda done: measured.__setitem__(-1, done)

    with magcache.skipping(backbone, plan, begin), hooks:
        for index, transformer in enumerate(backbone.transformers):
            layer = backbone.layers(transformer)[-1]
            hooks.callback(layer.register_forward_hook(lambda *_, index=index: calls.update([index])).remove)
        return family.sampled(backbone, plan), [calls[index] for index in range(len(backbone.transformers))], measured


@pytest.mark.parametrize("name", ["wan-experts", *small.taking("mag")])
def test_it_skips_by_its_threshold_and_leaves_no_trace(
    cached: Callable[..., Any], home: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, never, often = cached(name), cached(name, "mag:0.000001"), cached(name, "mag:0.9")
    plan = windowed(plain)
    branches = small.calls_per_step(name)
    expected = family.sampled(plain, plan)
    latents, calls, measured = sampled(never, plan)
    assert (sum(calls), measured) == (STEPS * branches, [STEPS])
    assert torch.equal(latents, expected)
    latents, calls, measured = sampled(often, plan)
    print(f"{name}: {calls} calls of the last block, changed by {(latents - expected).abs().max():.1e}")
    assert branches <= sum(calls) < STEPS * branches
    assert all(count % branches == 0 for count in calls)  # guidance's two calls skip together
    assert measured == []  # kept from the first
    assert not torch.equal(latents, expected)
    assert torch.equal(latents, sampled(often, plan)[0])
    assert torch.equal(family.sampled(often, plan), expected)  # outside the context
    assert len([*home.rglob("*.json")]) == 1
    assert capsys.readouterr().out.count("MagCache") == 0  # diffusers would print what it measured


def test_the_ratios_are_those_of_what_the_blocks_add(tiny: Any) -> None:
    plan = windowed(tiny)
    added: list[Tensor] = []
    inputs: list[Tensor] = []
    blocks = tiny.pipe.transformer.blocks
    with contextlib.ExitStack() as hooks:
        hooks.callback(blocks[0].register_forward_pre_hook(lambda _, given: inputs.append(given[0])).remove)
        hooks.callback(blocks[-1].register_forward_hook(lambda _, __, output: added.append(output - inputs[-1])).remove)
        (found,) = magcache.measure(tiny, plan, progress.no_report)
    assert [*found] == ["cond", "uncond"]
    for place, ratios in enumerate(found.values()):
        norms = [x.norm(dim=-1) for x in added[place::2]]
        expected = [1.0, *((now / before).mean().item() for before, now in itertools.pairwise(norms))]
        assert len(ratios) == STEPS
        assert ratios == pytest.approx(expected, rel=1e-4)


def test_each_expert_has_the_ratios_of_its_own_steps(cached: Callable[..., Any]) -> None:
    backbone = cached("wan-experts")
    first, second = magcache.measure(backbone, windowed(backbone), progress.no_report)
    lengths = {len(ratios) for ratios in first.values()}, {len(ratios) for ratios in second.values()}
    assert all(len(part) == 1 for part in lengths)
    assert sum(part.pop() for part in lengths) == STEPS


def test_they_are_measured_anew_for_another_plan_only(cached: Callable[..., Any], home: Path) -> None:
    backbone = cached("wan", "mag")
    assert sampled(backbone, windowed(backbone))[2] == [STEPS]
    assert sampled(cached("wan", "mag:0.2"), windowed(backbone))[2] == []
    assert sampled(backbone, windowed(backbone, 4))[2] == [4]
    assert sampled(backbone, family.made(backbone, "direct", 33, 4))[2] == [4]
    assert len([*home.rglob("*.json")]) == 3


@pytest.mark.parametrize(
    "change", [{"more": 1}, {"ratios": [{"cond": ["much"]}]}, {"ratios": [{"cond": [-1.0]}]}, {"schema": 2}, None]
)
def test_a_file_that_is_damaged_is_named(cached: Callable[..., Any], home: Path, change: dict[str, Any] | None) -> None:
    backbone = cached("wan", "mag")
    sampled(backbone, windowed(backbone, 2))
    (path,) = home.rglob("*.json")
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LonggenError, match="holds no ratios of MagCache") as caught:
        sampled(backbone, windowed(backbone, 2))
    assert str(path) in caught.value.given


def test_the_farthest_ratio_of_each_step_serves() -> None:
    assert magcache._farthest({"cond": [1.0, 0.9, 1.02], "uncond": [1.0, 0.95, 1.1]}) == [1.0, 0.9, 1.1]
    assert magcache._farthest({}) == []


@pytest.mark.parametrize("cache", [None, "first-block:0.5"])
def test_nothing_is_measured_for_others(cached: Callable[..., Any], home: Path, cache: str | None) -> None:
    backbone = cached("wan", cache)
    assert sampled(backbone, windowed(backbone, 2))[2] == []
    assert not home.exists()


def test_clips_that_move_are_refused_and_those_that_stand_skip(tiny_plan: Callable[..., Plan]) -> None:
    backbone = load(TINY, ModelSettings("cpu", "fp32", cache="mag:0.9"))
    with pytest.raises(UsageError, match="the clips of glc-diffusion move from step to step"):
        sampled(backbone, tiny_plan("glc-diffusion", frames=161, steps=4))
    plan = tiny_plan("gen-l-video", frames=121, steps=5)
    assert plan.sampling is not None
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    noise = backbone.noise(plan, torch.Generator().manual_seed(0))
    with magcache.skipping(backbone, plan, lambda: progress.no_report):
        hook = backbone.layers(backbone.transformers[0])[-1].register_forward_hook(count)
        skipped = sample(Denoiser(backbone, plan, "x"), noise, torch.Generator())
        hook.remove()
    computed = sample(Denoiser(backbone, plan, "x"), noise, torch.Generator())
    pieces = round(plan.sampling.calls(plan.frames_lat, TINY.native_lat))
    print(f"{calls} of {2 * 5 * pieces} calls of the last block")
    assert 0 < calls < 2 * 5 * pieces
    assert calls % (2 * pieces) == 0
    assert not torch.equal(skipped, computed)


def test_a_run_measures_first_and_says_so(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """A run of the same settings comes out the same, whether it measured or not; in the middle it cannot go on."""
    model_settings, plan = ModelSettings("cpu", "fp32", cache="mag:0.5"), tiny_plan("freespec", frames=33, steps=6)
    backbone, seen, latents = load(TINY, model_settings), [], []
    for name in ("one", "two"):
        output = tmp_path / f"{name}.mp4"
        run.generate_one(backbone, run.Job(plan, family.PROMPT, 0, output), report=lambda now: seen.append(now.phase))
        latents.append((rundir.run_folder(output) / "latents.safetensors").read_bytes())
    assert [*dict.fromkeys(seen)] == ["calibrate", "sample", "decode", "write"]
    assert seen.count("calibrate") == 7
    assert latents[0] == latents[1]
    assert rundir.stored_record(tmp_path / "one.mp4")["settings"]["cache"] == "mag:0.5"


def test_every_clip_of_a_chain_skips_by_the_ratios_of_one(cached: Callable[..., Any], home: Path) -> None:
    plain, never, often = cached("wan-ti2v"), cached("wan-ti2v", "mag:0.000001"), cached("wan-ti2v", "mag:0.9")
    chain, longer = (family.made(plain, "chain", frames, STEPS, ("chain.frames=3", "chain.overlap=1")) for frames in (17, 25))
    assert (len(chain.clips), len(longer.clips)) == (2, 3)
    expected = family.sampled(plain, chain)
    latents, calls, measured = sampled(never, chain)
    assert (calls, measured) == ([2 * STEPS * 2], [STEPS])
    assert torch.equal(latents, expected)
    _, calls, measured = sampled(often, longer)  # ratios are a clip's, whatever the length
    assert measured == []
    assert calls[0] < 3 * STEPS * 2
    assert len([*home.rglob("*.json")]) == 1
