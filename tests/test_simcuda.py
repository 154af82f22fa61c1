"""The simulated CUDA device, and a sample of the sweep on it: presets of every kind, families, offloads and dtypes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longgen.attention.lse_kernels import attention_with_lse
from longgen.loops import State, magcache
from longgen.pipelines.step_state import StepState
from tests.simcuda import CUDA, TO_DEVICE, TO_HOST, WAIT, CudaTensor, Log, cases, kernels, simulated

STEPWISE = "pipelines/finite.py"  # the one wait a step that is ours: whether the latents are finite


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(
    ("family", "offload", "dtype", "name", "checks"),
    [
        ("wan", "none", "fp32", "sliding-window", ("values", "decode", "resume", "schedule")),
        ("wan-experts", "model", "bf16", "ntk", ("values", "resume")),
        ("wan-ti2v", "none", "fp16", "keyframes", ("decode",)),
        ("wan-flf2v", "model", "bf16", "sliding-window", ("values", "decode", "resume", "schedule")),
        ("wan-i2v", "group", "bf16", "freespec", ("resume",)),
        ("wan", "group", "fp32", "gen-l-video", ("values", "resume")),
        ("ltx", "group", "fp16", "sink-window", ("decode", "resume")),
        ("ltx-condition", "none", "fp32", "vrpr", ("values", "resume")),
        ("cogvideox-i2v", "model", "bf16", "glc-diffusion", ("values", "decode", "resume")),
        ("hunyuan-i2v", "model", "fp32", "gen-l-video", ("values", "decode")),
        ("cogvideox", "group", "bf16", "freelong", ("values", "decode")),
        ("cogvideox-2b", "model", "fp16", "gen-l-video", ("decode",)),
        ("hunyuan", "none", "bf16", "vrpr", ("values", "resume")),
        ("tiny-causal", "model", "bf16", "self-forcing", ()),
    ],
)
def test_a_sample_of_the_sweep(family: str, offload: str, dtype: str, name: str, checks: tuple[str, ...], folder: Path) -> None:
    spec = cases.spec_of(family, folder)
    with torch.no_grad(), simulated() as log:
        backbone = cases.loaded(spec, "cuda", dtype, offload)
        on_host = cases.loaded(spec, "cpu", dtype) if "values" in checks else None
        cases.check(backbone, on_host, cases.planned(spec, name), checks, log)


@pytest.mark.parametrize(
    ("family", "offload", "name"), [("ltx", "model", "glc-diffusion"), ("ltx-condition", "group", "sink-window")]
)
def test_a_picture_reaches_the_device_too(family: str, offload: str, name: str, folder: Path) -> None:
    """Of models that could do without one."""
    spec = dataclasses.replace(cases.spec_of(family, folder), picture_needed=True)
    with torch.no_grad(), simulated() as log:
        backbone, on_host = cases.loaded(spec, "cuda", "fp32", offload), cases.loaded(spec, "cpu", "fp32")
        cases.check(backbone, on_host, cases.planned(spec, name), ("values", "decode", "resume"), log)


def test_group_offload_takes_no_schedule_away(folder: Path) -> None:
    """Its tracing removes itself in the first model call, and took longgen's hook with it."""
    spec = cases.spec_of("wan", folder)
    plan = cases.planned(spec, "direct", cases.two_prompts(spec))
    with torch.no_grad(), simulated():
        expected = cases.run(cases.loaded(spec, "cpu", "fp32"), plan)
        assert torch.equal(cases.run(cases.loaded(spec, "cuda", "fp32", "group"), plan), expected)


@pytest.mark.parametrize("family", ["wan", "hunyuan"])
def test_group_offload_takes_no_step_cache_away(family: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor spoils the ratios that MagCache measures in a first generation."""
    spec, found = cases.spec_of(family, folder), []
    for offload, device in (("none", "cpu"), ("group", "cuda")):
        with torch.no_grad(), simulated() if device == "cuda" else contextlib.nullcontext():
            backbone = cases.loaded(spec, device, "fp32", offload)
            found.append(magcache.measure(backbone, cases.planned(spec, "direct"), lambda done: None))
    assert found[0] == found[1]


@pytest.fixture
def steady(folder: Path) -> Callable[..., Counter[tuple[str, str]]]:
    """Copies and waits of a late step, by kind and by the file that caused them."""

    def count(family: str, name: str, step: int, schedule: bool = False) -> Counter[tuple[str, str]]:
        spec = cases.spec_of(family, folder)
        plan = cases.planned(spec, name, cases.two_prompts(spec) if schedule else None)
        steps: list[Counter[tuple[str, str]]] = []
        with torch.no_grad(), simulated() as log:
            backbone = cases.loaded(spec, "cuda", "bf16")

            def on_step(state: State) -> None:
                steps.append(Counter())
                for event, times in log.events.items():
                    if event.kind in (TO_DEVICE, TO_HOST, WAIT):
                        steps[-1][event.kind, event.line.partition(":")[0]] += times
                log.clear()
                if len(steps) == step:
                    raise StopIteration

            with contextlib.suppress(StopIteration, RuntimeError):  # a generator makes the second of the first
                cases.run(backbone, plan, on_step)
        steady = steps[step - 1]
        stock = [key for key in steady if key[1] in ("loops/direct.py",)]  # the pipeline's own call
        return Counter({key: times for key, times in steady.items() if key not in stock})

    return count


def test_a_step_waits_once_for_us(steady: Callable[..., Counter[tuple[str, str]]]) -> None:
    """A schedule's shares were copied in every layer."""
    assert steady("wan", "riflex", 3, schedule=True) == {(WAIT, STEPWISE): 1}


@pytest.mark.parametrize(("family", "name"), [("cogvideox-2b", "freepca"), ("ltx", "tsa"), ("ltx", "keyframes")])
def test_layers_copy_nothing_and_wait_for_eigenproblems_alone(family: str, name: str, steady: Callable[..., Any]) -> None:
    """FreePCA's windows, where tiles do not pay, were merged by the CPU's partition with tables sent in every layer."""
    found = steady(family, name, 2)
    assert found.keys() - {(WAIT, "fusion/freepca.py")} == {(WAIT, STEPWISE)}


def test_text_masks_are_read_once_a_model_call(steady: Callable[..., Counter[tuple[str, str]]]) -> None:
    """And not twice a layer and sample."""
    assert steady("hunyuan", "sliding-window", 3) == {(WAIT, STEPWISE): 1, (TO_HOST, "pipelines/step_state.py"): 1}


def test_any_text_mask_is_read_right() -> None:
    """diffusers' shows the first tokens, which are a slice; one of another kind is an index, on the mask's device."""
    state = StepState(SimpleNamespace())
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)[:, None, None]
    first, second, none = state.visible_text(mask, 4)
    text = torch.arange(4)
    assert (first, none) == (slice(2), slice(0))
    assert text[second].tolist() == [1, 2]
    assert state.visible_text(mask, 4)[1] is second  # once a model call
    assert state.visible_text(~mask, 4)[0] != first


def test_a_round_of_fifo_waits_once(steady: Callable[..., Counter[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """And copies the one frame of noise that enters; it waited for each window and expert."""
    monkeypatch.setattr("longgen.loops.fifo.CHECKPOINT_ROUNDS", 1)
    assert steady("wan", "fifo", 9) == {(WAIT, STEPWISE): 1, (TO_DEVICE, "loops/fifo.py"): 1}


@pytest.mark.parametrize("name", ["keyframes", "ntk"])
def test_devices_without_doubles(name: str, folder: Path) -> None:
    spec = cases.spec_of("wan", folder)
    with torch.no_grad(), simulated(float64=False) as log:
        with pytest.raises(RuntimeError, match="doesn't support float64"):
            torch.zeros(2, dtype=torch.float64, device="cuda")
        backbone = cases.loaded(spec, "cuda", "fp16")
        log.clear()
        assert cases.run(backbone, cases.planned(spec, name)).isfinite().all()
        assert not [fault for fault in log.faults if "float64" in fault]


@pytest.fixture
def log() -> Any:
    with simulated() as log:
        yield log


def test_host_and_device_do_not_mix(log: Log) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
        x + torch.ones(3)
    assert (x + torch.tensor(1.0)).sum().item() == 6  # a number of the host is none of them
    with pytest.raises(RuntimeError, match="two devices"):
        torch.nn.functional.scaled_dot_product_attention(*(torch.ones(1, 1, 2, 8, device=d) for d in ("cuda", "cpu", "cuda")))
    with pytest.raises(TypeError, match="can't convert cuda"):
        x.numpy()
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())


def test_what_waits_and_what_is_copied_is_counted(log: Log) -> None:
    x = torch.arange(6).to("cuda")
    assert log.totals() == {"launch": 1, "to device": 1, "to host": 0, "wait": 0}
    x[x > 2]
    assert log.totals()["wait"] == 1
    x[torch.tensor([1, 2])]  # indices of the host are copied
    assert log.totals()["to device"] == 2
    x.tolist()
    x.cpu()
    assert log.totals()["to host"] == 2
    assert bool((x == 3).any())
    assert log.totals()["wait"] == 2
    torch.ones(4).pin_memory().to("cuda", non_blocking=True)
    assert [event.operator for event in log.events if event.kind == TO_DEVICE][-1] == "_to_copy pinned"
    assert all(event.line == "a test" for event in log.events)


def test_modules_move_and_come_back(log: Log) -> None:
    layer = torch.nn.Linear(3, 2)
    weight, x = layer.weight.detach().clone(), torch.randn(4, 3)
    expected = layer(x)
    layer.to("cuda")
    assert isinstance(layer.weight, CudaTensor)
    assert layer.weight.device == CUDA
    assert torch.equal(layer(x.to("cuda")).cpu(), expected)
    assert torch.equal(layer.to("cpu").weight, weight)
    assert not isinstance(layer.weight, CudaTensor)


def test_kernels_have_the_constraints_of_cuda(log: Log) -> None:
    q = torch.randn(1, 5, 2, 24)
    half, flash, efficient = q.to("cuda", torch.bfloat16).transpose(1, 2), *(
        getattr(torch.ops.aten, name) for name in (kernels.FLASH, kernels.EFFICIENT)
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="only support fp16 and bf16"):
        flash(*[q.to("cuda").transpose(1, 2)] * 3)
    output, lse = flash(half, half, half)[:2]
    expected = (half.cpu().float() @ half.cpu().float().mT / 24**0.5).logsumexp(-1)
    assert output.shape == half.shape
    assert torch.allclose(lse.cpu(), expected, atol=1e-5)
    padded = efficient(half, half, half, None, True)[1].cpu()
    assert padded.shape[-1] == 32
    assert padded[..., 5:].isnan().all()
    with pytest.raises(RuntimeError, match="not correctly aligned"):
        efficient(half, half, half, torch.zeros(1, 2, 5, 5, device="cuda", dtype=torch.bfloat16), True)
    kernel = attention_with_lse(CUDA, torch.bfloat16, 24)
    assert kernel is not None
    assert kernel(*[q.to("cuda", torch.bfloat16)] * 3)[1].shape == (1, 2, 5)


def test_nothing_is_left_of_it() -> None:
    before = (
        torch.cuda.is_available(),
        torch.Tensor.__dict__.get("data"),
        torch.cuda.Stream,
        attention_with_lse.cache_info().currsize,
    )
    with simulated():
        assert torch.cuda.is_available()
        attention_with_lse(CUDA, torch.bfloat16, 8)
    attention_with_lse.cache_clear()
    after = (torch.cuda.is_available(), torch.Tensor.__dict__.get("data"), torch.cuda.Stream)
    assert after == before[:3]
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.zeros(1, device="cuda")
