"""Backbones found by name, folder and hub id: what is read from the configs is what the models have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, WanTransformer3DModel

from longgen import planner, preset
from longgen.backbones.causal_wan import LONGLIVE, SELF_FORCING
from longgen.backbones.find import find
from longgen.backbones.registry import SPECS, adapter_of, family_of
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import TINY, WAN_1_3B, WAN_2_2_5B, WAN_14B
from longgen.errors import LonggenError, MissingError, UsageError, unknown_name
from tests.models import checkpoint, published, small

PUBLISHED = [spec for spec in SPECS.values() if spec.name != "tiny" and not spec.causal]
NOT_OF_THE_CONFIGS = (
    "name", "source", "about", "license", "parameters", "companions", "size", "dtype", "steps", "advised", "advised_in"
)  # fmt: skip
OF_THE_SCHEDULER = ("scheduler", "checkpoint_shift", "token_shift")


@pytest.mark.parametrize("spec", PUBLISHED, ids=lambda spec: spec.name)
def test_a_folder_with_a_published_model_s_configs_has_its_spec(spec: BackboneSpec, tmp_path: Path) -> None:
    """Also what the configs do not say, as the guidance of the second expert. Weights are counted roughly without files."""
    published.write_configs(spec, tmp_path)
    found = find(str(tmp_path))
    for part in vars(spec):
        if part not in NOT_OF_THE_CONFIGS + OF_THE_SCHEDULER:
            assert getattr(found, part) == getattr(spec, part), part
    assert found.source == str(tmp_path)
    assert found.parameters == pytest.approx(spec.parameters, rel=0.1)


@pytest.mark.parametrize("spec", {(spec.family, spec.scheduler): spec for spec in PUBLISHED}.values(), ids=lambda spec: spec.name)
def test_its_scheduler_says_its_shift(spec: BackboneSpec, tmp_path: Path) -> None:
    """As the published one does; without the file nothing is known of the shift, and with values that are none too."""
    published.write_configs(spec, tmp_path)
    for file in tmp_path.glob("scheduler/*"):
        file.unlink()
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", spec.scheduler]}))
    unknown = find(str(tmp_path))
    assert (unknown.scheduler, unknown.checkpoint_shift, unknown.token_shift) == (spec.scheduler, None, None)
    for entry in ({"a": 1}, 7, [None], ["diffusers", 7], None):
        index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": entry}))
        assert find(str(tmp_path)).scheduler  # that of the published model
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", spec.scheduler]}))
    scheduler = family_of(spec).random_pipeline(spec, [published.transformer(spec)] * spec.experts, None).scheduler
    scheduler.save_config(tmp_path / "scheduler")
    found = find(str(tmp_path))
    assert [getattr(found, part) for part in OF_THE_SCHEDULER] == [getattr(spec, part) for part in OF_THE_SCHEDULER]
    config = tmp_path / "scheduler" / "scheduler_config.json"
    for broken in ("[1]", '{"use_flow_sigmas": true, "flow_shift": "3"}', '{"shift": -1}', '{"use_dynamic_shifting": true}'):
        config.write_text(broken)
        assert find(str(tmp_path)) == unknown


def test_probed_layers_are_those_of_the_model_that_was_probed(tmp_path: Path) -> None:
    published.write_configs(WAN_1_3B, tmp_path)
    assert find(str(tmp_path)).verdicts == WAN_1_3B.verdicts
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 31}))
    assert find(str(tmp_path)).verdicts == {}


@pytest.mark.parametrize("name", small.ALL)
def test_a_folder_s_spec_is_what_loading_it_gives(model_folder: Callable[[str], Path], name: str) -> None:
    folder = model_folder(name)
    spec = find(str(folder))
    pipe = DiffusionPipeline.from_pretrained(folder)
    transformers = [part for part in (pipe.transformer, getattr(pipe, "transformer_2", None)) if part is not None]
    parts = ("text_encoder", "text_encoder_2", "image_encoder", "vae", "connectors", "audio_vae", "vocoder")
    others = [getattr(pipe, part, None) for part in parts]

    def count(parts: list[Any]) -> int:
        return sum(p.numel() for part in parts if part is not None for p in part.parameters())

    config = pipe.transformer.config
    assert type(pipe) is adapter_of(spec).kind_of(spec)
    learned = pipe.transformer.state_dict().get("patch_embed.pos_embedding")  # CogVideoX I2V's, which its file has too
    kept = 0 if learned is None else learned.numel()
    assert (spec.experts, spec.parameters) == (len(transformers), count(transformers) + kept)
    tables = 4 * spec.latent_channels  # LTX keeps two beside, and of sound two more
    assert spec.companions == pytest.approx(count(others), abs=tables)
    assert all(len(adapter_of(spec).layers(transformer)) == spec.layers for transformer in transformers)
    assert (spec.heads, spec.head_dim) == (config.num_attention_heads, config.attention_head_dim)
    assert (spec.latent_channels + spec.condition_channels) // spec.token_lat == config.in_channels
    feed_forward = max(p.shape[0] for name, p in pipe.transformer.named_parameters() if ".ff" in name and p.ndim == 2)
    assert spec.family in ("hunyuan", "hunyuan15") or spec.ffn_dim == feed_forward


@pytest.mark.parametrize(("name", "size", "latent"), [("wan-ti2v", (96, 64), (4, 6)), ("hunyuan", (96, 64), (8, 12))])
def test_strides_are_the_vae_s(
    model_folder: Callable[[str], Path], name: str, size: tuple[int, int], latent: tuple[int, int]
) -> None:
    spec = find(str(model_folder(name)))
    vae = adapter_of(spec).vae_kind.from_pretrained(model_folder(name), subfolder="vae")
    with torch.no_grad():
        video = vae.decode(torch.zeros(1, spec.latent_channels, 3, *latent)).sample
    assert video.shape == (1, 3, 2 * spec.stride_t + 1, size[1], size[0])
    assert (size[1] // spec.stride_hw, size[0] // spec.stride_hw) == latent


def test_names_and_hub_ids_of_known_models_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    for spec in SPECS.values():
        assert find(spec.name) is spec
        assert find(spec.source) is spec or spec is TINY or spec.causal  # the source is a folder, or the base of others too


def test_a_hub_id_in_the_cache_is_read_from_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published.write_configs(WAN_1_3B, tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda hub_id, part, local_files_only: tmp_path / part)
    found = find("somebody/finetune")
    assert (found.source, found.layers, found.family) == ("somebody/finetune", 30, "wan")


@pytest.mark.parametrize(
    ("changes", "scale"), [({}, 6.0), ({"guidance_scale": 1.0}, 1.0), ({"enabled": False}, 1.0), ({"guidance_scale": "1"}, 6.0)]
)
def test_guidance_is_what_the_guider_says(
    changes: dict[str, Any], scale: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model that is distilled for guidance has the configs of one that is not, but for its guider's."""
    published.write_configs(SPECS["hunyuanvideo-1.5"], tmp_path)
    diffusers.ClassifierFreeGuidance(6.0).save_config(tmp_path / "guider")
    guider = tmp_path / "guider" / "guider_config.json"
    guider.write_text(json.dumps(json.loads(guider.read_text()) | changes))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda hub_id, part, local_files_only: tmp_path / part)
    assert [find(name).guidance_scale for name in (str(tmp_path), "somebody/distilled")] == [scale, scale]


def test_few_steps_from_text_are_refused(tmp_path: Path) -> None:
    published.write_configs(SPECS["hunyuanvideo-1.5"], tmp_path)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_meanflow": True}))
    with pytest.raises(UsageError, match="use_meanflow = true"):
        find(str(tmp_path))


def test_a_hub_id_that_cannot_be_had_is_named() -> None:
    with pytest.raises(MissingError, match="--backbone nobody/nothing is not in the local cache and cannot be fetched"):
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
    "no patch": ("wan", "transformer/config.json", {"patch_size": None}, "config.json says patch_size = null"),
    "no heads": ("hunyuan", "transformer/config.json", "num_attention_heads", "has no num_attention_heads"),
    "no stride": ("hunyuan", "vae/config.json", "temporal_compression_ratio", "vae/config.json has no temporal_compression_ratio"),
    "no patch in time": ("ltx", "vae/config.json", "patch_size_t", "vae/config.json has no patch_size_t"),
    "no frames": ("cogvideox", "transformer/config.json", "sample_frames", "transformer/config.json has no sample_frames"),
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
    assert caught.value.expected
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"), [("{", "config.json is damaged"), ("[1]", "transformer/config.json is not a JSON object")]
)
def test_a_damaged_config_is_named(model_folder: Callable[[str], Path], tmp_path: Path, text: str, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder("wan"), folder)
    (folder / "transformer" / "config.json").write_text(text)
    with pytest.raises(LonggenError, match=message):
        find(str(folder))


# Causal backbones by their weights


@pytest.fixture
def wan(model_folder: Callable[[str], Path]) -> Any:
    return WanTransformer3DModel.from_pretrained(model_folder("wan") / "transformer")


@pytest.fixture
def pipeline(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(model_folder("wan"), tmp_path / "pipeline")


def save(transformer: Any, path: Path, key: str = "generator") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: checkpoint.weights(transformer)}, path)
    return path


def large(spec: BackboneSpec, path: Path) -> Path:
    """A checkpoint with the shapes of a published model, in which each weight is one number."""
    shapes = {checkpoint.wans_name(name): weight.shape for name, weight in published.transformer(spec).state_dict().items()}
    torch.save({"generator_ema": {f"model.{name}": torch.zeros(1).expand(shape) for name, shape in shapes.items()}}, path)
    return path


ARCHITECTURE = ("source", "layers", "heads", "head_dim", "ffn_dim", "latent_channels", "rotary_dims", "intrinsic_component",
                "parameters", "stride_t", "stride_hw", "patch", "fps")  # fmt: skip
ROLLOUT = ("family", "steps", "guidance_scale", "negative_prompt", "capabilities", "text_tokens", "native_px", "flow_shift")


@pytest.mark.parametrize("base", [WAN_1_3B, WAN_14B], ids=lambda spec: spec.name)
def test_a_file_alone_is_self_forcing_of_the_size_that_its_weights_have(base: BackboneSpec, tmp_path: Path) -> None:
    path = large(base, tmp_path / "weights.pt")
    found = find(str(path))
    for part in ARCHITECTURE:
        assert getattr(found, part) == getattr(base, part), part
    for part in ROLLOUT:
        assert getattr(found, part) == getattr(SELF_FORCING, part), part
    assert (found.name, found.checkpoint, found.lora) == (f"self-forcing:{path}", str(path), None)
    assert found == find(f"self-forcing:{path}") == find(found.name)


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run's manifest finds it from elsewhere."""
    path = large(WAN_1_3B, tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    assert find("weights.pt").name == find("self-forcing:weights.pt").name == f"self-forcing:{path}"


def test_a_pipeline_beside_the_weights_is_their_base(pipeline: Path, wan: Any) -> None:
    """Whose config has the size of a head, as the weights do not say it."""
    path = save(wan, pipeline / "weights.pt")
    found, base = find(f"self-forcing:{pipeline}"), find(str(pipeline))
    for part in ARCHITECTURE:
        assert getattr(found, part) == getattr(base, part), part
    assert found.parameters == sum(weight.numel() for weight in wan.parameters())
    assert (found.name, found.checkpoint, found.causal) == (f"self-forcing:{pipeline}", str(path), True)
    assert found.companions == base.companions
    save(wan, pipeline / "checkpoints" / "self_forcing_dmd.pt")  # as the hub lays it out
    assert find(f"self-forcing:{pipeline}").checkpoint == str(pipeline / "checkpoints" / "self_forcing_dmd.pt")


def test_a_base_without_the_weights_of_its_transformer_will_do(pipeline: Path, wan: Any) -> None:
    save(wan, pipeline / "weights.pt")
    (pipeline / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert find(f"self-forcing:{pipeline}").parameters == sum(weight.numel() for weight in wan.parameters())


def test_the_files_of_causal_forcing_are_told_apart_by_their_names(tmp_path: Path) -> None:
    """In the folder that its README downloads to; a file anywhere else is what it is called."""
    chunks = {"causal-forcing": (3, 4, None), "causal-forcing-framewise": (1, 4, None), "causal-forcing-2step": (1, 2, 4),
              "causal-forcing-1step": (1, 1, 4)}  # fmt: skip
    for name in chunks:
        path = tmp_path / str(SPECS[name].checkpoint).removeprefix("zhuhz22/Causal-Forcing/")
        path.parent.mkdir(exist_ok=True)
        large(WAN_1_3B, path)
    for name, expected in chunks.items():
        inner = str(SPECS[name].checkpoint).removeprefix("zhuhz22/Causal-Forcing/")
        for found in (find(f"{name}:{tmp_path}"), find(f"{name}:{tmp_path / inner}")):
            assert found.checkpoint == str(tmp_path / inner)
            plan = planner.build(preset.load("direct"), found)
            assert (plan.chunk_lat, plan.steps, found.first_steps) == expected
            assert plan.first_steps == 4


def test_longlive_2_is_one_file_of_another_size(tmp_path: Path) -> None:
    found = find(f"longlive-2:{large(WAN_2_2_5B, tmp_path / 'model_bf16.pt')}")
    assert (found.chunk_lat, found.native_lat, found.steps, found.fps, found.scheduler) == (8, 32, 4, 24, "UniPCMultistepScheduler")
    with pytest.raises(UsageError, match="longlive-2 is of width 3072 with 48"):
        find(f"longlive-2:{large(WAN_1_3B, tmp_path / 'other.pt')}")


@pytest.mark.parametrize("inner", ["models", "."])
def test_longlive_is_two_files(tmp_path: Path, inner: str) -> None:
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    path = large(WAN_1_3B, folder / "longlive_base.pt")
    with pytest.raises(MissingError, match=r"its LoRA lora\.pt is not beside .*longlive_base\.pt"):
        find(f"longlive:{tmp_path}")
    (folder / "lora.pt").touch()
    for place in (tmp_path, path):
        found = find(f"longlive:{place}")
        assert (found.name, found.checkpoint, found.lora) == (f"longlive:{place}", str(path), str(folder / "lora.pt"))
        assert found.steps == LONGLIVE.steps
    assert find(f"self-forcing:{path}").lora is None
    (folder / "lora.pt").unlink()
    assert find(f"longlive:{path.rename(folder / 'merged.pt')}").lora is None
    torch.save({"generator_lora": {"base_model.model.blocks.0.ffn.0.lora_A.weight": torch.zeros(1, 1)}}, folder / "only.pt")
    with pytest.raises(UsageError, match=r"only\.pt is a LoRA"):
        find(f"longlive:{folder / 'only.pt'}")


def test_a_transformer_that_diffusers_wrote_serves(pipeline: Path, wan: Any) -> None:
    """In a whole pipeline; alone, it has to be of a published size. It is complete: no LoRA is merged into it."""
    (pipeline / "lora.pt").touch()
    found = find(f"longlive:{pipeline}")
    assert (found.checkpoint, found.lora) == (str(pipeline / "transformer"), None)
    with pytest.raises(UsageError, match="is of width 48 with 16 latent channels; self-forcing is of width 1536 with 16") as caught:
        find(f"self-forcing:{pipeline / 'transformer'}")
    assert "the diffusers pipeline" in caught.value.hint


@pytest.mark.parametrize("kind", ["WanPipeline", "WanCausalDMDPipeline"])
def test_a_pipeline_with_a_causal_transformer_is_causal(pipeline: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = find(str(pipeline))
    index = pipeline / "model_index.json"
    changes = {"_class_name": kind, "transformer": ["diffusers", "CausalWanTransformer3DModel"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))
    found = find(str(pipeline))
    assert (found.name, found.source, found.checkpoint) == (str(pipeline), str(pipeline), str(pipeline / "transformer"))
    assert (found.causal, found.steps, found.parameters) == (True, SELF_FORCING.steps, plain.parameters)
    assert found.heads == plain.heads
    assert not plain.causal
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda hub_id, part, local_files_only: pipeline / part)
    found = find("somebody/causal")
    assert (found.source, found.checkpoint) == ("somebody/causal", "somebody/causal/transformer")


def test_weights_that_cannot_serve_are_refused(pipeline: Path, wan: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    large(WAN_1_3B, pipeline / "large.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name, kind, message in (
        (f"wan2.1-1.3b:{tmp_path}", UsageError, f"wan2.1-1.3b:{tmp_path} is a folder"),
        ("self-forcing:", MissingError, "--backbone self-forcing:: no such file or folder"),
        ("self-forcing:none.pt", MissingError, "--backbone self-forcing:none.pt: no such file or folder"),
        ("weights/none.pt", MissingError, "--backbone weights/none.pt: no such file or folder"),
        ("self-forcin:weights/x.pt", UsageError, r"no backbone is called 'self-forcin' \(did you mean self-forcing"),
        (f"longlive:{tmp_path / 'empty'}", MissingError, "has no weights in it"),
        (f"self-forcing:{pipeline}", UsageError, "is of width 1536 with 16 latent channels, as wan2.1-1.3b; .* is of width 48"),
        (str(tmp_path / "text.pt"), UsageError, "is text and no weights: 'no weights'"),
    ):
        with pytest.raises(kind, match=message) as caught:
            find(name)
        assert caught.value.expected, name
        assert caught.value.hint, name
    save(wan, pipeline / "small.pt")
    with pytest.raises(UsageError, match=r"holds several files of weights: large\.pt, small\.pt"):
        find(f"self-forcing:{pipeline}")


def test_a_missing_layer_is_named_before_anything_is_loaded(tmp_path: Path, pipeline: Path, wan: Any) -> None:
    weights = {name: weight for name, weight in checkpoint.weights(wan).items() if "blocks.1" not in name}
    torch.save(weights, pipeline / "weights.pt")
    with pytest.raises(LonggenError, match=r"weights\.pt is incomplete or damaged: it has 1 of the 2 layers"):
        find(f"self-forcing:{pipeline}")
