"""The flags that are handed to diffusers, on small pipelines of random weights: each does what it says, or is refused.

Legend: W a weight [out, in], A [rank, in] and B [out, rank] of a LoRA.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from safetensors.torch import load_file, save_file
from torch import Tensor

from longgen.backbones.causal_wan import LONGLIVE, SELF_FORCING
from longgen.backbones.find import find
from longgen.backbones.registry import SPECS, adapter_of, family_of
from longgen.backbones.settings import CACHE_FAULTS, ModelSettings, parse_cache, parse_lora
from longgen.backbones.wan import TINY
from longgen.errors import MissingError, UsageError
from longgen.pipelines.loading import decoder, load
from tests.backbones import family
from tests.models import checkpoint, small

RANK = 4


@pytest.fixture
def loaded(model_folder: Callable[[str], Path]) -> Callable[..., Any]:
    """loaded("wan", cache="first-block"): a fresh one, as the flags change it."""
    return lambda name, **flags: load(find(str(model_folder(name))), ModelSettings("cpu", "fp32", **flags))


@pytest.fixture(autouse=True)
def backend_of_the_process() -> Iterator[None]:
    """diffusers sets it for the whole process."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def sampled(backbone: Any, steps: int = 2) -> Tensor:
    """Latents with a window over the clip, so that planned attention serves."""
    return family.sampled(backbone, family.made(backbone, "sliding-window", 33, steps, ("window.frames=3",)))


# LoRA


@pytest.fixture(scope="module")
def loras(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """loras("wan", 1): a folder with a LoRA for that model, made by peft and written by diffusers."""
    import peft

    def make(name: str, seed: int) -> Path:
        backbone, folder = family.loaded(model_folder(name)), tmp_path_factory.mktemp(f"lora-{name}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_v"], init_lora_weights=False)
            backbone.pipe.transformer.add_adapter(config)
        layers = peft.utils.get_peft_model_state_dict(backbone.pipe.transformer)
        getattr(backbone.kind, "save_lora_weights", WanPipeline.save_lora_weights)(folder, transformer_lora_layers=layers)
        return folder

    return make


@pytest.mark.parametrize("name", small.PLAIN)
def test_a_lora_acts_by_its_scale(loaded: Callable[..., Any], loras: Callable[[str, int], Path], name: str) -> None:
    folder = loras(name, 1)
    plain, none, half = (sampled(loaded(name, lora=lora)) for lora in ((), (f"{folder}:0",), (f"{folder}:0.5",)))
    print(f"{name}: scale 0 changes {(none - plain).abs().max():.1e}, scale 0.5 {(half - plain).abs().max():.1e}")
    assert (none - plain).abs().max() < 1e-6
    assert (half - plain).abs().max() > 1e-3


@pytest.mark.parametrize(("prefix", "experts"), [("", {0, 1}), ("1=", {0}), ("2=", {1})])
def test_a_lora_goes_into_both_experts_or_into_one(
    loaded: Callable[..., Any], loras: Callable[[str, int], Path], prefix: str, experts: set[int]
) -> None:
    folder = loras("wan-experts", 1)
    backbone, plain = loaded("wan-experts", lora=(f"{prefix}{folder}:0.5",)), loaded("wan-experts")
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [[t.blocks[0].attn1.to_q(x) for t in one.transformers] for one in (backbone, plain)]
    assert {i for i, (one, other) in enumerate(zip(*outputs, strict=True)) if not torch.equal(one, other)} == experts


def test_a_lora_for_a_second_expert_that_is_not_there_is_refused(loaded: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="is for a second expert"):
        loaded("wan", lora=("2=owner/style",))


def test_two_loras_add_up(loaded: Callable[..., Any], loras: Callable[[str, int], Path]) -> None:
    """A layer's q is x W' + b with W' = W + 0.5 B1 A1 - 2 B2 A2; a file and a folder serve alike."""
    folders = loras("wan", 1), loras("wan", 2)
    files = [folder / "pytorch_lora_weights.safetensors" for folder in folders]
    backbone = loaded("wan", lora=(f"{files[0]}:0.5", f"{folders[1]}:-2"))
    place = "transformer.blocks.0.attn1.to_q.lora_"
    parts = [load_file(file) for file in files]
    (b1, a1), (b2, a2) = ((part[place + "B.weight"], part[place + "A.weight"]) for part in parts)
    to_q = loaded("wan").pipe.transformer.blocks[0].attn1.to_q
    x = torch.randn(5, to_q.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = x @ (to_q.weight + 0.5 * b1 @ a1 - 2 * b2 @ a2).T + to_q.bias
        difference = (backbone.pipe.transformer.blocks[0].attn1.to_q(x) - expected).abs().max().item()
    print(f"max difference {difference:.1e}")
    assert difference < 1e-5


def test_a_path_may_hold_a_colon(tmp_path: Path) -> None:
    path = tmp_path / "a:2"
    path.touch()
    assert parse_lora(str(path)) == (str(path), 1.0, (1, 2))
    assert parse_lora(f"2={path}:0.5") == (str(path), 0.5, (2,))
    with pytest.raises(UsageError, match="'much' is no scale"):
        parse_lora("style.safetensors:much")


def test_a_lora_that_is_not_there_is_refused_before_weights_are_loaded(
    loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.WanPipeline.from_pretrained", None)
    for path in ("style.safetensors", "/none/style.safetensors:0.5", "./style"):
        with pytest.raises(MissingError, match="no such file"):
            loaded("wan", lora=(path,))


def test_a_lora_that_does_not_fit_is_refused(loaded: Callable[..., Any], loras: Callable[[str, int], Path], tmp_path: Path) -> None:
    nothing, weights = tmp_path / "nothing.safetensors", tmp_path / "weights.safetensors"
    other = {f"unet.to_q.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    save_file(other, nothing)
    save_file({"to_q.weight": torch.zeros(2, 2)}, weights)
    for path, reason in ((loras("hunyuan", 1), "it is for HunyuanVideo"), (weights, r"it is not a LoRA; it holds to_q\.weight"),
                         (nothing, "it is for a model that longgen does not know")):  # fmt: skip
        with pytest.raises(UsageError, match=f"--lora {path} cannot be used: {reason}"):
            loaded("wan", lora=(str(path),))


def test_a_lora_without_peft_names_the_library(loaded: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", False)
    with pytest.raises(MissingError, match="--lora needs the library peft"):
        loaded("wan", lora=(str(tmp_path),))


# Causal checkpoints


@pytest.fixture
def causal(model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    """A folder with a small Wan pipeline and a checkpoint of other weights, and the transformer with these."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shutil.copytree(model_folder("wan"), tmp_path / "pipeline")
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer")
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.mul_(1.25)
    torch.save({"generator_ema": checkpoint.weights(transformer)}, folder / "weights.pt")
    return folder, transformer


def test_a_causal_backbone_has_the_checkpoint_s_weights_and_the_rest_of_its_base(causal: tuple[Path, Any]) -> None:
    """The base's own transformer is never read: it need not be there."""
    folder, transformer = causal
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    stock = WanPipeline.from_pretrained(folder, transformer=None)
    backbone = load(find(f"self-forcing:{folder}"), ModelSettings("cpu", "fp32"))
    assert type(backbone) is adapter_of(backbone.spec)
    assert backbone.transformers == [backbone.pipe.transformer]
    for part, expected in ((backbone.pipe.transformer, transformer), (backbone.pipe.vae, stock.vae),
                           (backbone.pipe.text_encoder, stock.text_encoder)):  # fmt: skip
        weights = part.state_dict()
        assert all(torch.equal(weights[name], weight) for name, weight in expected.state_dict().items())
    latents = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    alone = list(decoder(backbone.spec, "cpu")(latents))
    assert np.array_equal(np.concatenate(alone), np.concatenate(list(backbone.decode(latents))))


def test_a_causal_backbone_s_dtypes_are_those_of_wan(causal: tuple[Path, Any], model_folder: Callable[[str], Path]) -> None:
    """Tables and the embedding of time stay in float32, as diffusers keeps them, and so does the VAE."""
    ours, stock = (
        load(find(name), ModelSettings("cpu", "bf16")) for name in (f"self-forcing:{causal[0]}", str(model_folder("wan")))
    )
    for part in ("transformer", "vae", "text_encoder"):
        kinds = [{name: weight.dtype for name, weight in getattr(one.pipe, part).state_dict().items()} for one in (ours, stock)]
        assert kinds[0] == kinds[1], part
    assert ours.pipe.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16


def test_a_pipeline_that_names_a_causal_transformer_is_loaded(causal: tuple[Path, Any]) -> None:
    folder, _ = causal
    (folder / "weights.pt").unlink()
    for path, changes in ((folder / "model_index.json", {"_class_name": "WanCausalDMDPipeline",
                                                         "transformer": ["diffusers", "CausalWanTransformer3DModel"]}),
                          (folder / "transformer" / "config.json", {"_class_name": "CausalWanTransformer3DModel"})):  # fmt: skip
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    backbone = load(find(str(folder)), ModelSettings("cpu", "fp32"))
    expected = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    weights = backbone.pipe.transformer.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())


def test_the_flags_act_on_a_causal_backbone(causal: tuple[Path, Any], loras: Callable[[str, int], Path]) -> None:
    folder, transformer = causal
    spec, lora = find(f"self-forcing:{folder}"), loras("wan", 1)
    b, a = (
        load_file(lora / "pytorch_lora_weights.safetensors")[f"transformer.blocks.0.attn1.to_q.lora_{half}.weight"] for half in "BA"
    )
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    to_q = load(spec, ModelSettings("cpu", "fp32", lora=(f"{lora}:0.5",))).pipe.transformer.blocks[0].attn1.to_q
    stock = transformer.blocks[0].attn1.to_q
    with torch.no_grad():
        assert (to_q(x) - (x @ (stock.weight + 0.5 * b @ a).T + stock.bias)).abs().max() < 1e-5
    small = load(spec, ModelSettings("cpu", "fp32", quantize="fp8")).pipe.transformer
    assert small.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn


def test_int8_acts_on_a_causal_backbone(causal: tuple[Path, Any]) -> None:
    pytest.importorskip("torchao")
    quantized = load(find(f"self-forcing:{causal[0]}"), ModelSettings("cpu", "fp32", quantize="int8")).pipe.transformer
    assert quantized.blocks[0].attn1.to_q.weight.qdata.dtype == torch.int8


def test_a_causal_backbone_that_is_not_there_names_its_downloads(causal: tuple[Path, Any], tmp_path: Path) -> None:
    """Its weights before its base; one that is here needs no download. The commands make a folder that --backbone takes."""
    with pytest.raises(MissingError, match=r"gdhe17/Self-Forcing/checkpoints/self_forcing_dmd\.pt is not in the") as caught:
        load(SELF_FORCING, ModelSettings("cpu", "fp32"))
    assert "hf download gdhe17/Self-Forcing checkpoints/self_forcing_dmd.pt --local-dir FOLDER" in caught.value.hint
    assert 'hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers --include "model_index.json"' in caught.value.hint
    folder, _ = causal
    spec = replace(find(f"self-forcing:{folder}"), source="nobody/nothing")
    with pytest.raises(MissingError, match=r"are not on this machine: nobody/nothing could not be fetched") as caught:
        load(spec, ModelSettings("cpu", "fp32"))
    assert 'hf download nobody/nothing --include "model_index.json"' in caught.value.hint
    assert '--include "vae/*" --include "transformer/config.json" --local-dir FOLDER; then' in caught.value.hint
    assert "--backbone self-forcing:FOLDER" in caught.value.hint


def test_the_message_of_a_missing_base_names_every_file_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, causal: tuple[Path, Any]
) -> None:
    monkeypatch.setattr("longgen.backbones.checkpoints.fetch", lambda place: causal[0] / "weights.pt")
    monkeypatch.setattr("longgen.backbones.checkpoints.convert", lambda spec: causal[0] / "transformer")
    with pytest.raises(MissingError) as caught:
        load(LONGLIVE, ModelSettings("cpu", "fp32"))
    for file in ("longlive_base.pt", "lora.pt"):
        assert f"hf download Efficient-Large-Model/LongLive-1.3B models/{file} --local-dir FOLDER" in caught.value.hint
    assert '--include "transformer/config.json" --local-dir FOLDER' in caught.value.hint
    assert "--backbone longlive:FOLDER" in caught.value.hint


# Quantization


@pytest.mark.parametrize("name", small.KINDS)
def test_fp8_weights_are_stored_in_a_byte_and_act_in_the_transformer_s_dtype(loaded: Callable[..., Any], name: str) -> None:
    backbone = loaded(name, quantize="fp8")
    for transformer in backbone.transformers:
        assert backbone.layers(transformer)[0].to_q.weight.dtype == torch.float8_e4m3fn
    plain, quantized = sampled(loaded(name)), sampled(backbone)
    error = ((quantized - plain).square().mean() / plain.square().mean()).sqrt().item()
    print(f"{name}: relative error {error:.1e}")
    assert 0 < error < 0.15
    assert quantized.dtype == plain.dtype


@pytest.mark.parametrize("name", ["wan-experts", "hunyuan"])
def test_int8_weights_are_stored_in_a_byte(loaded: Callable[..., Any], name: str) -> None:
    pytest.importorskip("torchao")
    backbone = loaded(name, quantize="int8")
    for transformer in backbone.transformers:
        assert backbone.layers(transformer)[0].to_q.weight.qdata.dtype == torch.int8
    plain, quantized = sampled(loaded(name)), sampled(backbone)
    error = ((quantized - plain).square().mean() / plain.square().mean()).sqrt().item()
    print(f"{name}: relative error {error:.1e}")
    assert 0 < error < 0.02


def test_int8_without_torchao_names_the_library(loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingError, match="--quantize int8 needs the library torchao"):
        loaded("wan", quantize="int8")


# Attention backends


@pytest.mark.parametrize("name", small.PLAIN)
def test_the_attention_backend_reaches_stock_and_planned_layers(loaded: Callable[..., Any], name: str) -> None:
    plain, backbone = loaded(name), loaded(name, attention="_native_math")
    plan = family.made(backbone, "sliding-window", 33, 2, ("window.frames=3", "window.layers=[0]"))
    with backbone.installed(plan):
        layers = backbone.layers(backbone.pipe.transformer)[:2]
        assert [isinstance(layer.processor, backbone.processor) for layer in layers] == [True, False]
        assert layers[0].processor._attention_backend == "_native_math"
        stock = getattr(layers[1].processor, "_attention_backend", None)
        assert stock == "_native_math" or name == "cogvideox"  # whose stock attention does not know backends
    difference = (family.sampled(plain, plan) - family.sampled(backbone, plan)).abs().max().item()
    print(f"{name}: max difference {difference:.1e}")
    assert difference < 1e-4


def test_native_is_what_runs_without_the_flag(loaded: Callable[..., Any]) -> None:
    assert torch.equal(sampled(loaded("wan", attention="native")), sampled(loaded("wan")))


def test_a_backend_that_cannot_be_is_refused(loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--attention sage cannot run here") as caught:
        loaded("wan", attention="sage")
    assert "native" in caught.value.expected
    monkeypatch.setattr("diffusers.WanPipeline.from_pretrained", None)  # refused before weights are loaded
    with pytest.raises(UsageError, match="--attention wonder: diffusers has no such attention backend") as caught:
        loaded("wan", attention="wonder")
    assert "native" in caught.value.expected


# Step caches


def calls_of_blocks(backbone: Any, run: Callable[[], Any]) -> list[int]:
    """Calls of the self-attention of the first and of the last block of each transformer."""
    calls: Counter[int] = Counter()
    layers = [backbone.layers(transformer)[place] for transformer in backbone.transformers for place in (0, -1)]
    hooks = [layer.register_forward_hook(lambda *_, index=index: calls.update([index])) for index, layer in enumerate(layers)]
    run()
    for hook in hooks:
        hook.remove()
    return [calls[index] for index in range(len(layers))]


@pytest.mark.parametrize("name", small.taking("first-block"))
def test_the_first_block_cache_skips_the_other_blocks(loaded: Callable[..., Any], name: str) -> None:
    """By threshold; each run begins anew."""
    steps, branches = 6, small.calls_per_step(name)
    never, often = loaded(name, cache="first-block:0.000001"), loaded(name, cache="first-block:0.9")
    first, last = calls_of_blocks(never, lambda: sampled(never, steps))
    assert first == last == steps * branches
    first, last = calls_of_blocks(often, lambda: sampled(often, steps))
    print(f"{name}: {first} calls of the first block, {last} of the last")
    assert first == steps * branches
    assert branches <= last < first
    assert torch.equal(sampled(never, steps), sampled(loaded(name), steps))
    cached = sampled(often, steps)
    assert not torch.equal(cached, sampled(never, steps))
    assert torch.equal(cached, sampled(often, steps))


def test_the_cache_serves_both_experts(loaded: Callable[..., Any]) -> None:
    backbone = loaded("wan-experts", cache="first-block:0.9")
    first, last, first_2, last_2 = calls_of_blocks(backbone, lambda: sampled(backbone, 6))
    assert first + first_2 == 12
    assert last < first
    assert last_2 < first_2


@pytest.mark.parametrize(
    ("name", "spec"),
    [(name, spec) for spec in SPECS.values() for name in family_of(spec).broken_caches],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_broken_cache_is_refused_with_its_reason(name: str, spec: Any) -> None:
    for text in (name, name.replace("-", "_").upper(), f"{name}:0.1"):
        with pytest.raises(UsageError, match=f"is refused: on {spec.name} {CACHE_FAULTS[name]}") as caught:
            parse_cache(text, spec)
        assert ("first-block" in caught.value.expected) == ("first-block" not in family_of(spec).broken_caches)


def test_a_cache_that_its_family_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(family_of(TINY), broken_caches=("first-block",))
    monkeypatch.setattr("longgen.backbones.settings.family_of", lambda spec: changed)
    with pytest.raises(UsageError, match="is refused: on tiny diffusers has no entry for the blocks") as caught:
        parse_cache("first-block:0.1", TINY)
    assert caught.value.expected == "mag, or NAME:THRESHOLD, as mag:0.05"
    assert parse_cache("mag", TINY) == ("mag", 0.06)


def test_a_cache_that_nobody_tried_is_refused() -> None:
    for text in ("fastercache", "wonder:0.1"):
        with pytest.raises(UsageError, match="longgen has not tried it"):
            parse_cache(text, SPECS["cogvideox-5b"])


@pytest.mark.parametrize("text", ["first-block:0", "first-block:1", "first-block:-1", "mag:much", "mag:nan"])
def test_a_threshold_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no threshold"):
        parse_cache(text, TINY)
    assert parse_cache("first_block", TINY) == parse_cache("First-Block:0.05", TINY) == ("first-block", 0.05)
    assert parse_cache("mag", TINY) == parse_cache("Mag:0.06", TINY) == ("mag", 0.06)


# VAE, offload, device


@pytest.mark.parametrize("name", ["wan-ti2v", *small.PLAIN[1:]])
def test_vae_tiling_is_the_pipeline_s_own(loaded: Callable[..., Any], model_folder: Callable[[str], Path], name: str) -> None:
    backbone = loaded(name, vae_tiling=True)
    vae = backbone.pipe.vae
    for side in ("height", "width"):  # clips here are small
        setattr(vae, f"tile_sample_min_{side}", 32)
        setattr(vae, f"tile_sample_stride_{side}", 16)
        setattr(vae, f"tile_latent_min_{side}", min(4, 32 // backbone.spec.stride_hw))  # this and the next are CogVideoX's
        setattr(vae, f"tile_overlap_factor_{side}", 0.25)
    vae.tile_overlap_factor = 0.5  # HunyuanVideo-1.5's
    plan = family.made(backbone, "direct", 9, 2)
    latents = family.sampled(backbone, plan)
    tiled = np.concatenate(list(backbone.decode(latents)))
    stock = family.stock_call(backbone.pipe, plan, output_type="np", max_sequence_length=backbone.spec.text_tokens)
    assert np.array_equal(tiled, (stock[0] * 255).round().astype(np.uint8))
    whole = np.concatenate(list(loaded(name).decode(latents)))
    assert whole.shape == tiled.shape
    assert not np.array_equal(whole, tiled)
    alone = decoder(find(str(model_folder(name))), "cpu", vae_tiling=True)(latents)  # with tiles larger than the clip
    assert np.concatenate(list(alone)).shape == whole.shape


@pytest.mark.parametrize("name", small.ALL)
def test_the_vae_alone_decodes_as_the_pipeline_does(
    loaded: Callable[..., Any], model_folder: Callable[[str], Path], name: str
) -> None:
    backbone = loaded(name)
    latents = torch.randn(1, backbone.spec.latent_channels, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    alone = list(decoder(find(str(model_folder(name))), "cpu")(latents))
    assert np.array_equal(np.concatenate(alone), np.concatenate(list(backbone.decode(latents))))


@pytest.mark.parametrize("name", ["wan-experts", *small.PLAIN[1:]])
def test_group_offload_changes_nothing(loaded: Callable[..., Any], name: str) -> None:
    """From host to host, as no GPU is here: the hooks are diffusers' own, the transfers are not tested."""
    plain, offloaded = loaded(name), loaded(name)
    offloaded.pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    latents = sampled(plain)
    assert torch.equal(sampled(offloaded), latents)
    frames = [np.concatenate(list(backbone.decode(latents))) for backbone in (plain, offloaded)]
    assert np.array_equal(*frames)


@pytest.mark.parametrize(
    ("model_settings", "message"),
    [
        (ModelSettings("cuda", "bf16"), "--device cuda is not available"),
        (ModelSettings("gpu", "fp32"), "--device gpu is not available"),
        (ModelSettings("cpu", "fp32", offload="model"), "--offload model moves weights between a GPU and the host"),
        (ModelSettings("cpu", "fp16"), "--dtype fp16 cannot run on a CPU"),
        (ModelSettings("cpu", "fp32", cache="fastercache"), "--cache fastercache is refused"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    model_settings: ModelSettings, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model_settings.device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.setattr("longgen.pipelines.loading.load", None)
    with pytest.raises(UsageError, match=message) as caught:
        load(TINY, model_settings)
    assert caught.value.expected
    assert caught.value.hint
