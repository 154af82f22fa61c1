"""One video on several ranks: two gloo processes against one, every preset on small Wan and a causal Wan, some on LTX-Video."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ContextParallelConfig

from longgen import ranks
from longgen.backbones.settings import ModelSettings
from longgen.errors import UsageError
from longgen.pipelines import foreign_hooks, parallel
from tests import warm
from tests.backbones import family
from tests.ranks import worker
from tests.stacks import STACKS

ROOT = Path(__file__).parent.parent


def torchrun(size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script on `size` ranks of this machine, which talk over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = ["--nproc-per-node", str(size), "--master-addr", "127.0.0.1", "--master-port", str(port), *arguments]
    return warm.run(ROOT, given, warm.TORCHRUN, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")


@pytest.fixture(scope="module")
def apart(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    folder = tmp_path_factory.mktemp("ranks")
    for name in (*worker.WHOLE, *worker.OTHERS, *worker.CLIPS):
        (folder / name).symlink_to(model_folder(name))
    done = torchrun(2, str(ROOT / "tests" / "ranks" / "worker.py"), str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "apart.json").read_text())


def test_every_preset_is_equal_on_two_ranks(apart: dict[str, tuple[float, float]]) -> None:
    assert {name: far for name, (far, most) in apart.items() if not far <= 1e-6 * max(1.0, most)} == {}
    ran = {name.split()[1] for name in apart}
    assert {*STACKS} - ran == {"svi", "deep-forcing-pc"}, "one needs latents beside the noise, one chooses over all heads"
    assert sum(" of two prompts" in name for name in apart) == 4


def test_what_cannot_be_split_is_refused(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="gpus = 2, and there is 1 rank"):
        parallel.check_ranks(2)
    backbone = family.loaded(model_folder("wan"))
    backbone.pipe.transformer._parallel_config = ContextParallelConfig(ulysses_degree=2)  # somebody's own
    with pytest.raises(UsageError, match="runs in parallel"):
        foreign_hooks.check_model(backbone.pipe, backbone.transformers)


def test_a_process_alone_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.current() == ranks.ALONE == ranks.start("cpu")
    assert ranks.agree(["seed", 7]) == ["seed", 7]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks.from_environment() == ranks.Ranks(1, 4, 0)
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(UsageError, match="whole numbers from 0 on, as torchrun sets them"):
        ranks.from_environment()


def test_the_number_of_ranks_is_no_part_of_a_run() -> None:
    assert ModelSettings("cpu", "fp32", gpus=2, guidance_parallel=True).stored() == ModelSettings("cpu", "fp32").stored()
    given: Any = 0
    with pytest.raises(UsageError, match="gpus = 0 is not supported"):
        ModelSettings("cpu", "fp32", gpus=given)
    assert not torch.distributed.is_initialized()
