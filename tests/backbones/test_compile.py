"""--compile: the blocks' own code is compiled, in a few graphs for every layer, step and program; attention runs beside them.

Graphs are counted with the backend `eager`, which traces all that inductor would see and generates no code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from longgen import planner, preset, progress, run_settings, rundir
from longgen.backbones.find import find
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY
from longgen.errors import UsageError
from longgen.loops import magcache, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import checks
from longgen.pipelines.loading import load
from longgen.plan import Plan
from tests.backbones import family
from tests.models import small

MOST = 8  # graphs, whatever the plan: of stock layers, of planned ones before and behind attention, of two kinds of blocks

INDUCTOR = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"  # of itself, when it is imported


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No code is generated."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.fixture
def loaded(model_folder: Callable[[str], Path]) -> Callable[..., Any]:
    return lambda name, **flags: load(find(str(model_folder(name))), ModelSettings("cpu", "fp32", **flags))


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def sampled(backbone: Any, plan: Plan) -> Tensor:
    generator = torch.Generator().manual_seed(family.SEED)
    denoiser = Denoiser(backbone, plan, family.PROMPT, backbone.given(plan, generator))
    noise = denoiser.initial_noise(generator)
    with magcache.skipping(backbone, plan, lambda: progress.no_report):
        return sample(denoiser, noise, generator)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", [*(name for name in small.KINDS if name != "ltx2"), "wan-i2v"])
def test_every_family_is_compiled_in_a_few_graphs(loaded: Callable[..., Any], name: str) -> None:
    """A plan that differs by layer and step. (LTX-2: 14 graphs, of two kinds of calls; it takes as long as three others.)"""
    plain = loaded(name)
    plan = family.made(plain, "sliding-window", 33, 4, ("window.frames=3", "window.layers=[0]", "window.steps=[0.0, 0.5]"))
    backbone = loaded(name, compile=True)
    error = (sampled(backbone, plan) - sampled(plain, plan)).abs().max().item()
    print(f"{name}: {graphs()} graphs, max difference {error:.1e}")
    assert 0 < graphs() <= MOST
    assert error < 1e-5
    before = graphs()
    sampled(backbone, plan)
    sampled(backbone, family.made(plain, "freelong", 33, 4, ("freelong.window=3", "freelong.layers=[0]")))
    assert graphs() == before


@pytest.mark.usefixtures("traced")
def test_graphs_do_not_grow_with_presets(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    backbone = load(TINY, ModelSettings("cpu", "fp32", compile=True))
    counted = []
    for name in ("direct", "sliding-window", "freelongpp", "keyframes", "gen-l-video"):
        made = tiny_plan(name, frames=97, steps=2)
        assert (sampled(backbone, made) - sampled(tiny, made)).abs().max() < 1e-4, name
        counted.append(graphs())
    print(counted)
    assert counted[1] == counted[-2] <= MOST
    assert counted[-1] <= counted[1] + 2  # clips are shorter, and the next number of tokens is any number


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("flags", [{"quantize": "fp8"}, {"cache": "first-block:0.9"}, {"cache": "mag:0.9"}], ids=str)
def test_it_goes_with_other_flags(
    loaded: Callable[..., Any], flags: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks stay outside of the graphs, but those inside of a block, which cut them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain, backbone = loaded("wan", **flags), loaded("wan", compile=True, **flags)
    plan = family.made(plain, "sliding-window", 33, 6, ("window.frames=3", "window.layers=[0]"))
    assert (sampled(backbone, plan) - sampled(plain, plan)).abs().max() < 1e-5
    print(f"{flags}: {graphs()} graphs")
    assert 0 < graphs() <= (20 if "quantize" in flags else MOST)


@pytest.mark.usefixtures("traced")
def test_it_goes_with_group_offload(loaded: Callable[..., Any]) -> None:
    """From the host to the host, since there is no GPU: the hooks are the same."""
    plain, backbone = loaded("wan"), loaded("wan", compile=True)
    cpu = torch.device("cpu")
    backbone.pipe.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    plan = family.made(plain, "sliding-window", 33, 3, ("window.frames=3", "window.layers=[0]"))
    assert (sampled(backbone, plan) - sampled(plain, plan)).abs().max() < 1e-5
    assert graphs() > 0


@pytest.mark.usefixtures("traced")
def test_it_goes_with_a_lora(loaded: Callable[..., Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    backbone = loaded("wan")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone.pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = peft.utils.get_peft_model_state_dict(backbone.pipe.transformer)
    backbone.kind.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    plain, compiled = (loaded("wan", lora=(str(tmp_path),), compile=flag) for flag in (False, True))
    plan = family.made(plain, "sliding-window", 33, 3, ("window.frames=3", "window.layers=[0]"))
    assert (sampled(compiled, plan) - sampled(plain, plan)).abs().max() < 1e-5
    assert 0 < graphs() <= MOST


@pytest.mark.usefixtures("traced")
def test_a_rollout_is_compiled_in_a_few_graphs(causal_tiny: tuple[Any, Any]) -> None:
    plain, backbone = causal_tiny
    counted = []
    for frames in (33, 57):
        made = planner.build(preset.load("longlive", (), preset.Sample(frames=frames)), plain.spec)
        assert (sampled(backbone, made) - sampled(plain, made)).abs().max() < 1e-4
        counted.append(graphs())
    print(counted)
    assert 0 < counted[0] == counted[1] <= MOST


@pytest.fixture
def causal_tiny() -> tuple[Any, Any]:
    spec = SPECS["tiny-causal"]
    return load(spec, ModelSettings("cpu", "fp32")), load(spec, ModelSettings("cpu", "fp32", compile=True))


@pytest.mark.filterwarnings(INDUCTOR)
def test_inductor_makes_code_that_agrees(loaded: Callable[..., Any]) -> None:
    try:
        checks._check_compiler("cpu")
    except UsageError as error:
        pytest.skip(error.given)
    plain, backbone = loaded("wan"), loaded("wan", compile=True)
    plan = family.made(plain, "direct", 9, 2)
    error = (sampled(backbone, plan) - sampled(plain, plan)).abs().max().item()
    print(f"max difference {error:.1e}")
    assert 0 < graphs() <= MOST
    assert error < 1e-5


@pytest.mark.filterwarnings(INDUCTOR)
def test_without_a_compiler_it_is_refused_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):  # which puts it back, as monkeypatch does not
        monkeypatch.setattr("diffusers.WanPipeline.from_pretrained", None)
        with pytest.raises(UsageError, match=r"--compile cannot run here: .*No working C[+][+] compiler found") as caught:
            load(TINY, ModelSettings("cpu", "fp32", compile=True))
        assert "no-such-compiler" in caught.value.given
        assert "g++" in caught.value.expected
        assert "leave --compile out" in caught.value.hint


def test_it_is_among_the_settings_that_decide(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """A run that began without it does not go on with it."""
    made = tiny_plan("direct", frames=17, steps=2)
    settings = [run_settings.stored_settings(made, "x", 0, ModelSettings("cpu", "fp32", compile=flag)) for flag in (False, True)]
    assert ["compile" in one for one in settings] == [False, True]
    with pytest.raises(UsageError, match="was made with another compile"):
        rundir.check_same_run(settings[0], settings[1], tmp_path)
