"""Folders as they are published: what is read from them is what longgen knows of these models, and their files are read."""

from __future__ import annotations

import hashlib
import inspect
import threading
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextModel, CLIPTokenizer, LlamaTokenizerFast, T5Tokenizer

from longgen.backbones.find import find
from longgen.backbones.registry import SPECS, adapter_of, published_name
from longgen.pipelines import loading
from tests.models import published
from tests.models.layouts import DIGESTS, LAYOUTS, Layout

OWN_WORDS = (
    "name",
    "source",
    "about",
    "license",
    "advised",
    "advised_in",
)  # a folder's spec has its own, and no publisher's advice
NOT_AT_HAND = {
    ("cogvideox-5b", "scheduler"),
    ("cogvideox-5b-i2v", "scheduler"),
    ("cogvideox-1.5", "scheduler"),
    ("cogvideox-1.5-i2v", "scheduler"),
}  # the folder has what diffusers' conversion writes, the spec what the authors' script takes
TWINS = {"wan2.1-i2v-14b-720p": "wan2.1-i2v-14b-480p"}  # whose configs are alike: a folder is taken for the second
CLIP = "text_encoder_2"


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A name and its folder at full size, in sparse files."""
    return request.param, published.write(request.param, tmp_path_factory.mktemp("published") / request.param)


def test_every_published_model_has_a_layout() -> None:
    assert {*LAYOUTS} == {name for name, spec in SPECS.items() if not spec.built_in and not spec.causal}


def test_a_published_folder_has_the_spec_that_is_known(layout: tuple[str, Path]) -> None:
    """Every number: channels, heads, layers, strides, sizes of transformer and companions, which its files give."""
    name, folder = layout
    found, known = find(str(folder)), SPECS[name]
    differ = {field.name: (getattr(found, field.name), getattr(known, field.name)) for field in fields(known)
              if getattr(found, field.name) != getattr(known, field.name)}  # fmt: skip
    of_a_twin = {"size"} if name in TWINS else set()
    assert {field for field in differ if (name, field) not in NOT_AT_HAND} <= {*OWN_WORDS} | of_a_twin, differ
    assert found.about.endswith(f"read from its configs; of the shape of {TWINS.get(name, name)}")
    assert published_name(found) == TWINS.get(name, name)


def test_a_published_folder_s_pipeline_reads_as_many_tokens_as_the_spec_says(layout: tuple[str, Path]) -> None:
    name, _ = layout
    spec = SPECS[name]
    if spec.family == "hunyuan15":  # which has the numbers in its constructor: tests/backbones/test_hunyuan15.py
        return
    if spec.token_lat > 1:  # 224 by its README; the pipeline's default is that of the first version
        return
    assert inspect.signature(adapter_of(spec).kind_of(spec).__call__).parameters["max_sequence_length"].default == spec.text_tokens


def test_the_configs_are_those_of_the_repositories(layout: tuple[str, Path]) -> None:
    """Also the index of the text encoder's files, and so the names of its weights: the embedding is there once."""
    name, folder = layout
    for path, digest in DIGESTS.get(name, {}).items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest, path
    for component, count in LAYOUTS[name].files.items():
        sizes = [path.stat().st_size for path in (folder / component).glob("*.safetensors")]
        assert len(sizes) == count
        assert max(sizes) < (1.01e10 if name == "cogvideox-5b" else 5.01e9)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with HunyuanVideo's second text encoder of one layer: 90 MB of fp16, as transformers 4 wrote it."""
    layout, folder = LAYOUTS["hunyuanvideo"], tmp_path_factory.mktemp("clip")
    (folder / CLIP).mkdir()
    config = published.shallow(layout.configs[f"{CLIP}/config.json"], 1)
    (folder / CLIP / "config.json").write_text(published.json_text(config))
    published.write_random(folder / CLIP / "model.safetensors", published.weights(layout, CLIP, 1), {"format": "pt"})
    return folder


def test_the_encoder_of_pictures_is_read_by_its_published_names(tmp_path: Path) -> None:
    """transformers 5 has them without the prefix of the file."""
    layout, part = LAYOUTS["wan2.1-i2v-14b-480p"], "image_encoder"
    (tmp_path / part).mkdir()
    (tmp_path / part / "config.json").write_text(published.json_text(published.shallow(layout.configs[f"{part}/config.json"], 1)))
    shapes = published.weights(layout, part, 1)
    assert all(name.startswith("vision_model.") for name in shapes)
    published.write_random(tmp_path / part / "model.safetensors", shapes, {"format": "pt"})
    kinds = loading.model_kinds(adapter_of(SPECS["wan2.1-i2v-14b-480p"]).picture_kind, str(write_index(tmp_path, layout)), set())
    model = loading.component(kinds[part], str(tmp_path), part, torch.float32)
    assert sum(weight.numel() for weight in model.parameters()) == sum(torch.Size(shape).numel() for _, shape in shapes.values())


def write_index(folder: Path, layout: Layout) -> Path:
    (folder / "model_index.json").write_text(published.json_text(layout.configs["model_index.json"]))
    return folder


@pytest.mark.parametrize(("dtype", "copies"), [(torch.float16, 0.0), (torch.bfloat16, 1.0)])
def test_a_component_is_in_memory_once(clip: Path, dtype: torch.dtype, copies: float) -> None:
    """In its file's dtype not even once, for the file is mapped; in another straight from that one, never by way of float32."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("memory is counted on Linux")
    size = (clip / CLIP / "model.safetensors").stat().st_size
    loading.component(CLIPTextModel, str(clip), CLIP, torch.float32)  # imports what it needs
    with Anonymous() as memory:
        model = loading.component(CLIPTextModel, str(clip), CLIP, dtype)
    print(f"{dtype}: {memory.peak / size:.2f} copies at most, of {size / 1e6:.0f} MB")
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert memory.peak < (copies + 0.4) * size


class Anonymous:
    """The growth of this process's own memory, mapped files aside, at its peak."""

    peak = 0

    def __enter__(self) -> Anonymous:
        self.before, self.stop = self._bytes(), threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.stop.wait(0.001):
            self.peak = max(self.peak, self._bytes() - self.before)

    @staticmethod
    def _bytes() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1000 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_a_tokenizer_that_is_a_sentencepiece_model_alone_is_read(tmp_path: Path) -> None:
    """LTX-Video and CogVideoX publish no tokenizer.json: transformers then needs sentencepiece and protobuf."""
    published.write_tokenizers(LAYOUTS["ltx-2b"], tmp_path)
    assert not (tmp_path / "tokenizer" / "tokenizer.json").exists()
    tokenizer = T5Tokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer("a cyan triangle, orbiting", padding="max_length", max_length=10).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁a", "▁cyan", "▁triangle", ",", "▁orbiting", "</s>", *["<pad>"] * 4]


def test_a_tokenizer_cuts_text_as_its_file_says_whatever_its_class(tmp_path: Path) -> None:
    """HunyuanVideo's index names LlamaTokenizerFast, which in transformers 5 has rules of its own: no spaces, no line ends."""
    rules = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    written = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    written.pre_tokenizer = rules
    written.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>", "<pad>"])
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    written.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<pad>"}
    config = names | {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", "model_max_length": 8192}
    (folder / "tokenizer_config.json").write_text(published.json_text(config))
    stock = LlamaTokenizerFast.from_pretrained(folder)
    pipe = SimpleNamespace(components={"tokenizer": stock, "vae": None})
    (tokenizer,) = loading.tokenizers_of_files(pipe, str(tmp_path)).values()
    text = "a cat\n\nsat"
    assert tokenizer(text).input_ids == written.encode(text).ids != stock(text).input_ids
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.model_max_length) == ("right", "<pad>", 8192)
    pipe.components["tokenizer"] = tokenizer
    assert loading.tokenizers_of_files(pipe, str(tmp_path)) == {}


def test_a_tokenizer_of_a_vocabulary_and_merges_is_read(tmp_path: Path) -> None:
    """HunyuanVideo's second."""
    published.write_tokenizers(LAYOUTS["hunyuanvideo"], tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer_2")
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab").input_ids) == ["<|startoftext|>", "a", "b</w>", "<|endoftext|>"]
