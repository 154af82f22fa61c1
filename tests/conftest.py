"""Shared fixtures: the shipped `tiny` model, loaded once, and plans for it."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models are slower on two threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may ask the network
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")  # Inductor would compile a program for each kind of vectors, eight seconds

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from longgen import planner, preset
from longgen.backbones.wan import TINY
from longgen.plan import Plan

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported and collected is not garbage: looking through it takes half a second, each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def timings_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Seconds of tests are no measure of the user's machine."""
    from longgen import cache_folder, timings

    with pytest.MonkeyPatch.context() as patch:
        own = tmp_path_factory.mktemp("timings")
        given = cache_folder.cache_folder
        patch.setattr(timings, "cache_folder", lambda kind: given(kind) if "XDG_CACHE_HOME" in os.environ else own)
        yield


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The `tiny` backbone on the CPU in float32."""
    from longgen.backbones.settings import ModelSettings
    from longgen.pipelines.loading import load

    return load(TINY, ModelSettings("cpu", "fp32"))


@pytest.fixture(scope="session")
def causal() -> Any:
    """A causal backbone of random weights on the CPU in float32; nine latent frames are its native length."""
    from tests.models import wan

    return wan.causal()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a whole small diffusers pipeline of random weights: model_folder("ltx"). Names: tests/models/small.py."""
    from tests.models import small

    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            small.build(name, made[name])
        return made[name]

    return build


@pytest.fixture(scope="session")
def tiny_plan() -> Callable[..., Plan]:
    """A plan for `tiny`: tiny_plan("freespec", frames=161, steps=2, sets=["freespec.alpha=0"])."""

    def make(name: str, sets: tuple[str, ...] = (), **sample: Any) -> Plan:
        return planner.build(preset.load(name, sets, preset.Sample(**sample)), TINY)

    return make
