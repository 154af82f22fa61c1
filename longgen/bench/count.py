"""Counts what one layer asks of a GPU, by type of step, at the published size and without a GPU.

The transformer is diffusers' own with few layers, on a device of shapes (`longgen.bench.fake_cuda`); the pipeline and the loop
around it are the real ones on the CPU, and see zeros as its predictions. Layers are alike that have the same programs in all
steps and the same kind of block: of each kind the model has two, and the second of them is counted in a call that is not the
first of its type, which is how a layer runs in most of a video. Whatever else a call does, the first layers' share of what is
done once a call included, is the rest of the model. Text encoder, VAE and what a rollout does to its cache between calls are not
counted.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from longgen import progress
from longgen.backbones.registry import adapter_of, family_of
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.bench import steps
from longgen.bench.fake_cuda import DEVICE, fake_cuda
from longgen.bench.operators import OperatorCounter
from longgen.bench.step_types import CLEAN, FIRST, LAST, ROUND, StepType, step_types
from longgen.cards import ATTENTION, EIGEN, PRECISIONS, Card, Operator, seconds
from longgen.errors import LonggenError
from longgen.loops import PROMPTS, State, loop_of
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import loading, random_weights
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan

TWICE = 2  # layers of each kind in the model that is counted
Operators = Counter[Operator]


@dataclass(frozen=True, eq=False)
class LayerCount:
    """The operators of a layer of one kind in one model call. layers: how many layers are of this kind; block: their class."""

    block: str
    layers: int
    operators: Operators


@dataclass(frozen=True, eq=False)
class StepCount:
    """A type of step. in_a_run: steps of it in a run. calls: of the model in a step. rest: of a call, beside its layers."""

    name: str
    in_a_run: float
    calls: float
    layers: tuple[LayerCount, ...]
    rest: Operators

    @property
    def layer(self) -> LayerCount:
        """The kind of layer that launches most."""
        return max(self.layers, key=lambda layer: total(layer.operators, "launches"))

    def seconds(self, card: Card) -> float:
        """Estimated time of a step on `card`."""
        layers = sum(layer.layers * seconds(layer.operators.items(), card) for layer in self.layers)
        return self.calls * (layers + seconds(self.rest.items(), card))


def run_seconds(counts: Sequence[StepCount], card: Card) -> float:
    """Estimated time of sampling a whole video on `card`."""
    return sum(count.in_a_run * count.seconds(card) for count in counts)


def total(operators: Operators, field: str) -> int:
    """The sum of a field of `Operator` over all calls."""
    return sum(number * getattr(operator, field) for operator, number in operators.items())


def as_dict(operators: Operators) -> dict[str, Any]:
    """Operators as plain data: launches, attention calls, copies, waits, operations by precision, eigenproblems and bytes."""
    flops, kinds, names = dict.fromkeys(PRECISIONS, 0.0), Counter[str](), Counter[str]()
    for operator, number in operators.items():
        flops[operator.precision] += number * operator.flops
        kinds[operator.kind] += number
        names[operator.name] += number * operator.launches
    return {
        "launches": total(operators, "launches"),
        "attention_calls": kinds[ATTENTION],
        "copies_from_host": total(operators, "copies"),
        "waits": total(operators, "waits"),
        "eigenproblems": kinds[EIGEN],
        "operations": flops,
        "bytes": total(operators, "bytes"),
        "by_operator": dict(names.most_common()),
    }


def count_plan(plan: Plan, dtype: str) -> list[StepCount]:
    """What every type of step of `plan` asks of a GPU in `dtype`. Raises LonggenError where operators cannot be counted."""
    loading.silence_libraries()
    small, kinds = _representative(plan)
    types = step_types(small)
    try:
        with fake_cuda() as mode, torch.no_grad(), OperatorCounter(DEVICE, mode) as counter:
            counted = _counted(small, types, _Watch(_backbone(small, dtype), counter))
    except RuntimeError as error:  # of torch, for an operator that cannot be called without values
        raise LonggenError(
            f"operators of {plan.preset.name} cannot be counted: {' '.join(str(error).split())[:200]}",
            expected="operators that torch can call on tensors without memory",
            hint="leave the preset out, or measure it: longgen bench",
        ) from error
    batch = 2 if family_of(plan.spec).batches_guidance else 1
    guided = (2 + plan.spec.more_calls) / batch if plan.guided else 1
    in_a_run = {step_type.name: step_type.count for step_type in step_types(plan)}
    results = []
    for step_type in types:
        of_clips = 1 if plan.clips else plan.calls
        calls = {ROUND: _windows(plan), FIRST: plan.first_steps, LAST: plan.steps, CLEAN: 1}.get(step_type.name, of_clips)
        by_place = counted[step_type.name]
        layers = [LayerCount(block, number, by_place.get(str(place), Counter())) for place, (block, number) in kinds.items()]
        rest = sum(by_place.values(), Counter[Operator]())
        for layer in layers:
            for _ in range(TWICE):
                rest.subtract(layer.operators)
        rest = Counter({operator: number for operator, number in rest.items() if number})
        batched = 1 if plan.chunk_lat is not None or step_type.name == ROUND else guided
        results.append(StepCount(step_type.name, in_a_run[step_type.name], calls * batched, tuple(layers), rest))
    return results


def _windows(plan: Plan) -> float:
    """Model calls of a round of a FIFO queue."""
    return (plan.calls - 1) * plan.steps / (plan.rounds - plan.steps) if plan.rounds > plan.steps else 1


# The model that is counted


def _representative(plan: Plan) -> tuple[Plan, dict[int, tuple[str, int]]]:
    """`plan` on as few layers as show every kind twice; and by number of the second of each, its block and how many are alike."""
    spec, blocks = plan.spec, _blocks(plan.spec)
    alike: dict[tuple[bytes, str], list[int]] = {}
    for layer, block in enumerate(blocks):
        alike.setdefault((plan.table[layer].tobytes(), block), []).append(layer)
    wanted = Counter(block for _, block in alike for _ in range(TWICE))
    layers = TWICE * len(alike)
    while wanted - Counter(small := _blocks(replace(spec, layers=layers))):
        layers += 1
    members: list[int] = []
    kinds: dict[int, tuple[str, int]] = {}
    left = {block: [group for (_, of), group in alike.items() if of == block for _ in range(TWICE)] for block in wanted}
    for place, block in enumerate(small):
        group = left[block].pop(0) if left[block] else alike[plan.table[members[-1]].tobytes(), block]
        members.append(group[0])
        if members.count(group[0]) == TWICE:
            kinds[place] = block, len(group)
    techniques = tuple(
        replace(placed, layers=tuple(place for place, layer in enumerate(members) if layer in placed.layers))
        for placed in plan.techniques
    )
    return replace(plan, spec=replace(spec, layers=layers), table=plan.table[members], techniques=techniques), kinds


@functools.lru_cache(maxsize=64)
def _blocks(spec: BackboneSpec) -> list[str]:
    """The class of the block around each layer's self-attention, in the order in which layers are counted."""
    with torch.device("meta"):
        model = random_weights.untrained(spec)
    return [type(block).__name__ for block in _blocks_of(adapter_of(spec), model)]


def _blocks_of(adapter: type[PipelineBackbone], transformer: Any) -> list[torch.nn.Module]:
    names = {module: name for name, module in transformer.named_modules()}
    return [transformer.get_submodule(names[layer].rpartition(".")[0]) for layer in adapter.layers(transformer)]


def _backbone(plan: Plan, dtype: str) -> PipelineBackbone:
    """The backbone of `plan` whose pipeline is on the CPU and whose transformers are on the fake device."""
    spec, torch_dtype = plan.spec, loading.DTYPES[dtype]
    experts = []
    for _ in range(spec.experts):
        with DEVICE:
            model = random_weights.untrained(spec).eval().requires_grad_(False)
            kept = model._keep_in_fp32_modules or ()
            for path, parameter in model.named_parameters():
                parameter.data = parameter.data.to(torch.float32 if {*path.split(".")} & {*kept} else torch_dtype)
        experts.append(model)
    pipe = random_weights.pipeline(spec, experts, torch_dtype, torch.device("cpu"))
    for model in experts:  # so that the pipeline makes its tensors on the CPU
        model.__class__ = type(type(model).__name__, (type(model),), {"device": torch.device("cpu")})
    return adapter_of(spec)(spec, pipe, ModelSettings("cpu", dtype))


# The calls that are counted


class _Finished(Exception):
    """Everything is counted."""


class _Watch:
    """Stands in for the transformers' forwards: runs the calls that matter on the fake device and answers all with zeros."""

    def __init__(self, backbone: PipelineBackbone, counter: OperatorCounter) -> None:
        self.backbone, self.counter = backbone, counter
        self.on_call: Callable[[Callable[[], Any]], None] = lambda run: None
        self.done = 0

    @contextmanager
    def running(self, on_call: Callable[[Callable[[], Any]], None]) -> Iterator[None]:
        """Within the context `on_call` gets every model call as a function that makes it; `_Finished` ends it."""
        self.on_call, self.done = on_call, 0
        for transformer in self.backbone.transformers:
            transformer.forward = functools.partial(self._forward, type(transformer).forward, transformer)
        try:
            yield
        except _Finished:
            pass
        finally:
            for transformer in self.backbone.transformers:
                del transformer.forward

    def _forward(self, forward: Callable[..., Any], transformer: Any, *args: Any, **kwargs: Any) -> Any:
        self.on_call(functools.partial(forward, transformer, *tree_map(_on_device, args), **tree_map(_on_device, kwargs)))
        self.done += 1
        return self.backbone.unanswered(kwargs)

    def count(self, run: Callable[[], Any]) -> dict[str, Operators]:
        """The operators of a call by place: the number of the layer whose block calls them, or nothing outside of blocks."""
        hooks = []
        for transformer in self.backbone.transformers:
            for number, block in enumerate(_blocks_of(type(self.backbone), transformer)):
                hooks.append(block.register_forward_pre_hook(functools.partial(self._enter, str(number))))
                hooks.append(block.register_forward_hook(functools.partial(self._enter, "")))
        self.counter.place, self.counter.by_place = "", {}
        try:
            run()
        finally:
            self.counter.place = None
            for hook in hooks:
                hook.remove()
        return self.counter.by_place

    def _enter(self, place: str, *_: Any) -> None:
        self.counter.place = place


def _on_device(value: Any) -> Any:
    """A tensor of the pipeline on the fake device."""
    return torch.empty(value.shape, dtype=value.dtype, device=DEVICE) if isinstance(value, Tensor) else value


def _counted(plan: Plan, types: Sequence[StepType], watch: _Watch) -> dict[str, dict[str, Operators]]:
    """By type of step, the operators of one of its calls by place."""
    backbone, counted = watch.backbone, dict[str, dict[str, Operators]]()
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(backbone, plan, PROMPTS[0], backbone.given(plan, generator))
    noise = denoiser.initial_noise(generator)

    def follow(resume: State | None, names: dict[int, str]) -> None:
        """Counts the calls with these numbers; all calls before the last of them are made, as they fill caches."""

        def on_call(run: Callable[[], Any]) -> None:
            if watch.done in names:
                counted[names[watch.done]] = watch.count(run)
            else:
                run()
            if watch.done == max(names):
                raise _Finished

        with watch.running(on_call):
            for _ in loop_of(plan)(denoiser, noise, generator, progress.no_report, resume):
                pass

    def every_type(run: Callable[[], Any]) -> None:
        """Counts a call of each type in the place of the first call that is not made by a clip which others borrow from."""
        if plan.in_clips and watch.done < TWICE and plan.calls > TWICE:
            run()
            return
        for step_type in types:
            backbone.step_state.index = step_type.steps[0]
            run()
            backbone.step_state.index = step_type.steps[:2][-1]  # tables of one step do not serve the next
            counted[step_type.name] = watch.count(run)
        raise _Finished

    if plan.chunk_lat is not None:
        follow(None, {min(1, plan.first_steps - 1): FIRST})
        if plan.rounds > 1:
            clean = plan.rounds - 1
            follow(steps.last_chunk(plan, noise, generator), {clean - 1: CLEAN, clean + min(1, plan.steps - 1): LAST})
    elif types[0].name == ROUND:
        follow(steps.full_queue(plan, noise, generator), {1: ROUND})
    else:
        with watch.running(every_type):
            for _ in loop_of(plan)(denoiser, noise, generator, progress.no_report, None):
                pass
    if missing := [step_type.name for step_type in types if step_type.name not in counted]:
        raise LonggenError(f"no model call of {missing[0]} could be counted")
    return counted
