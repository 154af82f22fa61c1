"""The printed download commands bring what is loaded and nothing else: no single files beside the diffusers folders."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from longgen.backbones import hub
from longgen.backbones.find import find
from longgen.backbones.registry import SPECS, family_of
from longgen.backbones.settings import ModelSettings
from longgen.pipelines.loading import load
from tests.models import small

PUBLISHED = [spec for spec in SPECS.values() if not spec.built_in]
SINGLE_FILES = ("ltx-video-2b-v0.9.safetensors", "ltxv-13b-0.9.8-dev.safetensors", "media/example.mp4", "README.md")


@pytest.mark.parametrize("name", small.PLAIN)
def test_what_is_included_loads_and_the_rest_stays_there(name: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = model_folder(name)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    spec = find(str(folder))
    taken = [*filter_repo_objects([*files, *SINGLE_FILES], allow_patterns=hub.download_patterns(spec))]
    assert not set(taken) & set(SINGLE_FILES)
    for file in taken:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    assert load(find(str(tmp_path)), ModelSettings("cpu", "fp32")).pipe.transformer is not None


@pytest.mark.parametrize("spec", PUBLISHED, ids=lambda spec: spec.name)
def test_every_part_of_the_pipeline_is_named(spec: Any) -> None:
    import diffusers

    patterns = hub.download_patterns(spec)
    components = [*getattr(diffusers, family_of(spec).pipeline)._get_signature_types()]
    wanted = {"scheduler", "vae", *(part for part in components if part.startswith(("text_encoder", "tokenizer")))}
    assert wanted <= {pattern.partition("/")[0] for pattern in patterns}
    assert ("transformer_2/*" in patterns) == (spec.experts == 2)
    assert any(fnmatch.fnmatch("transformer/config.json", pattern) for pattern in patterns)
    assert ("transformer/*" in patterns) == (spec.checkpoint is None)


@pytest.mark.parametrize("spec", PUBLISHED, ids=lambda spec: spec.name)
def test_the_hubs_own_program_takes_the_commands(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.cli import hf

    calls = []
    monkeypatch.setattr("huggingface_hub.cli.download.snapshot_download", lambda **options: calls.append(options) or "FOLDER")
    monkeypatch.setattr("huggingface_hub.cli.download.hf_hub_download", lambda **options: calls.append(options) or "FILE")
    commands = hub.download_commands(spec)
    for command in commands:
        hf.app(args=shlex.split(command)[1:], standalone_mode=False)
    assert [call["repo_id"] for call in calls] == [
        "/".join(place.split("/")[:2]) for place in (spec.source, spec.checkpoint, spec.lora) if place
    ]
    assert calls[0]["allow_patterns"] == hub.download_patterns(spec)
    assert all(call["local_dir"] == "FOLDER" for call in calls)


def test_weights_that_are_here_are_not_downloaded(tmp_path: Path) -> None:
    spec = replace(SPECS["self-forcing"], checkpoint=str(tmp_path))
    assert len(hub.download_commands(spec)) == 1
