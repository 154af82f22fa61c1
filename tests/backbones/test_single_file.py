"""Single files as people have them: told by their headers, loaded to the folder's weights bit for bit, or named."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from longgen import checkpoint, run
from longgen.backbones import formats, gguf_header, single_file, vae_file
from longgen.backbones.find import find
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.cli import app
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.pipelines import file_parts, file_weights, loading
from longgen.pipelines.checks import check_settings
from longgen.pipelines.scaled_linear import ScaledLinear, dequantized
from longgen.preset import Sample
from longgen.progress import Progress
from tests.models import checkpoint as files
from tests.models import published, single_files, small

PROMPT = "a small cyan triangle orbiting on a sand background"
CPU = ModelSettings("cpu", "fp32")


def own_family(name: str) -> str:
    return small.family_of(name).name.partition("-")[0]


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a small pipeline, for files beside it."""
    return lambda name: shutil.copytree(model_folder(name), tmp_path / name, dirs_exist_ok=True)


def weights(folder: Path, part: str = "transformer") -> dict[str, torch.Tensor]:
    return {name: tensor for file in (folder / part).glob("*.safetensors") for name, tensor in load_file(file).items()}


def in_files(name: str, folder: Path, prefix: str = "", authors: bool = True) -> str:
    """The transformers of the pipeline in `folder`, in a file or two beside it, as --backbone names them."""
    paths = []
    for part, noise in (("transformer", "high"), ("transformer_2", "low")):
        if tensors := weights(folder, part):
            tensors = single_files.authors(own_family(name), tensors) if authors else tensors
            paths.append(single_files.save(folder / f"{noise}_noise.safetensors", tensors, prefix))
    return ",".join(map(str, paths))


def equal(first: Any, second: Any) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


# Told by their headers


def table(name: str, part: str = "BF16", prefix: str = single_files.PREFIX) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The header of a published model's file, of its real shapes under its authors' names."""
    state = published.transformer(SPECS[name]).state_dict()
    renamed = single_files.authors(SPECS[name].family.partition("-")[0], state)
    return {prefix + key: (part, tuple(tensor.shape)) for key, tensor in renamed.items()}


@pytest.mark.parametrize(
    "name", ["wan2.1-1.3b", "wan2.1-14b", "wan2.1-i2v-14b-480p", "wan2.1-flf2v-14b", "wan2.2-ti2v-5b", "wan2.2-t2v-a14b",
             "wan2.2-i2v-a14b", "ltx-2b", "hunyuanvideo"],
)  # fmt: skip
def test_a_file_with_a_published_model_s_names_and_shapes_is_that_model(tmp_path: Path, name: str) -> None:
    spec, shapes = SPECS[name], table(name)
    stems = [name] if spec.experts == 1 else [f"{name}_high_noise", f"{name}_low_noise"]
    paths = [files.sparse(tmp_path / f"{stem}.safetensors", shapes) for stem in stems]
    found = find(",".join(map(str, paths)))
    differing = {part for part in vars(spec) if getattr(found, part) != getattr(spec, part)}
    assert differing <= {"name", "about", "license", "parameters", "files", "file_notes", "advised", "advised_in"}
    assert found.parameters == pytest.approx(spec.parameters, rel=1e-3)
    assert "which is not on this machine yet" in found.file_notes[0]
    assert spec.source in found.file_notes[0]
    if spec.experts == 2:
        with pytest.raises(UsageError, match=f"is one of the two experts of {name}"):
            find(str(paths[0]))
    if spec.experts == 2:
        with pytest.raises(UsageError, match="low noise comes first or high noise second"):
            find(f"{paths[1]},{paths[0]}")
    else:
        assert find(f"{name}:{paths[0]}").files == found.files


def test_what_the_shapes_leave_open_is_said_and_can_be_given(tmp_path: Path) -> None:
    """The file's name decides then, if it says something."""
    both = files.sparse(
        tmp_path / "hunyuan_video_v2_replace_image_to_video_720p_bf16.safetensors", table("hunyuanvideo", prefix="")
    )
    assert find(str(both)).picture_needed
    assert f"--backbone hunyuanvideo:{both}" in find(str(both)).file_notes[1]
    path = files.sparse(tmp_path / "i2v.safetensors", table("wan2.1-i2v-14b-480p"))
    assert f"--backbone wan2.1-i2v-14b-720p:{path}" in find(str(path)).file_notes[1]
    chosen = find(f"wan2.1-i2v-14b-720p:{path}")
    assert (chosen.size, chosen.source, len(chosen.file_notes)) == ((1280, 720), SPECS["wan2.1-i2v-14b-720p"].source, 1)
    with pytest.raises(UsageError, match=r"wan2\.1-1\.3b has 1 transformer of 30 layers of width 1536"):
        find(f"wan2.1-1.3b:{path}")
    ltx = table("ltx-2b") | {"vae.encoder.conv_out.conv.weight": ("BF16", (129, 2048, 3, 3, 3))}
    whole = find(str(files.sparse(tmp_path / "ltxv-2b-0.9.5.safetensors", ltx)))
    assert (whole.family, whole.file_vae) == ("ltx-condition", True)


# The folder's weights, bit for bit


@pytest.mark.parametrize("name", ["wan", "wan-experts", "wan-ti2v", "wan-flf2v", "ltx", "ltx-condition", "hunyuan", "hunyuan-i2v"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_file_loads_to_the_folder_s_weights(folder: Callable[[str], Path], name: str, dtype: str) -> None:
    """In float32, and in bfloat16, where from_pretrained keeps some of Wan's layers in float32."""
    place, settings = folder(name), ModelSettings("cpu", dtype)
    reference = loading.load(find(str(place)), settings)
    for prefix, authors in ((single_files.PREFIX, True), ("", False)):
        loaded = loading.load(find(in_files(name, place, prefix, authors)), settings)
        assert len(loaded.transformers) == len(reference.transformers)
        assert all(map(equal, loaded.transformers, reference.transformers))
        assert type(loaded.pipe) is type(reference.pipe)


@pytest.mark.parametrize("name", ["wan", "ltx", "hunyuan"])
def test_fp8_stays_in_8_bits_and_is_w_times_scale(folder: Callable[[str], Path], name: str) -> None:
    """The latents are those of a file with the dequantized weights, bit for bit; a scale for all, one a row, or none."""
    place, family = folder(name), own_family(name)
    tensors = single_files.authors(family, weights(place))
    scaled = single_files.scaled_fp8(tensors)
    rows = next(key for key in scaled if key.endswith("scale_weight"))
    matrix = rows.replace("scale_weight", "weight")
    scaled[rows] = scaled[rows] * torch.linspace(1, 2, len(scaled[matrix]))[:, None]
    plain = {key: tensor.to(torch.float8_e5m2) if tensor.ndim == 2 else tensor for key, tensor in tensors.items()}
    for eighths in (scaled, plain):
        loaded = loading.load(find(str(single_files.save(place / "fp8.safetensors", eighths))), CPU)
        layers = [layer for layer in loaded.pipe.transformer.modules() if isinstance(layer, ScaledLinear)]
        assert len(layers) > 15
        assert all(layer.weight.element_size() == 1 for layer in layers)
        whole = {key: dequantized(value, eighths.get(key.removesuffix("weight") + "scale_weight"), torch.float32)
                 if value.dtype.itemsize == 1 else value for key, value in eighths.items()
                 if not key.endswith(("scale_weight", "scaled_fp8"))}  # fmt: skip
        reference = loading.load(find(str(single_files.save(place / "whole.safetensors", whole))), CPU)
        named = dict(reference.pipe.transformer.named_modules())
        for path, layer in loaded.pipe.transformer.named_modules():
            if isinstance(layer, ScaledLinear):
                hidden = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
                assert torch.equal(layer(hidden), named[path](hidden)), path
    assert loading.load(find(str(place / "fp8.safetensors")), ModelSettings("cpu", "bf16")).pipe.transformer.dtype == torch.bfloat16


def latents(backbone: str, output: Path, **more: Any) -> torch.Tensor:
    made = run.generate("a small cyan triangle", output, backbone=backbone, sample=Sample(frames=9, steps=2, size=(64, 64)), seed=1,
                        device="cpu", **more)  # fmt: skip
    return checkpoint.load_tensors(Path(made.run) / "latents.safetensors")[0]["latents"]


@pytest.mark.parametrize("name", ["wan", "ltx", "hunyuan"])
def test_gguf_gives_the_folder_s_video_within_its_rounding(folder: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    place, family = folder(name), own_family(name)
    tensors = single_files.authors(family, weights(place))
    reference, errors = latents(str(place), tmp_path / "folder.mp4"), []
    for kind in ("F16", "Q8_0"):
        path = single_files.save_gguf(place / f"{kind}.gguf", tensors, kind)
        made = latents(str(path), tmp_path / f"{kind}.mp4")
        errors.append(float((made - reference).norm() / reference.norm()))
    assert 0 < errors[0] < 1e-3
    assert 0 < errors[1] < 1e-2
    whole = single_files.save_gguf(place / "F32.gguf", tensors, "F32")
    assert equal(loading.load(find(str(whole)), CPU).pipe.transformer, loading.load(find(str(place)), CPU).pipe.transformer)


def test_our_table_of_gguf_types_is_the_library_s(tmp_path: Path) -> None:
    for number, (name, *sizes) in gguf_header.TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == name
        assert tuple(sizes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
    path = single_files.save_gguf(tmp_path / "x.gguf", {"a": torch.ones(4, 64), "b": torch.ones(3)}, "Q8_0")
    mine, theirs = gguf_header.header(path, ""), gguf.GGUFReader(path)
    for tensor in theirs.tensors:
        assert mine.tensors[tensor.name] == (tensor.tensor_type.name, tuple(reversed(tensor.shape.tolist())))
        assert mine.spans[tensor.name] == (tensor.data_offset, tensor.n_bytes)


def resident(kind: str = "VmRSS") -> int:
    """Bytes; "VmHWM": the most since it was last cleared."""
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts it")
@pytest.mark.parametrize(("stored", "dtype"), [("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "bf16"), ("fp8", "bf16")])
def test_the_weights_are_in_memory_once(tmp_path: Path, stored: str, dtype: str) -> None:
    """No copy in another dtype beside them: the peak is at most 1.15 times their size, of matrices as large as real ones."""
    from diffusers import WanTransformer3DModel

    config = dict(num_attention_heads=8, attention_head_dim=128, text_dim=1024, freq_dim=256, ffn_dim=8192, num_layers=4,
                  in_channels=16, out_channels=16, patch_size=(1, 2, 2))  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in WanTransformer3DModel(**config).state_dict().items()}
    names = {"bf16": "BF16", "fp32": "F32", "fp8": "F8_E4M3"}
    path = files.sparse(tmp_path / "weights.safetensors", {
        name: (names[stored] if len(shape) == 2 else "F32", shape) for name, shape in shapes.items()})  # fmt: skip
    file, target = single_file.read(path), loading.DTYPES[dtype]
    file_weights.Reader(path, file.header).read("patch_embedding.weight", torch.bfloat16)  # what the libraries need once
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")
    model = file_weights.transformer(WanTransformer3DModel, config, file, target, lambda count: None)
    size = sum(weight.nbytes for weight in model.state_dict().values())
    assert resident("VmHWM") - before < 1.15 * size + 16 * 2**20  # and the buffer


# From the command line


def longgen(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def comfy(tmp_path: Path) -> Path:
    """tiny in a file of ComfyUI's, away from its folder."""
    source = Path(SPECS["tiny"].source)
    return single_files.save(tmp_path / "tiny.safetensors", single_files.authors("wan", weights(source)), single_files.PREFIX)


def test_a_file_is_planned_shown_generated_resumed_and_refused_when_changed(comfy: Path, tmp_path: Path) -> None:
    single_files.save(tmp_path / "style.safetensors", {"blocks.0.self_attn.q.lora_down.weight": torch.ones(2, 2)})
    listed = longgen("backbones", "list", tmp_path).stdout.splitlines()
    assert listed[0].startswith("style.safetensors: is a LoRA, not a transformer")
    assert listed[1] == "tiny.safetensors: Wan transformer in tiny.safetensors, float16; of the shape of tiny"
    shown = longgen("backbones", "show", comfy, "--json")
    assert json.loads(shown.stdout)["files"] == [str(comfy)]
    planned = longgen("plan", "--backbone", comfy, "--frames", 33, "--json")
    assert any(
        "holds the transformer; text encoder, tokenizer, vae: in the package" in note
        for note in json.loads(planned.stdout)["notes"]
    )
    common = ("generate", "--prompt", PROMPT, "--frames", 9, "--steps", 2, "--seed", 1, "--device", "cpu")
    made = longgen(*common, "--backbone", comfy, "-o", tmp_path / "file.mp4")
    assert made.exit_code == 0, made.output
    assert "holds the transformer" in made.stderr.partition("load")[0]
    assert "first step done after" in made.stderr
    assert longgen(*common, "--backbone", "tiny", "-o", tmp_path / "tiny.mp4").exit_code == 0
    first, second = (checkpoint.load_tensors(tmp_path / f"{name}.run" / "latents.safetensors") for name in ("file", "tiny"))
    assert torch.equal(first[0]["latents"], second[0]["latents"])
    assert len(first[1]["weights_file"]) == 32
    assert "weights_file" not in second[1]
    again = longgen("generate", "--resume", "-o", tmp_path / "file.mp4")
    assert "there is nothing to do" in again.stderr
    assert longgen("inspect", tmp_path / "file.mp4").exit_code == 0
    assert longgen("decode", tmp_path / "file.run", "-o", tmp_path / "decoded.mp4", "--device", "cpu").exit_code == 0
    tensors = load_file(comfy)
    save_file({key: tensor * 1.5 for key, tensor in tensors.items()}, comfy)
    changed = longgen("generate", "--resume", "-o", tmp_path / "file.mp4")
    assert changed.exit_code == 2
    assert "was made with another weights_file" in changed.stderr


def test_progress_counts_the_bytes_of_the_file(comfy: Path) -> None:
    seen: list[Progress] = []
    loading.load(find(str(comfy)), CPU, seen.append)
    assert seen[-1].unit == "bytes"
    assert seen[-1].total > comfy.stat().st_size - 40_000
    assert seen[-1].done == seen[-1].total


# What a file needs beside it


def test_parts_are_given_one_by_one_where_nothing_else_is_here(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """No hub and no folder: --vae FILE and --text-encoder DIR, and the scheduler as published."""
    place = folder("wan")
    reference = loading.load(find(str(place)), CPU)
    apart = replace(find(in_files("wan", place)), source="nobody/nothing")
    note = check_settings(apart, CPU)[0]  # the suite runs offline
    assert "text_encoder and tokenizer and vae" in note
    assert "must be downloaded first, which HF_HUB_OFFLINE forbids, from nobody/nothing" in note
    with pytest.raises(
        MissingError, match=r"what .* needs beside it \(text encoder, tokenizer, vae\), from nobody/nothing"
    ) as caught:
        loading.load(apart, CPU)
    assert "--vae FILE and --text-encoder DIR" in caught.value.hint
    (tmp_path / "vae").mkdir()
    vae = tmp_path / "vae" / "vae.safetensors"
    save_file(weights(place, "vae"), vae)
    shutil.copy(place / "vae" / "config.json", vae.parent)
    for texts in (place, place / "text_encoder"):
        loaded = loading.load(apart, CPU.replace(vae=str(vae), text_encoder=str(texts)))
        for part in ("transformer", "vae", "text_encoder"):
            assert equal(getattr(loaded.pipe, part), getattr(reference.pipe, part)), part
        assert loaded.pipe.tokenizer(PROMPT).input_ids == reference.pipe.tokenizer(PROMPT).input_ids
        assert loaded.pipe.scheduler.config.flow_shift == 5.0


def test_a_vae_of_comfyui_s_is_read_by_the_published_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    small_config = {"base_dim": 8, "z_dim": 16}
    monkeypatch.setitem(vae_file.CONFIGS, "AutoencoderKLWan", [{}, small_config])
    stock = AutoencoderKLWan(**small_config)
    path = tmp_path / "wan_2.1_vae.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in single_files.wan_vae(stock.state_dict()).items()}, path)
    assert "decoder.middle.0.residual.0.gamma" in formats.header(path, "").tensors
    spec = replace(SPECS["wan2.1-1.3b"], source="nobody/nothing")
    assert equal(file_parts.vae(spec, path, torch.float32, lambda count: None), stock)
    with pytest.raises(UsageError, match=r"has 16 latent channels, and wan2.2-ti2v-5b has 48"):
        check_settings(SPECS["wan2.2-ti2v-5b"], CPU.replace(vae=str(path)))


def test_an_ltx_video_file_holds_its_vae_too(folder: Callable[[str], Path]) -> None:
    """As Lightricks publishes them: both under the authors' names."""
    place = folder("ltx")
    reference = loading.load(find(str(place)), CPU)
    tensors = {single_files.PREFIX + key: value for key, value in single_files.authors("ltx", weights(place)).items()}
    vae = single_files.ltx_vae(weights(place, "vae"))
    assert "vae.decoder.up_blocks.0.res_blocks.0.conv1.conv.weight" in vae
    found = find(str(single_files.save(place / "ltx-video-2b-v0.9.safetensors", tensors | vae)))
    assert found.file_vae
    assert "holds the transformer and the VAE; text encoder, tokenizer: from" in found.file_notes[0]
    loaded = loading.load(found, CPU)
    assert all(equal(getattr(loaded.pipe, part), getattr(reference.pipe, part)) for part in ("transformer", "vae"))


# Files that will not do


def test_a_wrong_or_truncated_file_of_each_kind_is_one_sentence(folder: Callable[[str], Path], tmp_path: Path) -> None:
    place = folder("wan")
    path = Path(in_files("wan", place))
    tensors = load_file(path)
    lora = single_files.save(place / "lora.safetensors", {"blocks.0.self_attn.q.lora_down.weight": torch.ones(2, 2)})
    vae = single_files.save(
        place / "vae.safetensors", {"conv2.weight": torch.ones(16, 16, 1, 1, 1), "decoder.head.0.gamma": torch.ones(2)}
    )
    cases: list[tuple[str, dict[str, Any], str]] = [
        (str(lora), {}, "is a LoRA, not a transformer"),
        (str(vae), {}, "is a VAE; it holds"),
        (str(path), {"vae": str(path)}, "is no VAE that diffusers reads|is a "),
        (str(path), {"vae": str(lora)}, "--vae .* is no VAE"),
        (str(path), {"vae": str(place / "none.safetensors")}, "cannot be read"),
        (str(path), {"text_encoder": str(place / "none")}, "no such folder"),
        (str(path), {"text_encoder": str(place / "scheduler")}, "holds no text encoder"),
        (f"{path},{lora}", {}, "is a LoRA"),
        (f"{path},{path}", {}, "names one expert twice"),
        (str(place / "none.safetensors"), {}, "no such file"),
    ]
    del tensors["blocks.1.self_attn.q.weight"]
    lacking = single_files.save(place / "lacking.safetensors", tensors)
    cases.append((str(lacking), {}, r"lacking\.safetensors lacks blocks\.1\.attn1\.to_q\.weight"))
    surplus = single_files.save(place / "surplus.safetensors", load_file(path) | {"blocks.0.more": torch.ones(2)})
    cases.append((str(surplus), {}, r"holds what does not belong: blocks\.0\.more"))
    for whole in (path, single_files.save_gguf(place / "whole.gguf", load_file(path), "Q8_0")):
        cut = place / f"cut{whole.suffix}"
        cut.write_bytes(whole.read_bytes()[:-100])
        cases.append((str(cut), {}, "is incomplete or damaged: [0-9]+ of its [0-9]+ bytes are there"))
    unread = place / "iq.gguf"
    content = bytearray((place / "whole.gguf").read_bytes())
    at = content.index(b"blocks.0.ffn.0.weight") + len(b"blocks.0.ffn.0.weight") + 4 + 16  # its type
    content[at : at + 4] = struct.pack("<I", gguf.GGMLQuantizationType.IQ2_XS)
    unread.write_bytes(content)
    cases.append((str(unread), {}, "is a GGUF file of IQ2_XS, which diffusers does not compute with"))
    cases.append((str(place / "whole.gguf"), {"quantize": "fp8"}, "is a single file"))
    for backbone, settings, message in cases:
        with pytest.raises(LonggenError, match=message) as caught:
            loading.load(find(backbone), CPU.replace(**settings))
        assert caught.value.expected, message
        assert caught.value.hint, message
        assert "\n" not in caught.value.given, message


@pytest.mark.parametrize("form", ["fp8", "gguf"])
def test_a_lora_goes_over_eight_bits(folder: Callable[[str], Path], form: str) -> None:
    place = folder("wan")
    tensors = single_files.authors("wan", weights(place))
    if form == "fp8":
        path = single_files.save(place / "fp8.safetensors", single_files.scaled_fp8(tensors))
    else:
        path = single_files.save_gguf(place / "q8.gguf", tensors, "Q8_0")
    layer, rank = "blocks.0.ffn.2", 2  # of 64 input channels, two blocks of a GGUF
    pair = {"lora_down": torch.ones(rank, 64), "lora_up": torch.ones(48, rank)}
    named = {f"diffusion_model.{layer}.{part}.weight": tensor for part, tensor in pair.items()}
    lora = single_files.save(place / "lora.safetensors", named)
    hidden = torch.ones(1, 64)
    settings = (CPU, CPU.replace(lora=(str(lora),)))
    without, styled = (loading.load(find(str(path)), how).pipe.transformer.blocks[0].ffn.net[2](hidden) for how in settings)
    assert torch.allclose(styled - without, torch.full((1, 48), 128.0), rtol=1e-3)
