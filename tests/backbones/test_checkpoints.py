"""Checkpoints as trainings leave them, made from a small Wan transformer: each becomes that transformer again, or is refused.

Legend: W a weight [out, in], A [rank, in] and B [out, rank] of a LoRA.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import UMT5EncoderModel

from longgen.backbones import checkpoints
from longgen.backbones.find import find
from longgen.backbones.spec import BackboneSpec
from longgen.errors import LonggenError, MissingError, UsageError
from tests.models import checkpoint
from tests.models.checkpoint import wans_name

RANK = 3
PREFIXES: dict[str, Callable[[str], str]] = {
    "none": lambda name: name,
    "model": lambda name: f"model.{name}",
    "FSDP": lambda name: f"model._fsdp_wrapped_module.{name}",
    "FSDP blocks": lambda name: f"_fsdp_wrapped_module.model.{name}".replace(".self_attn.", "._fsdp_wrapped_module.self_attn."),
    "checkpointed": lambda name: "model." + name.replace("self_attn", "_checkpoint_wrapped_module.self_attn"),
    "compiled, in parallel": lambda name: f"module._orig_mod.{name}",
}
CONTAINERS = ["generator_ema", "generator", "model", "state_dict", "none"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "longgen" / "converted"


@pytest.fixture(scope="module")
def transformer(model_folder: Callable[[str], Path]) -> Any:
    """The small Wan with every weight at random, so that no two can be confused."""
    model = WanTransformer3DModel.from_pretrained(model_folder("wan") / "transformer")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


@pytest.fixture
def weights(transformer: Any) -> dict[str, Tensor]:
    """By their original names."""
    return checkpoint.weights(transformer)


@pytest.fixture
def saved(model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., BackboneSpec]:
    """saved(content): a spec whose checkpoint is a torch file with that content; saved(path) one with that file."""

    def make(content: Any, lora: Any = None) -> BackboneSpec:
        places = []
        for what, name in ((content, "weights.pt"), (lora, "lora.pt")):
            if what is None or isinstance(what, Path):
                places.append(what and str(what))
                continue
            torch.save(what, tmp_path / name)
            places.append(str(tmp_path / name))
        return replace(find(str(model_folder("wan"))), checkpoint=places[0], lora=places[1])

    return make


def converted(spec: BackboneSpec) -> Any:
    return checkpoints.load(checkpoints.convert(spec), torch.float32)


def assert_same(model: Any, expected: Any) -> None:
    """Its weights, and what it says."""
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 16, 3, 4, 4, generator=generator), torch.randn(1, 5, 32, generator=generator)
    with torch.no_grad():
        one, other = (m(x, torch.tensor([700.0]), text, return_dict=False)[0] for m in (model, expected))
    assert torch.equal(one, other)
    assert one.std() > 0


# What trainings leave


def test_the_names_of_the_test_are_those_of_the_published_checkpoints(weights: dict[str, Tensor]) -> None:
    """A sample, as Self-Forcing's file has them after `model.`; the second norm of a block is its third there."""
    expected = {
        "patch_embedding.weight", "text_embedding.0.weight", "time_embedding.2.bias", "time_projection.1.weight", "head.head.bias",
        "head.modulation", "blocks.0.modulation", "blocks.0.self_attn.q.weight", "blocks.1.cross_attn.o.bias",
        "blocks.0.self_attn.norm_q.weight", "blocks.0.norm3.weight", "blocks.1.ffn.0.weight", "blocks.1.ffn.2.bias",
    }  # fmt: skip
    assert expected <= weights.keys()
    assert not any("attn1" in name or "norm2" in name or "scale_shift" in name for name in weights)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_checkpoint_becomes_the_transformer_that_it_was(
    saved: Callable[..., BackboneSpec], transformer: Any, weights: dict[str, Tensor], prefix: str, container: str
) -> None:
    """Beside it stand what training needs: the critic, the generator before its mean, a count of steps."""
    named = {PREFIXES[prefix](name): weight for name, weight in weights.items()}
    others = {name: torch.zeros_like(weight) for name, weight in named.items()}
    content = named if container == "none" else {"step": 600, "critic": others, "generator": others} | {container: named}
    if container in ("model", "state_dict"):
        del content["generator"]
    assert_same(converted(saved(content)), transformer)


def test_a_mean_that_was_not_begun_is_passed_over(
    saved: Callable[..., BackboneSpec], transformer: Any, weights: dict[str, Tensor]
) -> None:
    assert_same(converted(saved({"generator_ema": {}, "generator": weights})), transformer)
    assert_same(converted(saved({"state_dict": {"generator": weights}})), transformer)


def test_safetensors_and_old_torch_files_are_read(
    saved: Callable[..., BackboneSpec], transformer: Any, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file({f"model.{name}": weight for name, weight in weights.items()}, tmp_path / "weights.safetensors")
    (tmp_path / "weights.safetensors").rename(tmp_path / "named-wrongly.pt")
    assert_same(converted(saved(tmp_path / "named-wrongly.pt")), transformer)
    torch.save({"generator": weights}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same(converted(saved(tmp_path / "old.pt")), transformer)


def test_names_that_are_diffusers_are_kept(saved: Callable[..., BackboneSpec], transformer: Any) -> None:
    assert_same(converted(saved({"generator": dict(transformer.state_dict())})), transformer)


def test_weights_keep_their_dtype(saved: Callable[..., BackboneSpec], weights: dict[str, Tensor]) -> None:
    folder = checkpoints.convert(saved({name: weight.bfloat16() for name, weight in weights.items()}))
    assert {weight.dtype for weight in checkpoints.examine(folder, data=True)[0].values()} == {torch.bfloat16}


def test_the_settings_are_those_of_the_model(
    saved: Callable[..., BackboneSpec], transformer: Any, weights: dict[str, Tensor]
) -> None:
    """All of those that the constructor takes, the size of a head from the pipeline's config."""
    made = WanTransformer3DModel.load_config(checkpoints.convert(saved(weights)))
    for name, value in transformer.config.items():
        if not name.startswith("_"):
            assert made[name] == value or list(value) == made[name], name


# LoRA


def lora(weights: dict[str, Tensor], names: list[str], prefix: str = "base_model.model.", middle: str = "") -> dict[str, Tensor]:
    """A LoRA in peft's names for the weights `names`, without `.weight`."""
    generator, parts = torch.Generator().manual_seed(2), {}
    for name in names:
        rows, columns = weights[f"{name}.weight"].shape
        parts[f"{prefix}{name}.lora_A{middle}.weight"] = torch.randn(RANK, columns, generator=generator)
        parts[f"{prefix}{name}.lora_B{middle}.weight"] = torch.randn(rows, RANK, generator=generator)
    return parts


TARGETS = [f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("self_attn.q", "cross_attn.o", "ffn.0", "ffn.2")]


@pytest.mark.parametrize(("prefix", "middle"), [("base_model.model.", ""), ("base_model.model.model.", ".default")])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("alpha", [None, 2 * RANK])
def test_a_lora_is_merged(
    saved: Callable[..., BackboneSpec], weights: dict[str, Tensor], prefix: str, middle: str, wrapped: bool, alpha: float | None
) -> None:
    """W + (alpha / rank) B A, and the other weights as they were."""
    parts = lora(weights, TARGETS, prefix, middle)
    expected = dict(weights)
    for name in TARGETS:
        a, b = (parts[f"{prefix}{name}.lora_{half}{middle}.weight"] for half in "AB")
        expected[f"{name}.weight"] = weights[f"{name}.weight"] + (2.0 if alpha else 1.0) * (b @ a)
        if alpha:
            parts[f"{prefix}{name}.alpha"] = torch.tensor(float(alpha))
    tensors = converted(saved({"generator": weights}, {"generator_lora": parts} if wrapped else parts)).state_dict()
    assert {wans_name(name): 0 for name in tensors}.keys() == expected.keys()
    for name, weight in tensors.items():
        assert torch.equal(weight, expected[wans_name(name)]), name


def test_a_lora_is_merged_in_float32_and_stored_as_the_weight(
    saved: Callable[..., BackboneSpec], weights: dict[str, Tensor]
) -> None:
    halves = {name: weight.bfloat16() for name, weight in weights.items()}
    parts = {name: part.bfloat16() for name, part in lora(weights, TARGETS[:1]).items()}
    a, b = (part.float() for part in parts.values())
    name = f"{TARGETS[0]}.weight"
    merged = checkpoints.examine(checkpoints.convert(saved(halves, parts)), data=True)[0]["blocks.0.attn1.to_q.weight"]
    assert torch.equal(merged, (halves[name].float() + b @ a).bfloat16())


def test_a_lora_that_does_not_fit_is_refused(saved: Callable[..., BackboneSpec], weights: dict[str, Tensor]) -> None:
    good = lora(weights, TARGETS)
    beyond = {name.replace("blocks.1", "blocks.7"): part for name, part in good.items()}
    half = {name: part for name, part in good.items() if "1.self_attn.q.lora_B" not in name}
    wide = good | {"base_model.model.blocks.0.ffn.0.lora_A.weight": torch.zeros(RANK, 5)}
    for parts, message in (
        (beyond, r"blocks\.7\.attn1\.to_q\.weight is for no weight of that name and shape"),
        (half, r"blocks\.1\.attn1\.to_q\.weight has one half of a pair"),
        (wide, r"blocks\.0\.ffn\.net\.0\.proj\.weight is for no weight of that name and shape"),
        (weights, "is no LoRA in peft's names; it holds "),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            checkpoints.convert(saved({"generator": weights}, {"generator_lora": parts}))
        assert "lora.pt" in caught.value.given


# What is something else


def image_to_video(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {"patch_embedding.weight": torch.zeros(48, 36, 1, 2, 2)}


OTHERS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {  # case -> content from the weights, message
    "another image-to-video": (lambda w: w | {"img_emb.proj.0.weight": torch.zeros(2)}, "an image-to-video transformer"),
    "image-to-video": (image_to_video, "an image-to-video transformer: 36 channels go in and 16 come out"),
    "VACE": (lambda w: w | {"vace_blocks.0.before_proj.weight": torch.zeros(2)}, "is a VACE transformer"),
    "LoRA": (lambda w: {"generator_lora": lora(w, TARGETS)}, "is a LoRA, not a transformer"),
    "bare LoRA": (lambda w: lora(w, TARGETS), r"is a LoRA.* it holds base_model\.model\.blocks\.0\.self_attn\.q\.lora_A\.weight, "),
    "critic": (lambda w: {"step": 3, "critic": w}, "is only the critic of a training"),
    "nothing": (lambda w: {}, "is no Wan transformer; it holds nothing"),
    "no weights": (lambda w: {"step": 3, "seed": 4}, "is no Wan transformer; it holds step, seed"),
    "another model": (lambda w: {"mixer.weight": torch.zeros(2)}, r"is no Wan transformer; it holds mixer\.weight"),
    "a tensor": (lambda w: torch.zeros(2), "holds a Tensor, not a dictionary of weights"),
    "fewer layers": (lambda w: {n: x for n, x in w.items() if "blocks.1" not in n}, "it has 1 of the 2 layers"),
    "no layers": (lambda w: {n: x for n, x in w.items() if "blocks" not in n}, "blocks.0.ffn.net.0.proj.weight is missing"),
    "half a layer": (
        lambda w: {n: x for n, x in w.items() if "1.self_attn" not in n},
        r"blocks\.1\.attn1\.\S+ is missing, and so with 9 more",
    ),
    "a stranger": (lambda w: w | {"blocks.0.gate": torch.zeros(2)}, r"blocks\.0\.gate belongs to no Wan transformer"),
    "a wrong shape": (lambda w: w | {"blocks.0.ffn.2.bias": torch.zeros(2)}, r"blocks\.0\.ffn\.net\.2\.bias has another shape"),
    "another width": (
        lambda w: {n: torch.cat([x, x]) if "patch" in n else x for n, x in w.items()},
        "is of width 96 with 16 latent channels; .* is of width 48 with 16",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_something_else_is_named(
    saved: Callable[..., BackboneSpec], weights: dict[str, Tensor], cache: Path, case: str
) -> None:
    make, message = OTHERS[case]
    with pytest.raises(LonggenError, match=message) as caught:
        checkpoints.convert(saved(make(weights)))
    assert "weights.pt" in caught.value.given
    assert caught.value.expected
    assert caught.value.hint
    assert not cache.exists()


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_vae_and_a_text_encoder_are_named(
    saved: Callable[..., BackboneSpec], model_folder: Callable[[str], Path], part: str
) -> None:
    kind, name = {"vae": (AutoencoderKLWan, "a VAE"), "text_encoder": (UMT5EncoderModel, "a text encoder, of the T5 kind")}[part]
    with pytest.raises(UsageError, match=f"is {name}; it holds "):
        checkpoints.convert(saved(dict(kind.from_pretrained(model_folder("wan") / part).state_dict())))


def test_a_file_without_weights_is_named(saved: Callable[..., BackboneSpec], weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(weights, tmp_path / "whole.pt")
    save_file(weights, tmp_path / "whole.safetensors")
    torch_file, safetensors_file = ((tmp_path / f"whole.{kind}").read_bytes() for kind in ("pt", "safetensors"))
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("notes.txt", "words")
    for content, message in (
        (b"", "an empty file"), (b"<html>404</html>", "a web page and no weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a Git LFS pointer"),
        (b"\x00" * 99, "filled with zeros"), ((tmp_path / "archive").read_bytes(), r"a ZIP archive with notes\.txt"),
        (torch_file[:5000], "the beginning of a torch file"),
        (b"\x80\x02junk", "neither a torch nor a safetensors file, or only a part"),
        (safetensors_file[:5000], "incomplete or damaged: its table would be"),
        (safetensors_file[:-5], "incomplete or damaged: [0-9]+ of its [0-9]+ bytes are there"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(LonggenError, match=rf"file\.pt is {message}"):
            checkpoints.convert(saved(path))


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_code_in_a_file_is_not_run(
    saved: Callable[..., BackboneSpec], weights: dict[str, Tensor], tmp_path: Path, form: str
) -> None:
    path, made = tmp_path / "attack.pt", tmp_path / "made"
    content = {"generator": weights, "extra": Attack(made)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Attack(made), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UsageError, match=r"attack\.pt holds code \((posix|nt)\.mkdir\), which longgen does not run"):
        checkpoints.convert(saved(path))
    assert not made.exists()
    torch.load(path, weights_only=False) if form == "zip" else pickle.loads(pickle.dumps(Attack(made)))
    assert made.exists()  # it would have been


# Folders


@pytest.fixture
def folder(transformer: Any, tmp_path: Path) -> Path:
    transformer.save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_diffusers_wrote_is_not_converted(
    saved: Callable[..., BackboneSpec], transformer: Any, folder: Path, cache: Path
) -> None:
    assert checkpoints.convert(saved(folder)) == folder
    assert not cache.exists()
    assert_same(checkpoints.load(folder, torch.float32), transformer)


def test_fastvideo_s_class_is_read_as_diffusers(saved: Callable[..., BackboneSpec], transformer: Any, folder: Path) -> None:
    """In several files, as large ones are; settings of its own are no concern of the model's."""
    shutil.rmtree(folder)
    transformer.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    change_config(folder, _class_name="CausalWanTransformer3DModel", local_attn_size=-1, num_frames_per_block=3)
    assert checkpoints.convert(saved(folder)) != folder
    assert_same(converted(saved(folder)), transformer)


def test_a_lora_is_merged_into_a_folder_too(
    saved: Callable[..., BackboneSpec], weights: dict[str, Tensor], transformer: Any, folder: Path
) -> None:
    parts = lora(weights, TARGETS[:1])
    a, b = parts.values()
    merged = converted(saved(folder, {"generator_lora": parts})).blocks[0].attn1.to_q.weight
    assert torch.equal(merged, transformer.blocks[0].attn1.to_q.weight + b @ a)


def test_a_folder_of_something_else_is_named(
    saved: Callable[..., BackboneSpec], model_folder: Callable[[str], Path], folder: Path
) -> None:
    with pytest.raises(UsageError, match="holds a AutoencoderKLWan"):
        checkpoints.convert(saved(model_folder("wan") / "vae"))
    (folder / "config.json").write_text("{")
    with pytest.raises(LonggenError, match=r"config\.json cannot be read"):
        checkpoints.convert(saved(folder))
    (folder / "config.json").unlink()
    with pytest.raises(LonggenError, match=r"config\.json cannot be read"):
        checkpoints.convert(saved(folder))


def test_weights_that_diffusers_would_leave_at_random_are_an_error(folder: Path, transformer: Any) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = {name: weight for name, weight in transformer.state_dict().items() if name != "blocks.1.attn1.to_q.bias"}
    save_file(tensors, file)
    with pytest.raises(LonggenError, match=r"1 weights are missing or of another shape, as blocks\.1\.attn1\.to_q\.bias"):
        checkpoints.load(folder, torch.float32)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(LonggenError, match="is incomplete or damaged"):
        checkpoints.load(folder, torch.float32)


# The cache


def test_a_conversion_is_made_once(
    saved: Callable[..., BackboneSpec], weights: dict[str, Tensor], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = saved({"generator": weights}, {"generator_lora": lora(weights, TARGETS)})
    folder = checkpoints.convert(spec)
    assert folder.parent == cache
    monkeypatch.setattr(checkpoints, "examine", None)
    assert checkpoints.convert(spec) == folder
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_what_changes_is_converted_anew(
    saved: Callable[..., BackboneSpec], weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file of the same size and name, another LoRA, another size of heads, another version of the conversion."""
    made = [checkpoints.convert(spec := saved({"generator": weights}))]
    assert spec.checkpoint is not None
    stamp = os.stat(spec.checkpoint).st_mtime_ns
    changed = {name: weight + 1 for name, weight in weights.items()}
    spec = saved({"generator": changed})
    os.utime(spec.checkpoint, ns=(stamp + 1000, stamp + 1000))
    made.append(checkpoints.convert(spec))
    assert torch.equal(checkpoints.examine(made[-1], data=True)[0]["proj_out.bias"], weights["head.head.bias"] + 1)
    made.append(checkpoints.convert(replace(spec, heads=4, head_dim=12)))
    assert checkpoints.convert(replace(spec, heads=4, head_dim=12)) == made[-1]
    for seed in (0, 1):
        made.append(checkpoints.convert(saved({"generator": changed}, lora(weights, TARGETS[: seed + 1]))))
    monkeypatch.setattr(checkpoints, "VERSION", checkpoints.VERSION + 1)
    made.append(checkpoints.convert(spec))
    assert len(set(made)) == len(made)


class StoppedError(BaseException):
    pass


def test_an_interrupted_conversion_leaves_nothing(
    saved: Callable[..., BackboneSpec], transformer: Any, weights: dict[str, Tensor], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, real = saved(weights), WanTransformer3DModel.save_pretrained

    def stop(model: Any, folder: Path) -> None:
        real(model, folder)
        raise StoppedError

    monkeypatch.setattr(WanTransformer3DModel, "save_pretrained", stop)
    with pytest.raises(StoppedError):
        checkpoints.convert(spec)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(WanTransformer3DModel, "save_pretrained", real)
    assert_same(converted(spec), transformer)


def test_two_conversions_at_once_agree(
    saved: Callable[..., BackboneSpec], transformer: Any, weights: dict[str, Tensor], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one finds the other's folder in its place."""
    spec, real = saved(weights), WanTransformer3DModel.save_pretrained

    def overtaken(model: Any, folder: Path) -> None:
        monkeypatch.setattr(WanTransformer3DModel, "save_pretrained", real)
        checkpoints.convert(spec)
        real(model, folder)

    monkeypatch.setattr(WanTransformer3DModel, "save_pretrained", overtaken)
    assert_same(converted(spec), transformer)
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_named(
    saved: Callable[..., BackboneSpec], weights: dict[str, Tensor], cache: Path
) -> None:
    cache.parent.mkdir(parents=True)
    cache.touch()
    with pytest.raises(LonggenError, match=f"cannot be written to {cache}: .*File exists") as caught:
        checkpoints.convert(saved(weights))
    assert "XDG_CACHE_HOME" in caught.value.hint


# Where weights are looked for


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for place in (str(tmp_path / "none.pt"), "none.pt", "weights/none.pt", "./a/b/none.pt"):
        with pytest.raises(MissingError, match="no such file"):
            checkpoints.fetch(place)
    with pytest.raises(MissingError, match=r"owner/name/some/file\.pt is not in the local cache and cannot be fetched") as caught:
        checkpoints.fetch("owner/name/some/file.pt")
    assert "hf download owner/name some/file.pt" in caught.value.hint
    assert "--backbone NAME:PATH" in caught.value.hint
    with pytest.raises(MissingError) as caught:
        checkpoints.fetch("owner/name/transformer")
    assert 'hf download owner/name --include "transformer/*"' in caught.value.hint


@pytest.fixture
def hub(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local hub cache with a file and a folder of owner/name, laid out as the hub's client does."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "some").mkdir(parents=True)
    (snapshot / "some" / "file.pt").touch()
    shutil.copytree(folder, snapshot / "transformer")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_what_is_in_the_hub_s_cache_is_found_there(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", None)  # nobody is asked
    assert checkpoints.fetch("owner/name/some/file.pt") == hub / "some" / "file.pt"
    assert checkpoints.fetch("owner/name/transformer") == hub / "transformer"


def test_a_folder_of_the_hub_with_its_configs_alone_is_not_there(hub: Path) -> None:
    (hub / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingError, match="owner/name/transformer is not in the local cache"):
        checkpoints.fetch("owner/name/transformer")
