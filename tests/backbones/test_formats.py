"""Files that people have where weights are asked for: each is named for what it is, before anything is loaded, and none misread."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from longgen.backbones import formats
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.find import find
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import WAN_1_3B, WAN_14B
from longgen.errors import LonggenError, MissingError, UsageError
from tests.models import checkpoint, published

GIB = 2**30


Table = dict[str, tuple[str, tuple[int, ...]]]


def wan(base: BackboneSpec = WAN_1_3B, dtype: str = "BF16", prefix: str = "", **changes: tuple[int, ...]) -> Table:
    """The table of a published Wan transformer, in Wan's own names."""
    shapes = {checkpoint.wans_name(name): tuple(value.shape) for name, value in published.transformer(base).state_dict().items()}
    return {prefix + name: (dtype, shape) for name, shape in (shapes | changes).items()}


def one(*names: str, dtype: str = "BF16") -> Table:
    return dict.fromkeys(names, (dtype, (4, 4)))


Q = "blocks.0.self_attn.q"
TABLES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {  # case -> a table of safetensors, how the file is named
    "scaled fp8": (
        lambda: wan(dtype="F8_E4M3") | one("scaled_fp8", f"{Q}.scale_weight"),
        r"8-bit weights with scales of their own \(ComfyUI's scaled fp8\), of a Wan",
    ),
    "another scaled fp8": (lambda: wan(dtype="F8_E4M3") | one(f"{Q}.weight_scale"), "8-bit weights with scales of their own"),
    "nf4": (
        lambda: wan() | one(f"{Q}.weight.absmax", f"{Q}.weight.quant_map", f"{Q}.weight.quant_state.bitsandbytes__nf4", dtype="U8"),
        "bitsandbytes quantized to 4 bits",
    ),
    "int8 of bitsandbytes": (lambda: wan() | one(f"{Q}.SCB"), "bitsandbytes quantized to 8 bits"),
    "GPTQ": (lambda: wan() | one(f"{Q}.qweight", f"{Q}.qzeros", dtype="I32"), "GPTQ, AWQ or their like"),
    "nunchaku": (
        lambda: one("blocks.0.attn.qweight", "blocks.0.attn.wscales", "blocks.0.attn.smooth_factor"),
        r"nunchaku \(SVDQuant\)",
    ),
    "quanto": (lambda: one("blocks.0.attn1.to_q.weight._data", "blocks.0.attn1.to_q.weight._scale"), "optimum-quanto"),
    "all in one": (
        lambda: (
            wan(prefix="model.diffusion_model.") | one("first_stage_model.decoder.conv1.weight", "cond_stage_model.shared.weight")
        ),
        r"a whole pipeline in one file .*: a Wan transformer, VAE and text encoder together",
    ),
    "all of Stable Diffusion": (
        lambda: one("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"),
        "a whole pipeline .*: a Stable Diffusion UNet",
    ),
    "VAE of Wan": (lambda: one("conv1.weight", "decoder.middle.0.residual.2.weight", "encoder.conv1.weight"), "is a VAE; it holds"),
    "VAE of diffusers": (lambda: one("decoder.mid_block.resnets.0.conv1.weight", "post_quant_conv.weight"), "is a VAE; it holds"),
    "text encoder of Wan": (
        lambda: one("token_embedding.weight", "blocks.0.attn.q.weight", "norm.weight"),
        "is a text encoder, of the T5 kind",
    ),
    "text encoder": (
        lambda: one("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        "is a text encoder, of the T5 kind",
    ),
    "text encoder in fp8": (
        lambda: one("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight", dtype="F8_E4M3") | one("scaled_fp8"),
        "text encoder, of the T5 kind",
    ),
    "CLIP": (lambda: one("text_model.encoder.layers.0.mlp.fc1.weight"), "is a text encoder, of the CLIP kind"),
    "LLaMA": (
        lambda: one("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"),
        "is a text encoder: a language model",
    ),
    "LoRA": (
        lambda: one("diffusion_model.blocks.0.self_attn.q.lora_down.weight"),
        "is a LoRA, not a transformer: give it with --lora",
    ),
    "LTX-2": (lambda: one("patchify_proj.weight", "audio_patchify_proj.weight"), "is an LTX-2 transformer, with sound"),
    "HunyuanVideo-1.5": (lambda: one("img_in.proj.weight", "byt5_in.fc1.weight"), "is a HunyuanVideo-1.5 transformer"),
    "CogVideoX": (
        lambda: one("patch_embed.text_proj.weight", "transformer_blocks.0.attn1.to_q.weight"),
        "is a CogVideoX transformer",
    ),
    "FLUX": (lambda: one("double_blocks.0.img_attn.qkv.weight"), "is a FLUX transformer"),
    "Stable Diffusion": (
        lambda: one("down_blocks.0.attentions.0.proj_in.weight", "mid_block.resnets.0.conv1.weight"),
        "is a Stable Diffusion UNet",
    ),
    "VACE": (lambda: wan() | one("vace_blocks.0.before_proj.weight"), "is a VACE transformer"),
    "nobody's": (
        lambda: one("mixer.weight"),
        "is no (Wan transformer|transformer of a video model that longgen knows); it holds mixer",
    ),
    "nothing": (dict, "is no (Wan transformer|transformer of a video model that longgen knows); it holds nothing"),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("form", ["{}", "self-forcing:{}"])
def test_a_safetensors_file_is_named_for_what_it_holds(tmp_path: Path, case: str, form: str) -> None:
    make, message = TABLES[case]
    path = checkpoint.sparse(tmp_path / "weights.safetensors", make())
    with pytest.raises(UsageError, match=message) as caught:
        find(form.format(path))
    assert str(path) in caught.value.given
    assert caught.value.expected
    assert caught.value.hint


OF_ONE_KIND: dict[str, tuple[Callable[[], dict[str, Any]], str, str]] = {  # message of a file alone, and of a causal one
    "image to video": (
        lambda: wan() | one("img_emb.proj.0.weight", "blocks.0.cross_attn.k_img.weight"),
        "is a Wan transformer of no published size", "is an image-to-video transformer",
    ),
    "36 channels": (
        lambda: wan(**{"patch_embedding.weight": (1536, 36, 1, 2, 2)}), "is a Wan transformer of no published size: 30 layers",
        "is an image-to-video transformer: 36 channels go in and 16 come out",
    ),
    "LTX": (
        lambda: one("model.diffusion_model.patchify_proj.weight", "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight",
                    "model.diffusion_model.adaln_single.emb.timestep_embedder.linear_1.weight"),
        "is incomplete or damaged: an LTX-Video transformer without proj_out", "is an LTX-Video transformer",
    ),
    "HunyuanVideo": (
        lambda: one("img_in.proj.weight", "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight"),
        "is incomplete or damaged: a HunyuanVideo transformer without final_layer", "is a HunyuanVideo transformer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_ONE_KIND)
def test_a_file_alone_and_a_causal_one_are_asked_for_different_models(tmp_path: Path, case: str) -> None:
    make, alone, causal = OF_ONE_KIND[case]
    path = checkpoint.sparse(tmp_path / "weights.safetensors", make())
    for name, message in ((str(path), alone), (f"self-forcing:{path}", causal)):
        with pytest.raises(LonggenError, match=message) as caught:
            find(name)
        assert caught.value.expected
        assert caught.value.hint


def zipped(**files: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


TINY = save({"x": torch.zeros(2, 2)})
BYTES: dict[str, tuple[bytes, str]] = {  # case -> content of a file, how it is named
    "GGUF of nothing": (
        b"GGUF\x03\x00\x00\x00" + bytes(64),
        "no transformer of a video model that longgen knows; it holds nothing",
    ),
    "GGUF of another version": (b"GGUF\x01\x00\x00\x00" + bytes(64), "incomplete or damaged: it is of GGUF version 1"),
    "GGUF cut off": (b"GGUF\x03\x00\x00\x00" + struct.pack("<QQ", 1, 0) + b"\x05", r"incomplete or damaged: its table cannot be"),
    "GGUF of a million": (b"GGUF\x03\x00\x00\x00" + struct.pack("<QQ", 2**40, 0), "incomplete or damaged: its table would have"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "a Git LFS pointer"),
    "page": (b"\n<!DOCTYPE html>\n<html><body>login</body></html>", "a web page and no weights"),
    "error": (b'{"error": "Repository not found"}', "JSON text and no weights"),
    "index": (b'{"metadata": {}, "weight_map": {"x": "y"}}', "the index of weights in several files"),
    "message": (b"Entry not found\n", "text and no weights: 'Entry not found'"),
    "letters": ("# Über 猫\n".encode() * 999, "text and no weights: '# Über 猫"),
    "empty": (b"", "an empty file"),
    "zeros": (bytes(10_000), "filled with zeros where its format would stand: a download that was not finished"),
    "zip": (zipped(**{"model/weights.safetensors": "x"}), r"a ZIP archive with model/weights\.safetensors"),
    "TorchScript": (zipped(**{"m/constants.pkl": "", "m/data.pkl": "", "m/code/x.py": ""}), "a TorchScript program"),
    "npz": (zipped(**{"x.npy": ""}), "a NumPy archive"),
    "half a zip": (zipped(**{"m/data.pkl": "x" * 500})[:300], "the beginning of a torch file or a ZIP archive: its end is missing"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "a gzip archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    "video": (b"\x00\x00\x00\x20ftypisom" + bytes(50), "a video"),
    "cut off": (TINY[:-3], "incomplete or damaged: [0-9]+ of its [0-9]+ bytes are there"),
    "cut off in the table": (TINY[:20], "incomplete or damaged: its table would be [0-9]+ bytes long"),
    "a table that is none": (struct.pack("<Q", 8) + b"{{{{{{{{", "incomplete or damaged: its table cannot be read"),
    "a table nested deeply": (struct.pack("<Q", 400_000) + b'{"x":' * 80_000, "incomplete or damaged: its table cannot be read"),
    "a table of strings": (struct.pack("<Q", 13) + b'{"x": "text"}', "incomplete or damaged: its table cannot be read"),
    "negative shapes": (
        struct.pack("<Q", 57) + b'{"x":{"dtype":"F32","shape":[-2],"data_offsets":[0,0]}}  ',
        "incomplete or damaged: its table has shapes that cannot be",
    ),
    "a table of a terabyte": (
        struct.pack("<Q", 2**40) + b"{" + bytes(50),
        "incomplete or damaged: its table would be 1099511627776 bytes",
    ),
    "noise": (b"\xa7\x13\xff\x00" * 30, "neither a torch nor a safetensors file"),
}


@pytest.mark.parametrize("case", BYTES)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.gguf", "weights"])
def test_a_file_of_another_format_is_named_whatever_its_name(tmp_path: Path, case: str, name: str) -> None:
    content, message = BYTES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LonggenError, match=rf"{path} is {message}") as caught:
        find(str(path))
    assert caught.value.expected
    assert caught.value.hint


@pytest.mark.parametrize("form", ["{}", "self-forcing:{}"])
def test_a_pipe_or_a_device_is_not_read(tmp_path: Path, form: str) -> None:
    """Reading a pipe would wait for ever."""
    os.mkfifo(tmp_path / "weights.safetensors")
    for place in (tmp_path / "weights.safetensors", "/dev/zero"):
        with pytest.raises(UsageError, match=f"{place} is a pipe or a device, and no file"):
            find(form.format(place))


def test_an_empty_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published.write_configs(WAN_1_3B, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find(".").layers == WAN_1_3B.layers
    with pytest.raises(UsageError, match="no backbone is called ''"):
        find("")


def test_a_large_file_is_told_by_its_header(tmp_path: Path) -> None:
    """57 GiB of weights that are never read, and would not fit in memory."""
    path = checkpoint.sparse(tmp_path / "weights.safetensors", wan(WAN_14B, dtype="F32"))
    assert path.stat().st_size > 50 * GIB
    found, causal = find(str(path)), find(f"self-forcing:{path}")
    assert (found.layers, found.width, found.causal) == (40, 5120, False)
    assert (causal.layers, causal.width, causal.causal) == (40, 5120, True)


# Causal or bidirectional


@pytest.mark.parametrize("prefix", ["", "model.", "model.diffusion_model.", "diffusion_model."])
def test_a_bidirectional_wan_is_not_taken_for_a_causal_one(tmp_path: Path, prefix: str) -> None:
    """Names and shapes are the same, so that a file that says nothing is bidirectional; one that only its name calls causal, and a
    torch file, have to be given by a backbone's name."""
    path = checkpoint.sparse(tmp_path / "wan2.1_t2v_1.3B_bf16.safetensors", wan(prefix=prefix), {"format": "pt"})
    assert (find(str(path)).files, find(str(path)).causal) == ((str(path),), False)
    assert find(f"self-forcing:{path}").checkpoint == str(path)
    named = path.rename(tmp_path / "wan2.1_self_forcing_1.3B.safetensors")
    with pytest.raises(
        UsageError, match=r"is a Wan transformer of width 1536, as self-forcing, and nothing in it says whether"
    ) as caught:
        find(str(named))
    assert f"causal: --backbone self-forcing:{named}; bidirectional: --backbone wan2.1-1.3b:{named}" in caught.value.hint
    assert find(f"wan2.1-1.3b:{named}").files == (str(named),)


def test_a_diffusers_transformer_names_its_pipeline(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    published.write_configs(WAN_1_3B, tmp_path)
    shapes = {name: ("BF16", tuple(value.shape)) for name, value in published.transformer(WAN_1_3B).state_dict().items()}
    path = checkpoint.sparse(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", shapes)
    found = find(str(path))
    assert (found.files, found.source, found.causal) == ((str(path),), str(tmp_path), False)
    with pytest.raises(UsageError, match=r"one part of a model alone \(WanTransformer3DModel\)") as caught:
        find(str(path.parent))
    assert f"give {tmp_path}" in caught.value.hint
    assert find(str(tmp_path)).parameters == WAN_1_3B.parameters


@pytest.mark.parametrize("how", ["generator_ema", "generator", "flat", "metadata", "config"])
def test_what_says_that_it_is_causal_is_taken_for_it(tmp_path: Path, how: str) -> None:
    path = tmp_path / "weights.safetensors"
    if how in ("generator_ema", "generator"):
        path = path.with_suffix(".pt")
        torch.save({how: {f"model.{name}": torch.zeros(1).expand(shape) for name, (_, shape) in wan().items()}}, path)
    elif how == "flat":
        checkpoint.sparse(path, wan(prefix="generator_ema.model.") | wan(prefix="generator.model."))
    else:
        checkpoint.sparse(path, wan(), {"modelspec.title": "CausVid 1.3B"} if how == "metadata" else None)
    if how == "config":
        (tmp_path / "config.json").write_text(json.dumps({"num_frame_per_block": 3}))
    found = find(str(path))
    assert (found.name, found.causal, found.steps) == (f"self-forcing:{path}", True, SELF_FORCING.steps)
    assert found.parameters == WAN_1_3B.parameters


# Folders


def test_a_folder_without_a_pipeline_is_named_for_what_it_holds(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    hub = folder("models--owner--name", **{"snapshots/0/model_index.json": "{}", "refs/main": "0"})
    for place, message, hint in (
        (folder("release", **{"config.json": '{"_class_name": "WanModel"}'}), "holds Wan's original release", "-Diffusers"),
        (folder("vae", **{"config.json": '{"_class_name": "AutoencoderKLWan"}'}), r"of a model alone \(Autoenc", "model_index"),
        (folder("style", **{"pytorch_lora_weights.safetensors": ""}), "holds a LoRA", "--lora"),
        (folder("files", **{"a.safetensors": "", "notes.txt": ""}), r"the folder holds a\.safetensors", "--backbone self-forcing:"),
        (hub, "the hub's cache of a model", str(hub / "snapshots" / "0")),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message) as caught:
            find(str(place))
        assert hint in caught.value.hint
        assert "model_index.json is not there" in caught.value.given
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match=r"model_index\.json is not there: it is empty"):
        find(str(tmp_path / "empty"))


@pytest.fixture
def pipeline(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(model_folder("wan"), tmp_path / "pipeline")


def test_a_missing_shard_is_named(pipeline: Path) -> None:
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel.from_pretrained(pipeline / "transformer")
    shutil.rmtree(pipeline / "transformer")
    transformer.save_pretrained(pipeline / "transformer", max_shard_size="100KB")
    whole = find(str(pipeline))
    shards = sorted((pipeline / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    for name in (str(pipeline), f"self-forcing:{pipeline}"):
        with pytest.raises(MissingError, match=rf"lacks 1 of its {len(shards)} files of weights: {shards[1].name}"):
            find(name)
    for shard in shards:
        shard.unlink(missing_ok=True)
    assert find(str(pipeline)).layers == whole.layers  # its configs alone are enough for a plan


def config_of(pipeline: Path, **changes: Any) -> None:
    path = pipeline / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_config_of_other_weights_is_refused(pipeline: Path) -> None:
    """diffusers leaves layers out where the config has fewer, and says nothing."""
    for changes, message in (
        ({"num_layers": 1}, "says 1 layers; its weights have 2"), ({"num_layers": 3}, "says 3 layers; its weights have 2"),
        ({"num_attention_heads": 5}, "says 5 heads of 24 channels, which is a width of 120; its weights are of width 48"),
    ):  # fmt: skip
        before = (pipeline / "transformer" / "config.json").read_text()
        config_of(pipeline, **changes)
        with pytest.raises(UsageError, match=message):
            find(str(pipeline))
        (pipeline / "transformer" / "config.json").write_text(before)
    assert find(str(pipeline)).layers == 2


def test_quantized_weights_in_a_folder_are_named(pipeline: Path) -> None:
    config_of(pipeline, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(UsageError, match="says that its weights are quantized by bitsandbytes"):
        find(str(pipeline))
    config_of(pipeline, quantization_config=None)
    file = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    header = formats.header(file, "")
    checkpoint.sparse(file, {**header.tensors, "blocks.0.attn1.to_q.scale_weight": ("F32", (1,))})
    with pytest.raises(UsageError, match="holds 8-bit weights with scales of their own"):
        find(str(pipeline))


NONSENSE: dict[str, list[tuple[str, str, Any]]] = {  # model -> file, key, a value that cannot be
    "wan": [
        ("transformer", key, value)
        for key in ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "in_channels", "rope_max_seq_len")
        for value in (-1, 0, "30", 1.5, 10**7, 10**30, None, [3], True)
    ]
    + [
        ("transformer", "attention_head_dim", 25),
        ("transformer", "attention_head_dim", 4),
        ("transformer", "in_channels", 20),
        ("transformer", "out_channels", 8),
        ("transformer", "patch_size", [1, 2]),
        ("transformer", "patch_size", [1, 0, 2]),
        ("transformer", "patch_size", "122"),
        ("transformer", "patch_size", [1, 2, 2.5]),
        ("vae", "scale_factor_temporal", 0),
        ("vae", "scale_factor_spatial", "8"),
        ("vae", "z_dim", 32),
    ],
    "ltx": [
        ("vae", "spatio_temporal_scaling", [5, 5]),
        ("vae", "spatio_temporal_scaling", "yes"),
        ("vae", "patch_size", 0),
        ("transformer", "num_layers", 10**7),
        ("transformer", "attention_head_dim", 0),
    ],
    "cogvideox": [
        ("vae", "block_out_channels", []),
        ("vae", "block_out_channels", [1] * 2000),
        ("transformer", "sample_frames", -49),
        ("transformer", "time_embed_dim", "512"),
        ("transformer", "max_text_seq_length", 0),
        ("transformer", "use_rotary_positional_embeddings", "no"),
    ],
    "hunyuan": [
        ("transformer", "rope_axes_dim", [2, 2, 2]),
        ("transformer", "rope_theta", 0),
        ("transformer", "mlp_ratio", "4"),
        ("transformer", "num_single_layers", 10**7),
        ("vae", "temporal_compression_ratio", -4),
        ("transformer", "rope_theta", float("nan")),
    ],
}


@pytest.mark.parametrize("model", NONSENSE)
def test_a_config_with_a_value_that_cannot_be_is_named(model_folder: Callable[[str], Path], tmp_path: Path, model: str) -> None:
    """File, key, value and what is expected, at once: num_layers = 10^7 took 25 s."""
    folder = shutil.copytree(model_folder(model), tmp_path / "model")
    for part, key, value in NONSENSE[model]:
        path = folder / part / "config.json"
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | {key: value}))
        with pytest.raises(UsageError) as caught:
            find(str(folder))
        assert f"--backbone {folder}: " in caught.value.given, (key, value)
        assert "config.json says " in caught.value.given, (key, value)
        assert key in caught.value.given + caught.value.expected, (key, value)
        assert caught.value.expected
        path.write_text(before)
    assert find(str(folder)).layers
