"""NaN and infinity stop a run at their step, keep the last good checkpoint, and never become a picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longgen import planner, preset, run, rundir
from longgen.backbones.settings import ModelSettings
from longgen.bench.accelerators import compose
from longgen.errors import LonggenError
from longgen.pipelines import finite
from longgen.plan import Plan

PROMPT = "a large red circle bouncing on a navy background"
SHORT = ("fifo.frames=4", "fifo.partitions=2")  # eight steps, eight places
LOOPS: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {  # preset -> sets, sample, and where the first bad number shows
    "direct": ((), dict(frames=33, steps=3), "step 1 of 3: the latents"),
    "gen-l-video": ((), dict(frames=97, steps=2), "step 1 of 2: the latents"),
    "glc-diffusion": ((), dict(frames=97, steps=2), "step 1 of 2: the latents"),
    "fifo": (SHORT, dict(frames=33), "step 1 of 8, of the first clip: the latents"),
}


def made(backbone: Any, name: str, sets: tuple[str, ...] = (), **sample: Any) -> Plan:
    return planner.build(preset.load(name, sets, preset.Sample(**sample)), backbone.spec)


@contextmanager
def spoilt(weight: torch.Tensor, bad: float) -> Iterator[None]:
    kept = weight.data.clone()
    weight.data.view(-1)[1] = bad
    try:
        yield
    finally:
        weight.data.copy_(kept)


@contextmanager
def spoiling(module: torch.nn.Module, call: int) -> Iterator[None]:
    """The output of `module` is NaN from its call `call` on, counted from 1."""
    calls: list[int] = []

    def spoil(_: Any, __: Any, output: Any) -> Any:
        calls.append(1)
        return output * float("nan") if len(calls) >= call else output

    handle = module.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def weight_of(backbone: Any) -> torch.Tensor:
    return backbone.pipe.transformer.blocks[2].ffn.net[2].weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_bad_number_is_enough(dtype: torch.dtype) -> None:
    x = torch.randn(1000).to(dtype)
    assert finite.is_finite(x)
    assert finite.is_finite(x[:0])
    for bad in (float("nan"), float("inf"), float("-inf")):
        assert not finite.is_finite(torch.cat([x, torch.tensor([bad], dtype=dtype), x]))


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_weight_stops_every_loop_at_once(tiny: Any, name: str, bad: float, tmp_path: Path) -> None:
    sets, sample, where = LOOPS[name]
    output = tmp_path / "a.mp4"
    with spoilt(weight_of(tiny), bad), pytest.raises(LonggenError) as caught:
        run.generate_one(tiny, run.Job(made(tiny, name, sets, **sample), PROMPT, 0, output))
    assert caught.value.exit_code == 1
    assert caught.value.given.startswith(where)
    assert "--dtype" in caught.value.hint
    assert "--attention" in caught.value.hint
    assert not output.exists()
    assert sorted(file.name for file in rundir.run_folder(output).iterdir()) == ["run.json"]


@pytest.mark.parametrize(
    ("name", "sets", "sample", "call", "where"),
    [
        ("direct", (), dict(frames=33, steps=5), 5, "step 3 of 5: the latents"),  # two calls a step, for guidance
        ("fifo", SHORT, dict(frames=33), 2 * 8 + 2 * 4 * 9 + 1, "round 18 of 21"),  # eight steps, then four windows a round
    ],
)
def test_the_last_good_checkpoint_is_kept_and_goes_on(
    tiny: Any, name: str, sets: tuple[str, ...], sample: dict[str, Any], call: int, where: str, tmp_path: Path
) -> None:
    planned, whole, output = made(tiny, name, sets, **sample), tmp_path / "whole.mp4", tmp_path / "a.mp4"
    run.generate_one(tiny, run.Job(planned, PROMPT, 0, whole))
    with spoiling(tiny.pipe.transformer.proj_out, call), pytest.raises(LonggenError) as caught:
        run.generate_one(tiny, run.Job(planned, PROMPT, 0, output))
    assert caught.value.given.startswith(where)
    assert load_file(rundir.run_folder(output) / "checkpoint.safetensors")["latents"].isfinite().all()
    assert not output.exists()
    run.generate_one(tiny, run.Job(planned, PROMPT, 0, output), resume=True)
    one, other = (load_file(rundir.run_folder(path) / "latents.safetensors")["latents"] for path in (whole, output))
    assert torch.equal(one, other)


def test_a_rollout_stops_in_its_chunk_and_keeps_those_before(causal: Any, tmp_path: Path) -> None:
    planned, output = made(causal, "self-forcing", frames=33, steps=2), tmp_path / "a.mp4"
    with spoiling(causal.pipe.transformer.proj_out, 3 + 2), pytest.raises(LonggenError) as caught:  # three calls a chunk
        run.generate_one(causal, run.Job(planned, PROMPT, 0, output))
    assert caught.value.given.startswith("chunk 2 of 3, step 2 of 2: the latents")
    assert [file.name for file in (rundir.run_folder(output) / "latents").iterdir()] == ["000000.safetensors"]
    assert not output.exists()
    run.generate_one(causal, run.Job(planned, PROMPT, 0, output), resume=True)
    assert output.is_file()


def test_a_picture_that_is_none_leaves_the_finished_one(tiny: Any, tmp_path: Path) -> None:
    output, planned = tmp_path / "a.mp4", made(tiny, "direct", frames=17, steps=1)
    run.generate_one(tiny, run.Job(planned, PROMPT, 0, output))
    before = output.read_bytes()
    with spoilt(tiny.pipe.vae.decoder.conv_out.bias, float("nan")), pytest.raises(LonggenError, match="VAE's picture") as caught:
        run.generate_one(tiny, run.Job(planned, PROMPT, 1, output))
    assert "weights again" in caught.value.hint
    assert output.read_bytes() == before
    assert (rundir.run_folder(output) / "latents.safetensors").is_file()


@pytest.mark.parametrize("name", ["direct", "fifo"])
def test_an_embedding_that_is_not_finite_is_told_from_latents(tiny: Any, name: str, tmp_path: Path) -> None:
    weight = next(tiny.pipe.text_encoder.parameters())
    kept, (sets, sample, _) = weight.data.clone(), LOOPS[name]
    weight.data.fill_(float("nan"))
    try:
        with pytest.raises(LonggenError, match="the text encoder's embedding of"):
            run.generate_one(tiny, run.Job(made(tiny, name, sets, **sample), PROMPT, 0, tmp_path / "a.mp4"))
    finally:
        weight.data.copy_(kept)


def test_a_bench_refuses_it_and_says_why(tiny: Any) -> None:
    with spoilt(weight_of(tiny), float("nan")):
        rows = compose({"direct": made(tiny, "direct", frames=17, steps=2)}, [], lambda _: tiny, tiny.model_settings, PROMPT).rows
    assert rows[0].error is not None
    assert rows[0].error.startswith("step 1 of 2: the latents are not finite")


def test_what_is_in_use_is_what_to_try_first() -> None:
    said = finite.remedies(
        ModelSettings("cpu", "fp16", lora=("a:0.5",), quantize="fp8", cache="mag", attention="native", compile=True)
    )
    order = ["--lora a:0.5", "--quantize fp8", "--cache mag", "--compile", "--dtype bf16 or fp32", "than native", "weights again"]
    assert [said.index(one) for one in order] == sorted(said.index(one) for one in order)
