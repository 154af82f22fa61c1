"""The contract of sampling loops, which loop a plan has, a loop from another package, and guidance by its formula."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from longgen import catalog
from longgen.errors import UsageError
from longgen.loops import LOOPS, loop_of, sample, stream, streams
from longgen.loops.denoiser import Denoiser
from longgen.loops.direct import direct
from longgen.plan import Plan
from longgen.sampling.gen_l_video import GenLVideo
from longgen.technique import Sampling

PROMPT = "a large red circle bouncing on a navy background"


def backwards(denoiser: Denoiser, noise: Tensor, generator: torch.Generator, on_step: Any, resume: Any) -> Iterator[Tensor]:
    """Direct sampling of the noise in the opposite order, in two pieces."""
    for latents in direct(denoiser, noise.flip(2), generator, on_step, resume):
        yield from latents.split(3, dim=2)


class FromOutside(GenLVideo):
    loop: ClassVar[str] = f"{__name__}:backwards"


class Misspelt(GenLVideo):
    loop: ClassVar[str] = "multidifusion"


def replaced(plan: Plan, technique: Sampling) -> Plan:
    techniques = tuple(dataclasses.replace(act, technique=technique) if act.technique is plan.sampling else act
                       for act in plan.techniques)  # fmt: skip
    return dataclasses.replace(plan, techniques=techniques)


@pytest.mark.parametrize(
    ("name", "frames", "loop"),
    [
        ("direct", 161, "direct"), ("sliding-window", 161, "direct"), ("gen-l-video", 161, "multidiffusion"),
        ("gen-l-video", 81, "direct"), ("fifo", 161, "fifo"), ("fifo", 81, "direct"),
    ],
)  # fmt: skip
def test_a_plan_has_the_loop_of_its_technique_unless_one_call_covers_the_video(
    tiny_plan: Callable[..., Plan], name: str, frames: int, loop: str
) -> None:
    chosen = loop_of(tiny_plan(name, frames=frames))
    assert f"{chosen.__module__}:{chosen.__name__}" == LOOPS[loop]


@pytest.mark.parametrize("name", catalog.SLOTS["sampling"])
def test_every_technique_of_sampling_names_a_loop_that_is_there(name: str) -> None:
    technique = catalog.technique(name)
    assert issubclass(technique, Sampling)
    assert technique.loop in LOOPS


def test_only_what_streams_is_decoded_meanwhile_and_not_with_offload(tiny_plan: Callable[..., Plan]) -> None:
    direct_plan, fifo_plan = tiny_plan("direct", frames=81), tiny_plan("fifo", frames=161)
    assert streams(fifo_plan, "none")
    assert not streams(fifo_plan, "model")
    assert not streams(direct_plan, "none")


def test_a_loop_of_another_package(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    plan = tiny_plan("gen-l-video", ("gen-l-video.frames=4",), frames=25, steps=2)
    denoiser = Denoiser(tiny, replaced(plan, FromOutside(frames=4)), PROMPT)
    noise = denoiser.initial_noise(torch.Generator().manual_seed(0))
    (expected,) = direct(denoiser, noise.flip(2), torch.Generator(), lambda _: None, None)
    assert torch.equal(sample(denoiser, noise, torch.Generator()), expected)
    frames = [*stream(denoiser, noise, torch.Generator())]
    assert [frame.shape[2] for frame in frames] == [1] * 7
    assert torch.equal(torch.cat(frames, dim=2), expected)
    with pytest.raises(UsageError, match=r"no sampling loop is called 'multidifusion' \(did you mean multidiffusion"):
        loop_of(replaced(plan, Misspelt(frames=4)))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_guidance_is_the_extrapolation_from_unconditional_to_conditional(
    tiny: Any, tiny_plan: Callable[..., Plan], scale: float
) -> None:
    plan = tiny_plan("fifo", ("fifo.frames=4", "fifo.partitions=2"), frames=25, guidance_scale=scale, negative_prompt="sand")
    denoiser = Denoiser(tiny, plan, PROMPT)
    x = torch.randn(2, 48, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([[0.0, 200.0, 500.0, 900.0], [100.0, 300.0, 600.0, 1000.0]])
    predicted = denoiser.predict(x, times, 3, denoiser.texts[0])
    assert tiny.step_state.index == 3
    assert (denoiser.uncond is None) == (scale == 1)
    tokens = times.repeat_interleave(16, dim=1)
    with torch.no_grad():
        texts = [tiny.text(text)["encoder_hidden_states"].expand(2, -1, -1) for text in (PROMPT, "sand")]
        cond, uncond = (tiny.pipe.transformer(x, tokens, text)[0] for text in texts)
    assert torch.equal(predicted, cond if scale == 1 else uncond + scale * (cond - uncond))
