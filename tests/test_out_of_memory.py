"""Memory that runs out in each phase of a run on a simulated GPU: exit code 4, what was computed is kept, a remedy is named."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from typer.testing import CliRunner, Result

from longgen import cost, device, out_of_memory, planner, preset
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.backbones.system_errors import system_failure
from longgen.checkpoint import load_tensors
from longgen.cli import app
from longgen.errors import LonggenError, OutOfMemoryError
from longgen.units import human_bytes
from tests.simcuda import simulated

LACK = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
RUN = ["generate", "--prompt", "a red ball", "--backbone", "tiny", "--device", "cuda", "--dtype", "fp32", "--frames", "17",
       "--steps", "4", "--size", "64x64", "--seed", "1", "--quiet"]  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(LACK),
        MemoryError(),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("HIP error: hipErrorOutOfMemory"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB, max allowed: 18 GB)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_lack_of_memory_is_one_by_every_way(error: Exception) -> None:
    assert device.lacks_memory(error)
    failure = system_failure(error, "weights")
    assert isinstance(failure, OutOfMemoryError)
    wrapped = ValueError("a library's own words")
    wrapped.__cause__ = error
    with (
        pytest.raises(OutOfMemoryError) as told,
        out_of_memory.translate_oom("sampling", ModelSettings("cuda", "bf16"), "it is kept"),
    ):
        raise wrapped
    assert (" ".join(str(error).split())[:200] or "the host has no more") in told.value.given


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("out of resource: shared memory, Required: 114688, Hardware limit: 101376. Reducing block sizes may help."),
        RuntimeError("Expected contiguous tensor, but found memory format channels_last"),
        RuntimeError("memory_efficient attention has not been compiled"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
        OSError(errno.ENOENT, "No such file or directory", "out of memory.mp4"),
        KeyboardInterrupt(),
    ],
)
def test_another_error_that_names_memory_is_none(error: BaseException) -> None:
    assert not device.lacks_memory(error)
    with pytest.raises(type(error)) as told, out_of_memory.translate_oom("sampling", ModelSettings("cuda", "bf16"), ""):
        raise error
    assert told.value is error


def planned(name: str = "direct", backbone: str = "wan2.1-1.3b", frames: int = 321) -> Any:
    return planner.build(preset.load(name, (), preset.Sample(frames=frames)), SPECS[backbone])


def test_the_cheapest_remedy_and_its_saving_are_those_of_the_cost_model() -> None:
    plan = planned()
    peaks = {offload: cost.memory_bytes(plan, "bf16", offload)["peak"] for offload in ("none", "model", "group")}
    remedy = out_of_memory.cheapest(plan, ModelSettings("cuda", "bf16"))
    assert remedy == ("--offload model", peaks["none"] - peaks["model"], peaks["none"], True)
    assert str(remedy).endswith(f"of {human_bytes(peaks['none'])}, estimated")
    assert out_of_memory.remedies(plan, ModelSettings("cuda", "bf16", offload="model"))[0].saving == peaks["model"] - peaks["group"]
    assert out_of_memory.cheapest(plan, ModelSettings("cuda", "bf16", offload="group")) is None
    assert out_of_memory.cheapest(plan, ModelSettings("cpu", "bf16")) is None


def test_clips_that_are_denoised_together_can_be_taken_apart() -> None:
    plan, settings = planned("gen-l-video"), ModelSettings("cuda", "bf16", offload="group", clip_batch=4)
    remedy = out_of_memory.cheapest(plan, settings)
    assert remedy is not None
    assert (remedy.option, remedy.goes_on) == ("--clip-batch 1", False)
    assert remedy.saving == 3 * cost.memory_bytes(plan, "bf16")["activations"]
    with pytest.raises(OutOfMemoryError) as told, out_of_memory.translate_oom("sampling", settings, "it is kept", plan):
        raise torch.OutOfMemoryError(LACK)
    assert f"{remedy} (the run starts over); or take fewer --frames" in told.value.hint


def test_a_host_that_runs_out_is_not_told_to_offload() -> None:
    with pytest.raises(OutOfMemoryError) as told, out_of_memory.translate_oom("x", ModelSettings("cuda", "bf16"), "", planned()):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
    assert "the host's memory ran out, not the GPU's" in told.value.hint


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with simulated():
        yield


def longgen(*more: str, output: str = "ball.mp4") -> Result:
    return CliRunner().invoke(app, [*RUN, "-o", output, *more])


def fail(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int = 0) -> None:
    """Memory runs out in that call of `owner.name`."""
    real, calls = getattr(owner, name), iter(range(10**6))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise torch.OutOfMemoryError(LACK)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def lacking(*args: Any, **kwargs: Any) -> Any:
    raise torch.OutOfMemoryError(LACK)


PHASES = {  # phase -> the method that fails, the number of its call, and how the stage is named
    "loading": (diffusers.DiffusionPipeline, "to", 0, "loading the model"),
    "text": (transformers.UMT5EncoderModel, "forward", 0, "sampling"),
    "first step": (diffusers.WanTransformer3DModel, "forward", 0, "sampling"),
    "later step": (diffusers.WanTransformer3DModel, "forward", 4, "sampling"),
    "decode": (diffusers.models.autoencoders.autoencoder_kl_wan.WanDecoder3d, "forward", 2, "decoding"),
}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("phase", PHASES)
def test_each_phase_has_the_exit_code_and_goes_on(phase: str) -> None:
    owner, name, call, stage = PHASES[phase]
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, owner, name, call)
        done = longgen()
    assert done.exit_code == 4, done.stderr
    assert f"out of memory while {stage}: CUDA out of memory" in done.stderr
    assert "saves about" in done.stderr
    assert "estimated" in done.stderr
    if phase == "later step":
        assert Path("ball.run/checkpoint.safetensors").is_file()
        assert "--resume goes on" in done.stderr
    if phase == "decode":
        assert Path("ball.run/latents.safetensors").is_file()
        assert "--vae-tiling" in done.stderr
    if phase not in ("later step", "decode"):  # nothing was computed
        return
    done = longgen("--resume", "--offload", "model")  # as the message says
    assert done.exit_code == 0, done.stderr
    resumed = load_tensors(Path("ball.run/latents.safetensors"))[0]["latents"]
    if phase == "later step":
        assert longgen(output="whole.mp4").exit_code == 0
        assert torch.equal(resumed, load_tensors(Path("whole.run/latents.safetensors"))[0]["latents"])


@pytest.mark.usefixtures("gpu")
def test_bench_without_a_step_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    args = [
        "bench",
        "--backbone",
        "tiny",
        "--device",
        "cuda",
        "--dtype",
        "fp32",
        "--frames",
        "17",
        "--size",
        "64x64",
        "--presets",
        "direct",
        "-q",
    ]
    monkeypatch.setattr(diffusers.WanTransformer3DModel, "forward", lacking)
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 4, done.stderr
    assert "--offload model saves about" in done.stderr


@pytest.mark.usefixtures("gpu")
def test_a_probe_keeps_its_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    args = [
        "probe",
        "--backbone",
        "tiny",
        "--device",
        "cuda",
        "--dtype",
        "fp32",
        "--quick",
        "--frames",
        "97",
        "--steps",
        "2",
        "--size",
        "64x64",
        "-q",
    ]
    monkeypatch.setattr(diffusers.WanTransformer3DModel, "forward", lacking)
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 4, done.stderr
    assert "out of memory while probing" in done.stderr
    assert "finished runs are kept" in done.stderr


def test_a_library_that_lacks_memory_elsewhere_has_the_exit_code_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longgen.cost.memory_bytes", lacking)
    done = CliRunner().invoke(app, ["plan", "--backbone", "tiny", "--preset", "direct"])
    assert done.exit_code == 4, done.stderr
    assert issubclass(OutOfMemoryError, LonggenError)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells anonymous memory from files")
def test_mapped_files_are_not_counted_as_memory(tmp_path: Path) -> None:
    """Weights that are mapped can be dropped by the system, and are read again."""
    code = """
import mmap, sys
from longgen import device
start = device.memory_bytes("cpu")
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as weights:
    total = sum(weights[place] for place in range(0, len(weights), 4096))
    mapped = device.memory_bytes("cpu") - start
    held = bytearray(b"1" * 100 * 2**20)
    print(mapped, device.memory_bytes("cpu") - start)
"""
    file = tmp_path / "weights"
    file.write_bytes(b"0" * 200 * 2**20)
    run = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    mapped, held = map(int, run.stdout.split())
    assert mapped < 20 * 2**20
    assert 90 * 2**20 < held < 250 * 2**20
