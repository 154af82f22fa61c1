"""One case of the sweep: a preset on a small model on the simulated device, with what has to hold.

sample    the latents are finite, and no operator was refused
values    they are those of the same run on the CPU, but for rounding; or no farther from the CPU's in fp32 than that run is
decode    as many frames as planned
resume    a run that stopped half-way and went on from its files has the same latents, bit for bit
schedule  two prompts, one after the other
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from longgen import interrupted, planner, preset
from longgen.backbones.find import find
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.checkpoint import Chunks
from longgen.device_costs import ACCELERATOR
from longgen.errors import UsageError
from longgen.loops import State, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.loading import load
from longgen.plan import Plan
from longgen.schedule import PromptSchedule, Shot
from tests.models import small
from tests.simcuda.log import Event, Log

FAMILIES = ("tiny", "tiny-causal", *small.ALL)
CHECKS = ("sample", "values", "decode", "resume", "schedule")
PROMPT, OTHER, SEED, STEPS = "a red ball", "a small cyan triangle", 0, 4
SETS = {"freeloc": ("vrpr.layers=all", "tsa.layers=all", "tsa.reencode=vrpr"), "fifo": ("fifo.partitions=1",)}
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02}  # |x' - x| / |x| of the latents after STEPS steps
AS_FAR = 1.5  # times the CPU's own rounding, of presets that it changes by more: they choose frames, or scale logits


@dataclass
class Outcome:
    """steady: launches and so on of a step, the most of those after the first. last: events of the last step.

    difference: of `values`.
    """

    status: str = "ok"  # or "refused", "failed"
    message: str = ""
    steady: dict[str, int] = field(default_factory=dict)
    last: Counter[Event] = field(default_factory=Counter)
    difference: float | None = None


def spec_of(family: str, folder: Path) -> BackboneSpec:
    """The model of `family`, written to `folder` where it is not there yet."""
    if family not in small.ALL:  # one of the small models is named as a published one
        spec = SPECS[family]
    else:
        if not (folder / family).is_dir():
            small.build(family, folder / family)
        spec = find(str(folder / family))
    return dataclasses.replace(spec, native_px=(8 if spec.causal else 4) * spec.stride_t + 1)


def planned(spec: BackboneSpec, name: str, schedule: PromptSchedule | None = None) -> Plan:
    """Of a video of several times the training length, in few steps."""
    frames = (2 if spec.causal else 4) * (spec.native_px - 1) + 1
    size = (64, 64) if spec.built_in else (64, 32)
    steps = None if name == "fifo" else STEPS  # one for each place of its queue
    chosen = preset.load(name, SETS.get(name, ()), preset.Sample(frames=frames, steps=steps, size=size))
    return planner.build(chosen, spec, schedule, conditions=planner.stand_in(spec))


def two_prompts(spec: BackboneSpec) -> PromptSchedule:
    return PromptSchedule((Shot(Fraction(0), PROMPT), Shot(Fraction(spec.native_px, spec.fps), OTHER)))


def check(backbone: Any, on_host: Any, plan: Plan, checks: tuple[str, ...], log: Log) -> Outcome:
    """Runs `checks` on `backbone`, of the device. on_host: the same model on the CPU. Raises what the run raises."""
    outcome, counts = Outcome(), []

    def count(state: State) -> None:
        counts.append(log.totals())
        outcome.last = log.events.copy()
        log.events.clear()

    log.clear()
    latents = run(backbone, plan, count)
    steady = counts[1:] or counts
    outcome.steady = {kind: max(step[kind] for step in steady) for kind in steady[0]}
    _require(bool(torch.isfinite(latents).all()), "sample: the latents are not finite")
    if "values" in checks:
        expected = run(on_host, plan)
        outcome.difference, most = _relative(latents, expected), TOLERANCE[backbone.model_settings.dtype]
        if outcome.difference >= most:
            exact = run(loaded(backbone.spec, "cpu", "fp32"), plan)
            ours, theirs = _relative(latents, exact), _relative(expected, exact)
            _require(ours < AS_FAR * theirs, f"values: {outcome.difference:.1e} from the CPU's, {most:g} at most; from "
                                             f"the CPU's in fp32 {ours:.1e}, and the CPU's own are {theirs:.1e}")  # fmt: skip
    if "decode" in checks:
        frames = sum(map(len, backbone.decode(latents.to(backbone.device))))
        _require(frames == plan.frames_px, f"decode: {frames} frames for {plan.frames_px}")
    if "resume" in checks:
        again = resumed(backbone, plan)
        _require(torch.equal(again, latents), f"resume: {(again - latents).abs().max():.1e} from the run that was not stopped")
    if "schedule" in checks:
        with contextlib.suppress(UsageError):  # some take one text for all frames
            run(backbone, planned(backbone.spec, plan.preset.name, two_prompts(backbone.spec)))
    return outcome


def run(backbone: Any, plan: Plan, on_step: Any = None, resume: State | None = None) -> Tensor:
    """The latents of `plan`, on the host."""
    generator = torch.Generator().manual_seed(SEED)
    denoiser = Denoiser(backbone, plan, PROMPT, backbone.given(plan, generator))
    noise = denoiser.initial_noise(generator)
    return sample(denoiser, noise, generator, on_step, resume).float().cpu()


def resumed(backbone: Any, plan: Plan) -> Tensor:
    """As `run`, stopped half-way and continued from what `longgen generate` keeps on disk."""

    class Stop(Exception):
        pass

    with tempfile.TemporaryDirectory() as folder:
        chunks = Chunks(Path(folder) / "chunks", {})

        def save(state: State) -> None:
            interrupted.save(state, chunks, plan)
            if 2 * state.done >= plan.rounds:
                raise Stop

        with contextlib.suppress(Stop):
            run(backbone, plan, save)
        _, state, _ = interrupted.read(backbone, plan, Chunks(Path(folder) / "chunks", {}))
        assert state is not None
        return run(backbone, plan, resume=state)


def graphs(spec: BackboneSpec, names: list[str]) -> dict[str, int]:
    """Graphs that --compile has made after each preset, on the host by the accelerators' way of attention.

    Nothing that depends on step, layer or program may be in one, so they hardly grow. A model without a compiled graph raises.
    """
    counted = {}
    torch._dynamo.reset()
    counters.clear()
    with contextlib.ExitStack() as stack:
        eager = functools.partial(torch.compile, backend="eager")  # traces all that inductor would see, and generates no code
        stack.enter_context(mock.patch.object(torch, "compile", eager))
        stack.enter_context(torch._dynamo.config.patch(fail_on_recompile_limit_hit=True))
        for name, module in [*sys.modules.items()]:
            if name.startswith("longgen.") and hasattr(module, "costs_on"):
                stack.enter_context(mock.patch.object(module, "costs_on", return_value=ACCELERATOR))
        backbone = load(spec, ModelSettings("cpu", "fp32", compile=True))
        for name in names:
            with contextlib.suppress(UsageError):
                run(backbone, planned(spec, name))
                counted[name] = counters["stats"]["unique_graphs"]
    _require(max(counted.values()) > 0, "compile: there is no graph")
    return counted


def _relative(x: Tensor, expected: Tensor) -> float:
    return float((x - expected).norm() / expected.norm())


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def loaded(spec: BackboneSpec, device: str, dtype: str, offload: str = "none") -> Any:
    return load(spec, ModelSettings(device, dtype, offload=offload))
