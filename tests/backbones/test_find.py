"""Backbones found by name, folder and hub id: what is read from the configs is what the models have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from longgen.backbones.find import find
from longgen.backbones.loading import family_of
from longgen.backbones.spec import SPECS, TINY, WAN_1_3B, BackboneSpec
from longgen.errors import LonggenError, MissingError, UsageError, unknown_name
from tests.models import published

PUBLISHED = [spec for spec in SPECS.values() if spec.name != "tiny"]
SMALL = ["wan", "wan-experts", "wan-ti2v", "ltx", "cogvideox", "cogvideox-2b", "hunyuan"]
NOT_OF_THE_CONFIGS = ("name", "source", "about", "license", "parameters", "companions", "size", "dtype", "steps")


@pytest.mark.parametrize("spec", PUBLISHED, ids=lambda spec: spec.name)
def test_a_folder_with_a_published_model_s_configs_has_its_spec(spec: BackboneSpec, tmp_path: Path) -> None:
    """Also what the configs do not say, as the guidance of the second expert. Weights are counted roughly without files."""
    published.write_configs(spec, tmp_path)
    found = find(str(tmp_path))
    for part in vars(spec):
        if part not in NOT_OF_THE_CONFIGS:
            assert getattr(found, part) == getattr(spec, part), part
    assert found.source == str(tmp_path)
    assert found.parameters == pytest.approx(spec.parameters, rel=0.1)


def test_probed_layers_are_those_of_the_model_that_was_probed(tmp_path: Path) -> None:
    published.write_configs(WAN_1_3B, tmp_path)
    assert find(str(tmp_path)).verdicts == WAN_1_3B.verdicts
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 31}))
    assert find(str(tmp_path)).verdicts == {}


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_s_spec_is_what_loading_it_gives(model_folder: Callable[[str], Path], name: str) -> None:
    folder = model_folder(name)
    spec = find(str(folder))
    pipe = DiffusionPipeline.from_pretrained(folder)
    transformers = [part for part in (pipe.transformer, getattr(pipe, "transformer_2", None)) if part is not None]
    others = [getattr(pipe, part, None) for part in ("text_encoder", "text_encoder_2", "vae")]

    def count(parts: list[Any]) -> int:
        return sum(p.numel() for part in parts if part is not None for p in part.parameters())

    config = pipe.transformer.config
    assert type(pipe) is family_of(spec).kind
    assert (spec.experts, spec.parameters) == (len(transformers), count(transformers))
    assert spec.companions == pytest.approx(count(others), abs=2 * spec.latent_channels)  # LTX keeps two tables beside
    assert all(len(family_of(spec).layers(transformer)) == spec.layers for transformer in transformers)
    assert (spec.heads, spec.head_dim) == (config.num_attention_heads, config.attention_head_dim)
    assert spec.latent_channels == config.in_channels
    feed_forward = max(p.shape[0] for name, p in pipe.transformer.named_parameters() if ".ff" in name and p.ndim == 2)
    assert name == "hunyuan" or spec.ffn_dim == feed_forward


@pytest.mark.parametrize(("name", "size", "latent"), [("wan-ti2v", (96, 64), (4, 6)), ("hunyuan", (96, 64), (8, 12))])
def test_strides_are_the_vae_s(
    model_folder: Callable[[str], Path], name: str, size: tuple[int, int], latent: tuple[int, int]
) -> None:
    spec = find(str(model_folder(name)))
    vae = family_of(spec).vae_kind.from_pretrained(model_folder(name), subfolder="vae")
    with torch.no_grad():
        video = vae.decode(torch.zeros(1, spec.latent_channels, 3, *latent)).sample
    assert video.shape == (1, 3, 2 * spec.stride_t + 1, size[1], size[0])
    assert (size[1] // spec.stride_hw, size[0] // spec.stride_hw) == latent


def test_names_and_hub_ids_of_known_models_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    for spec in SPECS.values():
        assert find(spec.name) is spec
        assert find(spec.source) is spec or spec is TINY  # whose source is a folder


def test_a_hub_id_in_the_cache_is_read_from_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published.write_configs(WAN_1_3B, tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda hub_id, part, local_files_only: tmp_path / part)
    found = find("somebody/finetune")
    assert (found.source, found.layers, found.family) == ("somebody/finetune", 30, "wan")


def test_a_hub_id_that_cannot_be_had_is_named() -> None:
    with pytest.raises(MissingError, match="--backbone nobody/nothing is neither in the local cache nor to be had"):
        find("nobody/nothing")


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no backbone is called 'wan2.1-1.3' \(did you mean wan2.1-1.3b"):
        find("wan2.1-1.3")
    assert "tiny" in unknown_name("backbone", "tini", SPECS, "").given


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such folder"):
        find(str(tmp_path / "none"))
    with pytest.raises(MissingError, match=r"model_index\.json is not there"):
        find(str(tmp_path))


CHANGES: dict[str, tuple[str, str, Any, str]] = {  # case -> model, file, its new value or the key to remove, message
    "another pipeline": ("wan", "model_index.json", {"_class_name": "MochiPipeline"}, "is a MochiPipeline"),
    "no class": ("wan", "model_index.json", "_class_name", "model_index.json has no _class_name"),
    "no layers": ("wan", "transformer/config.json", "num_layers", "transformer/config.json has no num_layers"),
    "no patch": ("wan", "transformer/config.json", {"patch_size": None}, "are not as diffusers writes them"),
    "no heads": ("hunyuan", "transformer/config.json", "num_attention_heads", "has no num_attention_heads"),
    "no stride": ("hunyuan", "vae/config.json", "temporal_compression_ratio", "vae/config.json has no temporal_compression_ratio"),
    "no patch in time": ("ltx", "vae/config.json", "patch_size_t", "vae/config.json has no patch_size_t"),
    "no frames": ("cogvideox", "transformer/config.json", "sample_frames", "transformer/config.json has no sample_frames"),
    "CogVideoX 1.5": ("cogvideox", "transformer/config.json", {"patch_size_t": 2}, "CogVideoX 1.5 joins two latent frames"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_model_that_cannot_be_driven_is_refused(model_folder: Callable[[str], Path], tmp_path: Path, case: str) -> None:
    model, file, change, message = CHANGES[case]
    folder = tmp_path / "model"
    shutil.copytree(model_folder(model), folder)
    content = json.loads((folder / file).read_text())
    content = content | change if isinstance(change, dict) else {key: v for key, v in content.items() if key != change}
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message) as caught:
        find(str(folder))
    assert caught.value.accepted
    assert caught.value.do


@pytest.mark.parametrize(("text", "message"), [("{", "config.json is damaged"), ("[1]", "transformer/config.json is no table")])
def test_a_damaged_config_is_named(model_folder: Callable[[str], Path], tmp_path: Path, text: str, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder("wan"), folder)
    (folder / "transformer" / "config.json").write_text(text)
    with pytest.raises(LonggenError, match=message):
        find(str(folder))
