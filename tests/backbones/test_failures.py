"""Loading that fails where the files are not at fault: memory, descriptors and permissions are named, each with its exit code."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from longgen import run
from longgen.backbones.find import find
from longgen.backbones.settings import ModelSettings
from longgen.backbones.system_errors import system_failure
from longgen.backbones.wan import WAN_1_3B
from longgen.errors import LonggenError, MissingError, OutOfMemoryError
from tests.models import checkpoint, published


def limited(name: Path | str, limit: int, amount: int, used: int) -> tuple[str, int, str]:
    """The error of loading `name` in a child that may have `amount` bytes of memory, or descriptors, more than are in `used`."""
    spec = find(str(name))
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which the child does not touch
        child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(limit, (used + amount, used + amount))
            run.load(spec, ModelSettings("cpu", "fp32"))
            said = "nothing failed"
        except LonggenError as error:
            said = json.dumps([type(error).__name__, error.exit_code, error.given])
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as answer:
        return tuple(json.loads(answer.read()))


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.fixture
def large(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder of a pipeline whose transformer has 400 MiB of weights, which are a hole in the file."""
    folder = shutil.copytree(model_folder("wan"), tmp_path / "large")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"ffn_dim": 2**19}))
    with torch.device("meta"):
        weights = WanTransformer3DModel.from_config(json.loads(config.read_text())).state_dict()
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    checkpoint.sparse(file, {name: ("F32", tuple(weight.shape)) for name, weight in weights.items()})
    return folder


@pytest.mark.parametrize("mib", [60, 300])
def test_memory_that_runs_out_while_loading_is_named(model_folder: Callable[[str], Path], large: Path, mib: int) -> None:
    run.load(find(str(model_folder("wan"))), ModelSettings("cpu", "fp32"))  # so that the libraries' own modules are there
    kind, code, given = limited(large, resource.RLIMIT_AS, mib * 2**20, memory())
    assert (kind, code) == ("OutOfMemoryError", 4)
    assert given.startswith("out of memory while loading ")


def test_descriptors_that_run_out_while_loading_are_named(model_folder: Callable[[str], Path]) -> None:
    run.load(find(str(model_folder("wan"))), ModelSettings("cpu", "fp32"))
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    kind, code, given = limited(model_folder("wan"), resource.RLIMIT_NOFILE, -highest, highest)
    assert (kind, code) == ("LonggenError", 1)
    assert "too many files are open already" in given


def test_memory_that_runs_out_in_a_conversion_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shapes = {checkpoint.wans_name(name): weight.shape for name, weight in published.transformer(WAN_1_3B).state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save({"generator_ema": {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}}, path)
    kind, code, given = limited(path, resource.RLIMIT_AS, 200 * 2**20, memory())
    assert (kind, code) == ("OutOfMemoryError", 4)
    assert given.startswith(f"out of memory while loading {path}, which is converted once: ")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def chained(*errors: BaseException) -> BaseException:
    for outer, inner in itertools.pairwise(errors):
        outer.__context__ = inner
    return errors[0]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError(), OutOfMemoryError, "out of memory while loading W: the host has no more"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
         OutOfMemoryError, "you tried to allocate 9 bytes"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), OutOfMemoryError, "2.00 GiB"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OutOfMemoryError, "Cannot allocate memory"),
        (RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"), OutOfMemoryError, "unable to mmap"),
        (chained(OSError("Unable to load weights"), ValueError("x"), MemoryError()), OutOfMemoryError, "no more"),
        (OSError(errno.EMFILE, "Too many open files"), LonggenError, "W cannot be opened: too many files are open already"),
        (chained(ValueError("x"), OSError(errno.EACCES, "Permission denied", "/w")), MissingError, "/w may not be read"),
        (OSError(errno.EIO, "Input/output error"), LonggenError, "the disk or the network folder reports an error"),
    ],
)  # fmt: skip
def test_the_chain_of_an_error_tells_its_reason(error: Exception, kind: type[LonggenError], message: str) -> None:
    found = system_failure(error, "W")
    assert type(found) is kind
    assert message in found.given
    assert found.expected
    assert found.hint


@pytest.mark.parametrize(
    "error", [ValueError("invalid header"), KeyError("a"), OSError(errno.ENOENT, "No such file"), RuntimeError("size mismatch, 12")]
)
def test_what_is_the_file_s_own_fault_is_not_explained_away(error: Exception) -> None:
    assert system_failure(error, "W") is None
