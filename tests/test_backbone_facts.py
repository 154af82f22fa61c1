"""What `longgen backbones show` says that a backbone needs, and what of it is on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from longgen import backbone_facts, cost, planner, preset
from longgen.backbones.registry import SPECS


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the cached snapshot of every repository."""
    monkeypatch.setattr("longgen.backbones.hub.cached_folder", lambda hub_id: tmp_path / hub_id)
    return tmp_path


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0" * 10)


def test_files_on_disk_are_those_that_are_loaded_and_what_is_missing_is_named(snapshot: Path) -> None:
    spec = SPECS["longlive-2"]
    assert spec.checkpoint is not None
    folder = snapshot / spec.source
    write(folder, "model_index.json", "vae/config.json", "vae/x.safetensors", "transformer/model.safetensors", "scheduler/a")
    found = backbone_facts.on_disk(spec)
    assert found["bytes"] == 40, "the transformer's own weights are not read where a checkpoint replaces them"
    assert {*found["missing"]} == {"text_encoder/*", "tokenizer/*", "transformer/config.json", spec.checkpoint}
    write(folder, "text_encoder/a", "tokenizer/a", "transformer/config.json")
    owner, name, *inner = spec.checkpoint.split("/")
    write(snapshot / owner / name, "/".join(inner))
    found = backbone_facts.on_disk(spec)
    assert (found["bytes"], found["missing"]) == (80, [])
    assert "downloaded  yes, 80 B" in backbone_facts.backbone_text(spec)


def test_memory_is_that_of_the_plan_at_the_length_that_is_quoted() -> None:
    spec = SPECS["wan2.1-1.3b"]
    plan = planner.build(preset.load("direct", sample=preset.Sample(frames=321)), spec)
    found = backbone_facts.needs(spec)
    assert found["peak_bytes"]["group"] == cost.memory_bytes(plan, "bf16", "group")["peak"]
    assert found["weights_bytes"]["transformer"] == 2 * spec.parameters


@pytest.mark.parametrize("name", SPECS)
def test_every_backbone_tells_its_needs_and_every_published_one_its_sources(name: str) -> None:
    spec = SPECS[name]
    found, sources = backbone_facts.needs(spec), backbone_facts.published(spec)
    assert found["frames"] >= backbone_facts.LONG_PX - 40
    assert all("@" in row["source"] for row in sources.values())
    assert bool(sources) != spec.built_in
