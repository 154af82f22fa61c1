"""LoRA files as trainers write them: each acts as W + scale (alpha / rank) B A on every layer it names, or is refused by name.

Legend: W a weight [out, in], A [rank, in] and B [out, rank] of a LoRA.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from longgen import preset, resolve, run
from longgen.backbones import hunyuan
from longgen.backbones.causal_wan import TINY_CAUSAL
from longgen.backbones.find import find
from longgen.backbones.hunyuan import HUNYUANVIDEO
from longgen.backbones.registry import SPECS, adapter_of, family_of
from longgen.backbones.settings import ModelSettings, parse_lora
from longgen.backbones.wan import TINY, WAN_1_3B, WAN_14B
from longgen.cli import app
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.pipelines import lora, lora_files
from longgen.pipelines.loading import check_settings, load
from longgen.pipelines.lora import layer_aliases
from tests.models import published
from tests.models.checkpoint import wans_name

RANK, ALPHA, SCALE = 4, 1.0, 0.5
LAYERS = [f"blocks.{block}.{part}" for block in (0, 1) for part in ("attn1.to_q", "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2")]
Layers = dict[str, tuple[Tensor, Tensor]]


def peft(name: str) -> str:
    return name.replace("lora_down", "lora_A").replace("lora_up", "lora_B")


def wan(layer: str) -> str:
    return wans_name(f"{layer}.").removesuffix(".")


FORMS: dict[str, Callable[[str, str], str]] = {  # trainer -> its key of a layer in diffusers' names and of a part
    "diffusers": lambda layer, part: peft(f"transformer.{layer}.{part}"),
    "PEFT": lambda layer, part: peft(f"base_model.model.{layer}.{part}"),
    "PEFT of Wan's code": lambda layer, part: peft(f"base_model.model.model.{wan(layer)}.{part}"),
    "DiffSynth": lambda layer, part: peft(f"{wan(layer)}.{part}").replace(".weight", ".default.weight"),
    "DiffSynth with pipe": lambda layer, part: peft(f"pipe.dit.{wan(layer)}.{part}").replace(".weight", ".default.weight"),
    "ComfyUI": lambda layer, part: f"diffusion_model.{wan(layer)}.{part}",
    "ComfyUI, A and B": lambda layer, part: peft(f"model.diffusion_model.{wan(layer)}.{part}"),
    "musubi": lambda layer, part: f"lora_unet_{wan(layer).replace('.', '_')}.{part}",
    "kohya with dots": lambda layer, part: f"lora_unet_{wan(layer)}.{part}",
    "kohya of diffusers' names": lambda layer, part: f"lora_transformer_{layer.replace('.', '_')}.{part}",
    "bare": lambda layer, part: f"{wan(layer)}.{part}",
    "old diffusers": lambda layer, part: f"transformer.{layer}.{part.replace('lora_', 'lora.')}",
}


def halves(shapes: dict[str, tuple[int, int]], rank: int = RANK, seed: int = 0) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: (torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator))
        for layer, (rows, columns) in shapes.items()
    }


def written(path: Path, layers: Layers, form: str = "diffusers", alpha: float | None = None, **others: Tensor) -> Path:
    """A LoRA file of `layers` in a trainer's names."""
    content = dict(others)
    for layer, (a, b) in layers.items():
        content |= {FORMS[form](layer, "lora_down.weight"): a, FORMS[form](layer, "lora_up.weight"): b}
        if alpha is not None:
            content[FORMS[form](layer, "alpha")] = torch.tensor(alpha)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(content, path)
    return path


@pytest.fixture(scope="module")
def folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("wan")


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load(find(str(folder)), ModelSettings("cpu", "fp32")).pipe.transformer.state_dict())


@pytest.fixture(scope="module")
def layers(weights: dict[str, Tensor]) -> Layers:
    return halves({layer: tuple(weights[f"{layer}.weight"].shape) for layer in LAYERS})  # type: ignore[misc]


def use(folder: Path, *texts: str) -> Any:
    return load(find(str(folder)), ModelSettings("cpu", "fp32", lora=texts))


def effective(transformer: Any) -> dict[str, Tensor]:
    """The weights of the linear layers as they act, LoRA included."""
    found = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) or hasattr(module, "base_layer"):
            if any(part in name for part in ("lora_A", "lora_B", "base_layer")):
                continue
            inputs = torch.cat([torch.zeros(1, module.in_features), torch.eye(module.in_features)])
            with torch.no_grad():
                out = module(inputs)
            found[f"{name}.weight"] = (out[1:] - out[:1]).T
            found[f"{name}.bias"] = out[0]
    return found


def assert_acts(backbone: Any, weights: dict[str, Tensor], added: dict[str, Tensor], expert: int = 0) -> None:
    """Each linear layer is `weights` plus what is `added` to it, and no other changed."""
    for name, weight in effective(backbone.transformers[expert]).items():
        expected = weights[name] + added.get(name, 0)
        assert (weight - expected).abs().max() < 2e-5, name


def product(layers: Layers, scale: float) -> dict[str, Tensor]:
    return {f"{layer}.weight": scale * (b @ a) for layer, (a, b) in layers.items()}


# Every trainer's names


@pytest.mark.parametrize("form", FORMS)
def test_every_trainer_s_file_acts_by_scale_alpha_and_rank(
    folder: Path, weights: dict[str, Tensor], layers: Layers, tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    alpha = None if form in ("DiffSynth", "old diffusers") else ALPHA
    path = written(tmp_path / "style.safetensors", layers, form, alpha)
    backbone = use(folder, f"{path}:{SCALE}")
    assert_acts(backbone, weights, product(layers, SCALE * (ALPHA / RANK if alpha else 1)))
    assert backbone.notes == ()
    assert capfd.readouterr().err == ""


def test_layers_of_different_ranks_and_alphas_act_each_by_its_own(
    folder: Path, weights: dict[str, Tensor], layers: Layers, tmp_path: Path
) -> None:
    names = list(layers)
    wide = halves({name: tuple(weights[f"{name}.weight"].shape) for name in names[1:]}, rank=7)  # type: ignore[misc]
    mixed = {names[0]: layers[names[0]], **wide}
    alphas = {FORMS["ComfyUI"](name, "alpha"): torch.tensor(float(index + 1)) for index, name in enumerate(mixed)}
    path = written(tmp_path / "style.safetensors", mixed, "ComfyUI", **alphas)
    added = {f"{name}.weight": (index + 1) / len(a) * (b @ a) for index, (name, (a, b)) in enumerate(mixed.items())}
    assert_acts(use(folder, str(path)), weights, added)


def test_halves_in_float16_lose_nothing_to_a_small_alpha(
    folder: Path, weights: dict[str, Tensor], layers: Layers, tmp_path: Path
) -> None:
    small = {name: (a.half(), (1e-4 * b).half()) for name, (a, b) in layers.items()}
    path = written(tmp_path / "style.safetensors", small, "musubi", alpha=RANK / 128)
    added = {f"{name}.weight": (b.float() @ a.float()) / 128 * 1e3 for name, (a, b) in small.items()}
    for name, weight in effective(use(folder, f"{path}:1000").transformers[0]).items():
        if name in added:
            assert ((weight - weights[name] - added[name]).abs().max() / added[name].abs().max()) < 2e-2, name


@pytest.mark.parametrize("place", ["adapter_config.json", "metadata", "rslora"])
def test_alpha_is_read_where_peft_and_diffusers_keep_it(
    folder: Path, weights: dict[str, Tensor], layers: Layers, tmp_path: Path, place: str
) -> None:
    settings = {"r": RANK, "lora_alpha": 8, "alpha_pattern": {"blocks.1.ffn.net.2": 2}, "use_rslora": place == "rslora"}
    path = tmp_path / "style" / "adapter_model.safetensors"
    written(path, layers, "PEFT")
    if place == "metadata":
        content = {FORMS["diffusers"](layer, f"lora_{half}.weight"): one
                   for layer, pair in layers.items() for half, one in zip(("down", "up"), pair, strict=True)}  # fmt: skip
        stored = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
        save_file(content, path, metadata={"lora_adapter_metadata": stored})
    else:
        (path.parent / "adapter_config.json").write_text(json.dumps(settings))
    divisor = RANK**0.5 if place == "rslora" else RANK
    added = product(layers, 8 / divisor) | product({"blocks.1.ffn.net.2": layers["blocks.1.ffn.net.2"]}, 2 / divisor)
    assert_acts(use(folder, str(path.parent)), weights, added)


def test_differences_of_weights_and_biases_are_added(
    folder: Path, weights: dict[str, Tensor], layers: Layers, tmp_path: Path
) -> None:
    """As extracted LoRAs have them beside their pairs: `diff` of norms and tables, `diff_b` of biases, and PEFT's bias of B."""
    generator = torch.Generator().manual_seed(5)
    names = {"blocks.0.attn1.norm_q.weight": "blocks.0.self_attn.norm_q.diff", "blocks.0.norm2.weight": "blocks.0.norm3.diff",
             "blocks.1.scale_shift_table": "blocks.1.modulation.diff", "blocks.0.attn1.to_k.bias": "blocks.0.self_attn.k.diff_b",
             "blocks.0.attn1.to_q.bias": "blocks.0.self_attn.q.diff_b", "proj_out.bias": "head.head.diff_b"}  # fmt: skip
    grown = {name: torch.randn(weights[name].shape, generator=generator) for name in names}
    others = {f"diffusion_model.{other}": grown[name] for name, other in names.items()}
    path = written(tmp_path / "style.safetensors", layers, "ComfyUI", ALPHA, **others)
    backbone = use(folder, f"{path}:{SCALE}")
    biases = {name: SCALE * value for name, value in grown.items() if name.endswith(".bias")}
    assert_acts(backbone, weights, product(layers, SCALE * ALPHA / RANK) | biases)
    own = backbone.transformers[0].state_dict()
    for name in ("blocks.0.attn1.norm_q.weight", "blocks.0.norm2.weight", "blocks.1.scale_shift_table"):
        assert torch.allclose(own[name], weights[name] + SCALE * grown[name]), name


@pytest.mark.parametrize("form", ["LyCORIS", "PEFT"])
def test_a_dora_makes_rows_of_its_magnitudes(
    folder: Path, weights: dict[str, Tensor], layers: Layers, tmp_path: Path, form: str
) -> None:
    """W' = m (W + s B A), each row made of length m."""
    magnitudes = {layer: 1 + torch.rand(len(b), generator=torch.Generator().manual_seed(3)) for layer, (_, b) in layers.items()}
    if form == "PEFT":
        keys = {f"base_model.model.{layer}.lora_magnitude_vector": m for layer, m in magnitudes.items()}
        path = written(tmp_path / "dora.safetensors", layers, "PEFT", **keys)
        alpha = 1.0
    else:
        keys = {FORMS["musubi"](layer, "dora_scale"): m[:, None].clone() for layer, m in magnitudes.items()}
        path = written(tmp_path / "dora.safetensors", layers, "musubi", ALPHA, **keys)
        alpha = ALPHA / RANK
    added = {}
    for layer, (a, b) in layers.items():
        weight = weights[f"{layer}.weight"]
        moved = weight + SCALE * alpha * (b @ a)
        added[f"{layer}.weight"] = magnitudes[layer][:, None] * moved / moved.norm(dim=1, keepdim=True) - weight
    assert_acts(use(folder, f"{path}:{SCALE}"), weights, added)


def test_a_lokr_adds_its_kronecker_product(folder: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Whole factors act at scale 1, products of a rank at alpha / rank; each with the scale that was asked for."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    content, added = {}, {}
    for layer, low in (("blocks.0.attn1.to_q", False), ("blocks.1.ffn.net.0.proj", True)):
        rows, columns = weights[f"{layer}.weight"].shape
        key = f"lycoris_{wan(layer).replace('.', '_')}"
        w1, w2, scale = draw(4, 3), draw(rows // 4, columns // 3), 1.0
        content[f"{key}.lokr_w1"], content[f"{key}.alpha"] = w1, torch.tensor(ALPHA)
        if low:
            w2_a, w2_b = draw(rows // 4, RANK), draw(RANK, columns // 3)
            content[f"{key}.lokr_w2_a"], content[f"{key}.lokr_w2_b"] = w2_a, w2_b
            w2, scale = w2_a @ w2_b, ALPHA / RANK
        else:
            content[f"{key}.lokr_w2"] = w2
        product = (w1[:, None, :, None] * w2[None, :, None, :]).reshape(rows, columns)
        added[f"{layer}.weight"] = SCALE * scale * product
    save_file(content, tmp_path / "lokr.safetensors")
    assert_acts(use(folder, f"{tmp_path / 'lokr.safetensors'}:{SCALE}"), weights, added)


def test_hunyuan_s_fused_layers_are_split() -> None:
    """Of the published model: q, k, v and the MLP of a single block are one layer there, and B has the rows of all."""
    shapes = {name: tuple(value.shape) for name, value in published.transformer(HUNYUANVIDEO).named_parameters()}
    table = layer_aliases(shapes, hunyuan.FAMILY)
    single, width = "single_transformer_blocks.3", HUNYUANVIDEO.width
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    assert table["single_blocks_3_linear1"] == tuple(f"{single}.{part}" for part in parts)
    assert table["double_blocks_0_txt_attn_qkv"] == tuple(f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv")
    a, b = torch.randn(2, width), torch.randn(7 * width, 2)
    halves = {("diffusion_model.single_blocks.3.linear1", 0): {"A": a, "B": b, "alpha": torch.tensor(1.0)}}
    file = lora_files.LoraFile("style", Path("style"), halves, "ComfyUI", 0)
    fitted = lora.fit(file, HUNYUANVIDEO, shapes)
    assert torch.equal(torch.cat([pair.b for pair in fitted.pairs.values()]), b)
    assert [(len(pair.b), pair.scale) for pair in fitted.pairs.values()] == [(width, 0.5)] * 3 + [(4 * width, 0.5)]
    assert all(torch.equal(pair.a, a) for pair in fitted.pairs.values())


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "ltx-2b", "cogvideox-5b", "hunyuanvideo"])
def test_no_two_layers_have_one_name(name: str) -> None:
    """With `_` for `.`, as kohya writes them."""
    spec = SPECS[name]
    parameters = [name for name, _ in published.transformer(spec).named_parameters()]
    layers = {name.removesuffix(".weight").removesuffix(".bias") for name in parameters}
    assert len({layer.replace(".", "_") for layer in layers}) == len(layers)
    table = layer_aliases(dict.fromkeys(layers), family_of(spec))
    assert all(table[layer.replace(".", "_")] == (layer,) for layer in layers)


# Two experts


def test_the_parts_of_a_file_for_two_experts_go_each_to_its_own(
    model_folder: Callable[[str], Path], layers: Layers, tmp_path: Path
) -> None:
    folder = model_folder("wan-experts")
    plain = [{name: weight.clone() for name, weight in one.state_dict().items()} for one in use(folder).transformers]
    second = halves({layer: (b.shape[0], a.shape[1]) for layer, (a, b) in layers.items()}, seed=9)
    others = {name.replace("transformer.", "transformer_2."): half for name, half in changed(second, "diffusers").items()}
    path = written(tmp_path / "both.safetensors", layers, **others)
    backbone = use(folder, str(path))
    for expert, own in enumerate((layers, second)):
        assert_acts(backbone, plain[expert], product(own, 1.0), expert)
    only = tmp_path / "second.safetensors"
    save_file(others, only)
    for expert, own in enumerate(({}, second)):
        assert_acts(use(folder, str(only)), plain[expert], product(own, 1.0), expert)
    with pytest.raises(UsageError, match="its weights are for the second expert"):
        use(folder, f"1={only}")
    pair = [written(tmp_path / f"{name}_noise.safetensors", one) for name, one in (("high", layers), ("low", second))]
    backbone = use(folder, f"1={pair[0]}", f"2={pair[1]}:{SCALE}")
    assert_acts(backbone, plain[0], product(layers, 1.0), 0)
    assert_acts(backbone, plain[1], product(second, SCALE), 1)
    with pytest.raises(UsageError, match=r"holds 4 files of weights: both\.s.*, high_noise\.s") as caught:
        use(folder, str(tmp_path))
    assert "--lora 1=" in caught.value.hint
    assert "--lora 2=" in caught.value.hint


def test_a_file_for_two_experts_is_refused_where_there_is_one(folder: Path, layers: Layers, tmp_path: Path) -> None:
    path = tmp_path / "both.safetensors"
    save_file({FORMS["diffusers"](layer, "lora_down.weight").replace("transformer.", "transformer_2."): a
               for layer, (a, _) in layers.items()}, path)  # fmt: skip
    with pytest.raises(UsageError, match=r"it is for two experts, and .* has one transformer"):
        use(folder, str(path))


# What is refused


def changed(layers: Layers, form: str = "ComfyUI", **others: Tensor) -> dict[str, Tensor]:
    content = dict(others)
    for layer, (a, b) in layers.items():
        content |= {FORMS[form](layer, "lora_down.weight"): a, FORMS[form](layer, "lora_up.weight"): b}
    return content


def pair(name: str, width: int = 48, rows: int | None = None) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": torch.ones(RANK, width), f"{name}.lora_up.weight": torch.ones(rows or width, RANK)}


Q = "diffusion_model.blocks.0.self_attn.q"
NAN = torch.full((48, RANK), float("nan"))
REFUSED: dict[str, tuple[Callable[[Layers], dict[str, Tensor]], str]] = {  # case -> content, message
    "a layer beyond": (
        lambda x: changed(x) | pair("diffusion_model.blocks.7.self_attn.q"),
        r"has no layer diffusion_model\.blocks\.7",
    ),
    "image to video": (
        lambda x: changed(x) | pair("diffusion_model.blocks.0.cross_attn.k_img"),
        r"one of its 9 layers \(it is for a Wan image-to-video model",
    ),
    "another width": (
        lambda x: {
            key: value for layer in range(40) for key, value in pair(f"diffusion_model.blocks.{layer}.self_attn.q", 5120).items()
        },
        r"it is made for width 5120 \(wan2\.1-14b, .*wan2\.2-t2v-a14b, .*\); .* has 48",
    ),
    "FLUX": (lambda x: pair("lora_unet_double_blocks_0_img_mlp_0", 3072), "it is for FLUX or HunyuanVideo, of width 3072"),
    "Stable Diffusion": (
        lambda x: pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320),
        "it is for Stable Diffusion",
    ),
    "LTX": (
        lambda x: pair("diffusion_model.transformer_blocks.0.attn1.to_q", 2048),
        "it is for LTX-Video or CogVideoX, of width 2048",
    ),
    "nobody's": (lambda x: pair("layers.0.mixer"), "it is for a model that longgen does not know"),
    "half a LoKr": (lambda x: {"lycoris_blocks_0_self_attn_q.lokr_w1": torch.ones(2, 2)}, "parts of a LoKr that do not fit"),
    "a LoKr of another size": (
        lambda x: {f"lycoris_blocks_0_self_attn_q.lokr_w{i}": torch.ones(4, 4) for i in (1, 2)},
        "is for a layer of 16 rows; that of .* has 48",
    ),
    "a LoKr of other columns": (
        lambda x: {
            "lycoris_blocks_0_self_attn_q.lokr_w1": torch.ones(4, 4),
            "lycoris_blocks_0_self_attn_q.lokr_w2": torch.ones(12, 4),
        },
        r"adds \[48, 16\] to blocks\.0\.attn1\.to_q\.weight",
    ),
    "a LoKr of Tucker": (lambda x: {"lycoris_blocks_0_self_attn_q.lokr_t2": torch.ones(2, 2)}, "it is a LoKr with Tucker"),
    "LoHa": (lambda x: {"lycoris_blocks_0_self_attn_q.hada_w1_a": torch.ones(2, 2)}, "it is a LoHa of LyCORIS"),
    "half a DoRA": (lambda x: changed(x) | {f"{Q}.dora_scale": torch.ones(48, 1)}, "magnitudes of a DoRA, and others none"),
    "DoRA of columns": (lambda x: pair(Q) | {f"{Q}.dora_scale": torch.ones(1, 48)}, r"a magnitude \[1, 48\] of a DoRA"),
    "NaN": (
        lambda x: changed(x) | {f"{Q}.lora_up.weight": NAN},
        r"self_attn\.q\.lora_up\.weight has values that are NaN or infinite",
    ),
    "infinite alpha": (
        lambda x: changed(x) | {f"{Q}.alpha": torch.tensor(float("inf"))},
        r"q\.alpha has values that are NaN or infinite",
    ),
    "one half": (
        lambda x: changed(x) | {"diffusion_model.blocks.0.self_attn.k.lora_up.weight": torch.ones(48, RANK)},
        "one half of a pair",
    ),
    "two ranks": (lambda x: changed(x) | {f"{Q}.lora_up.weight": torch.ones(48, RANK + 1)}, "no pair of one rank"),
    "no rank": (
        lambda x: pair(Q) | {f"{Q}.lora_up.weight": torch.ones(48, 0), f"{Q}.lora_down.weight": torch.ones(0, 48)},
        "no pair of one",
    ),
    "another size": (lambda x: changed(x) | pair(Q, 48, 96), r"is for a layer of \[96, 48\]; that of .* is \[48, 48\]"),
    "a key of no LoRA": (
        lambda x: changed(x) | {"blocks.0.gate": torch.ones(2)},
        r"1 of its 17 keys are no part of a LoRA, as blocks\.0\.gate",
    ),
    "a whole model": (
        lambda x: {"patch_embedding.weight": torch.ones(2, 2), "blocks.0.self_attn.q.weight": torch.ones(2)},
        "it is a Wan transformer, not a LoRA",
    ),
    "a VAE": (lambda x: {"decoder.conv1.weight": torch.ones(2, 2)}, "it is a VAE, not a LoRA"),
    "nothing": (lambda x: {}, "it is not a LoRA; it holds nothing"),
    "text alone": (lambda x: pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"), "it is only for a text encoder"),
    "a difference of another size": (
        lambda x: changed(x) | {f"{Q}.diff_b": torch.ones(5)},
        r"adds \[5\] to blocks\.0\.attn1\.to_q\.bias",
    ),
    "two adapters": (
        lambda x: {f"{Q}.lora_{half}.{name}.weight": torch.ones(2, 2) for half in "AB" for name in ("default", "other")},
        "holds several LoRAs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_lose_a_weight_is_refused_before_the_model_is_loaded(
    folder: Path, layers: Layers, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    """By --dry-run too, which loads nothing; in one message, and with nothing of the libraries' beside it."""
    make, message = REFUSED[case]
    path = tmp_path / "style.safetensors"
    save_file(make(layers), path)
    with pytest.raises(UsageError, match=f"--lora {path} cannot be used: .*{message}") as caught:
        check_settings(find(str(folder)), ModelSettings("cpu", "fp32", lora=(str(path),)))
    assert caught.value.expected
    assert caught.value.hint
    assert capfd.readouterr().err == ""


def test_a_file_that_is_no_lora_is_named_for_what_it_is(folder: Path, layers: Layers, tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.safetensors", layers).read_bytes()
    path = tmp_path / "style.safetensors"
    for content, kind, message in (
        (b"", UsageError, "is an empty file"), (b"GGUF\x03", UsageError, "is a GGUF file"),
        (b"<!DOCTYPE html><html>", UsageError, "is a web page"), (whole[:-10], LonggenError, "is incomplete or damaged: "),
        (whole[:300], LonggenError, "is incomplete or damaged: its table would be"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(kind, match=f"--lora {path} {message}"):
            check_settings(find(str(folder)), ModelSettings("cpu", "fp32", lora=(str(path),)))


def test_torch_files_are_read_without_running_them(
    folder: Path, weights: dict[str, Tensor], layers: Layers, tmp_path: Path
) -> None:
    path = tmp_path / "style.pt"
    torch.save({"generator_lora": changed(layers, "PEFT"), "step": 3}, path)
    assert_acts(use(folder, str(path)), weights, product(layers, 1.0))
    torch.save(changed(layers) | {"extra": Path("x")}, path)
    with pytest.raises(UsageError, match=rf"--lora {path} holds code \(pathlib"):
        use(folder, str(path))


def test_a_folder_s_one_lora_is_taken_and_of_several_none(
    folder: Path, weights: dict[str, Tensor], layers: Layers, tmp_path: Path
) -> None:
    place = tmp_path / "style"
    written(place / "pytorch_lora_weights.safetensors", layers)
    torch.save({}, place / "optimizer.pt")
    assert_acts(use(folder, str(place)), weights, product(layers, 1.0))
    written(place / "step-500.safetensors", layers)
    with pytest.raises(UsageError, match=r"holds 2 files of weights: pytorch_lora_weights\.safetensors, step-500\.safetensors"):
        use(folder, str(place))
    (tmp_path / "none").mkdir()
    with pytest.raises(MissingError, match="the folder has no weights in it; it is empty"):
        use(folder, str(tmp_path / "none"))


# What is harmless is said


def test_what_changes_nothing_is_a_note(folder: Path, weights: dict[str, Tensor], layers: Layers, tmp_path: Path) -> None:
    text = pair("lora_te1_text_model_encoder_layers_0_mlp_fc1")
    path = written(tmp_path / "style.safetensors", layers, **text)
    zero = written(tmp_path / "zero.safetensors", {name: (a, 0 * b) for name, (a, b) in layers.items()})
    backbone = use(folder, f"{path}:0.5", f"{path}:0.25", f"{zero}:2", f"{path}:0")
    assert_acts(backbone, weights, product(layers, 0.75))
    notes = "\n".join(backbone.notes)
    assert f"--lora {path}: 2 weights are for a text encoder" in notes
    assert f"--lora {path} is given more than once: its scales add up" in notes
    assert f"--lora {zero} changes nothing: all its weights are zero" in notes
    assert f"--lora {path}:0 has scale 0" in notes
    assert len(backbone.notes) == len(set(backbone.notes))


def test_a_note_reaches_the_user_once_and_an_error_comes_before_the_work(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "style.safetensors", halves({"blocks.0.attn1.to_q": (256, 256)}), "PEFT")
    plan = resolve.resolve(resolve.PlanRequest("direct", TINY, sample=preset.Sample(frames=33, steps=1, size=(32, 32))))
    told: list[str] = []
    jobs = [run.Job(plan, "a small red circle", seed, tmp_path / f"{seed}.mp4") for seed in (1, 2)]
    results = run.generate_jobs(jobs, ModelSettings("cpu", "fp32", lora=(f"{path}:0",)), log=told.append)
    assert [Path(result.output).is_file() for result in results] == [True, True]
    assert told.count(f"note: --lora {path}:0 has scale 0: it changes nothing") == 1
    assert capfd.readouterr().err == ""
    wide = written(tmp_path / "wide.safetensors", halves({"blocks.0.attn1.to_q": (5120, 5120)}), "PEFT")
    base = ["generate", "--backbone", "tiny", "-p", "a small red circle on a black background", "-q", "--lora", str(wide)]
    for more in (["--dry-run"], ["-o", str(tmp_path / "none.mp4")]):
        done = CliRunner().invoke(app, [*base, *more])
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith(f"longgen: --lora {wide} cannot be used: it is made for width 5120")
        assert len(done.stderr.splitlines()) == 3
    assert not (tmp_path / "none.mp4").exists()
    assert not (tmp_path / "none.run").exists()


def test_one_file_for_each_expert_is_not_twice(model_folder: Callable[[str], Path], layers: Layers, tmp_path: Path) -> None:
    path, spec = written(tmp_path / "style.safetensors", layers), find(str(model_folder("wan-experts")))
    assert check_settings(spec, ModelSettings("cpu", "fp32", lora=(f"1={path}:0.5", f"2={path}"))) == []


def test_a_hub_id_that_is_not_here_names_what_is_missing(folder: Path) -> None:
    model_settings = ModelSettings("cpu", "fp32", lora=("somebody/style:0.5",))
    assert check_settings(find(str(folder)), model_settings) == [
        "--lora somebody/style is not on this machine: whether it fits is known once it is downloaded"
    ]
    with pytest.raises(MissingError, match="--lora somebody/style is not in the local cache and cannot be fetched") as caught:
        load(find(str(folder)), model_settings)
    assert "hf download somebody/style" in caught.value.hint


# The published models, without their weights


@pytest.mark.parametrize("form", ["musubi", "DiffSynth", "ComfyUI, A and B"])
def test_a_lora_of_a_published_model_is_checked_without_its_weights(tmp_path: Path, form: str) -> None:
    shapes = {f"blocks.{layer}.attn1.to_q": (5120, 5120) for layer in range(40)}
    path = written(tmp_path / "style.safetensors", halves(shapes, rank=1), form)
    model_settings = ModelSettings("cpu", "fp32", lora=(str(path),))
    assert check_settings(WAN_14B, model_settings) == []
    for spec in (WAN_1_3B, replace(WAN_1_3B, name="self-forcing", family="causal-wan")):
        with pytest.raises(UsageError, match=rf"made for width 5120 \(wan2\.1-14b, .*wan2\.2-t2v-a14b, .*\); {spec.name} has 1536"):
            check_settings(spec, model_settings)


def test_a_lora_acts_on_tiny_causal(tmp_path: Path) -> None:
    plain = load(TINY_CAUSAL, ModelSettings("cpu", "fp32")).pipe.transformer.state_dict()
    layers = halves({"blocks.5.attn1.to_q": (256, 256)})
    path = written(tmp_path / "style.safetensors", layers, "DiffSynth with pipe")
    backbone = load(TINY_CAUSAL, ModelSettings("cpu", "fp32", lora=(f"{path}:{SCALE}",)))
    assert_acts(backbone, plain, product(layers, SCALE))
    assert isinstance(backbone, adapter_of(TINY_CAUSAL))


# How it is written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("style.safetensors", ("style.safetensors", 1.0, (1, 2))),
        ("2=style.safetensors:-0.5", ("style.safetensors", -0.5, (2,))),
        (r"C:\loras\style.safetensors", (r"C:\loras\style.safetensors", 1.0, (1, 2))),
        (r"1=C:\loras\style.safetensors:0.5", (r"C:\loras\style.safetensors", 0.5, (1,))),
        ("C:/loras/style.safetensors:2", ("C:/loras/style.safetensors", 2.0, (1, 2))),
        ("somebody/style:0", ("somebody/style", 0.0, (1, 2))),
    ],
)
def test_a_path_and_its_scale_are_told_apart(text: str, expected: tuple[str, float, tuple[int, ...]]) -> None:
    assert parse_lora(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("style:", "the scale after the colon is missing"), ("style:nan", "'nan' is no scale"), ("style:1e999", "'1e999' is no scale"),
     ("style:-inf", "'-inf' is no scale"), ("", "there is no path"), (":0.5", "there is no path"), ("1=", "there is no path"),
     ("style:0,5", "'0,5' is no scale")],
)  # fmt: skip
def test_what_is_no_path_or_no_scale_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_lora(text)
