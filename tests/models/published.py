"""The published models at their real sizes: on the meta device, as configs, and as whole folders with files of weights.

A folder has the repository's configs, names and number of files of weights, dtypes and vocabularies; see tests/models/layouts.py.
Its weights are holes in sparse files, or random. Random ones are of few layers, so that they fit on a small machine.

Legend: V rows of an embedding.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from longgen.backbones.registry import adapter_of
from longgen.backbones.spec import BackboneSpec, substitute
from longgen.pipelines import random_weights
from tests.models import checkpoint
from tests.models.layouts import LAYOUTS, Config, Layout

WAN_VAE_22 = dict(
    base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
    scale_factor_spatial=16,
)  # fmt: skip
LTX_2_VAE = dict(spatial_compression_ratio=32, temporal_compression_ratio=8)
DEPTHS = ("num_layers", "num_single_layers", "num_hidden_layers", "num_refiner_layers")
WORDS = ["a", "small", "cyan", "triangle", "orbiting", "on", "sand", "background", "worst", "quality", "blurry"]
LLAVA = [("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."),
         ("model.multi_modal_projector.", "multi_modal_projector."),
         ("model.vision_tower.", "vision_tower.vision_model.")]  # fmt: skip
Shapes = dict[str, tuple[str, tuple[int, ...]]]  # of a file's weights: name -> dtype, as safetensors names it, and shape


_TRANSFORMERS: dict[str, Any] = {}


def transformer(spec: BackboneSpec) -> Any:
    """The same one at every call: it has no weights, and nobody changes it."""
    if (key := repr(spec)) not in _TRANSFORMERS:
        with torch.device("meta"):
            _TRANSFORMERS[key] = random_weights.untrained(spec)
    return _TRANSFORMERS[key]


@functools.cache
def _shapes(library: str, kind: str, config: str) -> dict[str, tuple[int, ...]]:
    """Of the weights of the class `kind`; several models have the same text encoder. config: JSON."""
    with torch.device("meta"):
        if library != "transformers":
            source = diffusers if library == "diffusers" else getattr(diffusers.pipelines, library)
            model = getattr(source, kind).from_config(json.loads(config))
        else:
            cls = getattr(transformers, kind)
            model = cls(cls.config_class.from_dict(json.loads(config)))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def write_configs(spec: BackboneSpec, folder: Path) -> None:
    """A folder as a published model's, without its weights."""
    with torch.device("meta"):
        arguments = WAN_VAE_22 if spec.latent_channels == 48 else LTX_2_VAE if spec.family == "ltx2" else {}
        vae = adapter_of(spec).vae_kind(**arguments)
    vae.save_config(folder / "vae")
    model = transformer(spec)
    model.save_config(folder / "transformer")
    kind = ["diffusers", type(model).__name__]
    index: dict[str, Any] = {"_class_name": adapter_of(spec).kind_of(spec).__name__, "transformer": kind}
    if spec.family == "wan":
        two = spec.experts == 2
        index |= {"transformer_2": kind if two else [None, None], "boundary_ratio": spec.boundary if two else None,
                  "expand_timesteps": spec.latent_channels == 48}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))


def write(name: str, folder: Path, layers: int | None = None) -> Path:
    """The folder of the backbone `name`. layers: of transformer and text encoder, random; None: all, holes, and no tokenizer."""
    layout = LAYOUTS[name]
    for path, config in layout.configs.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json_text(shallow(config, layers)))
    for component, count in layout.files.items():
        shapes = weights(layout, component, layers)
        stem = "model" if component.endswith("_encoder") or component == "text_encoder_2" else "diffusion_pytorch_model"
        for file, part in split(shapes, stem, count, folder / component).items():
            write_part = checkpoint.sparse if layers is None else write_random
            write_part(folder / component / file, part, {"format": "pt"})
    if layers is not None:
        write_tokenizers(layout, folder)
    return folder


def json_text(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def weights(layout: Layout, component: str, layers: int | None = None) -> Shapes:
    """The weights of a component as its published files name them."""
    config = shallow(layout.configs[f"{component}/config.json"], layers)
    library, kind = layout.configs["model_index.json"][component]
    shapes = {key: (layout.dtypes[component], shape) for key, shape in _shapes(library, kind, json_text(config)).items()}
    shapes.pop("encoder.embed_tokens.weight", None)  # shared.weight by another name
    if kind == "Gemma3ForConditionalGeneration":
        shapes.pop("lm_head.weight")  # the embedding by another name
    if kind in ("CLIPTextModel", "CLIPVisionModel"):  # transformers before version 5 put a prefix before them
        prefix = "text_model." if kind == "CLIPTextModel" else "vision_model."
        shapes = {key if key.startswith(prefix) else prefix + key: entry for key, entry in shapes.items()}
    if kind == "LlavaForConditionalGeneration":  # and named the parts of this one otherwise
        shapes = {substitute(key, LLAVA): entry for key, entry in shapes.items()}
    return shapes


def split(shapes: Shapes, stem: str, count: int, folder: Path) -> dict[str, Shapes]:
    """The weights of each of `count` files; writes their index where there are several.

    The libraries fill files up to 5 GB, and in some versions of diffusers to 10. Fewer weights are in as many files.
    """
    if count == 1:
        return {f"{stem}.safetensors": shapes}
    parts = next((parts for limit in (5e9, 1e10) if len(parts := _filled(shapes, limit)) == count), None)
    if parts is None:
        keys = list(shapes)
        parts = [{key: shapes[key] for key in keys[index::count]} for index in range(count)]
    files = {f"{stem}-{index:05d}-of-{count:05d}.safetensors": part for index, part in enumerate(parts, start=1)}
    total = sum(map(_size, shapes.values()))
    index = {"metadata": {"total_size": total}, "weight_map": {key: file for file, part in files.items() for key in part}}
    (folder / f"{stem}.safetensors.index.json").write_text(json_text(index))
    return files


def _filled(shapes: Shapes, limit: float) -> list[Shapes]:
    """Files of at most `limit` bytes, filled in the order of the weights."""
    parts: list[Shapes] = [{}]
    room = limit
    for key, entry in shapes.items():
        room -= _size(entry)
        if room < 0 and parts[-1]:
            parts.append({})
            room = limit - _size(entry)
        parts[-1][key] = entry
    return parts


def _size(entry: tuple[str, tuple[int, ...]]) -> int:
    dtype, shape = entry
    return (4 if dtype == "F32" else 2) * int(torch.Size(shape).numel())


def shallow(config: Config, layers: int | None) -> Config:
    """`config` with `layers` layers at most, where it is one of a transformer or a text encoder; 3 of a Llama, which skips 2."""
    if layers is None:
        return config
    least = 3 if config.get("model_type") == "llama" else 1
    nested = {key: shallow(part, layers) for key, part in config.items() if key in ("text_config", "vision_config")}
    return config | nested | {key: min(max(layers, least), config[key]) for key in DEPTHS if key in config}


def write_random(path: Path, shapes: Shapes, metadata: dict[str, str]) -> None:
    """A file of random weights, written in pieces: matrices of small numbers, gains near 1."""
    checkpoint.sparse(path, shapes, metadata)
    generator = torch.Generator().manual_seed(len(path.parts[-1]) + sum(map(ord, path.parts[-2])))
    noise = 0.02 * torch.randn(2**22 + 37, generator=generator)  # repeats in a large weight, but not row by row
    with path.open("r+b") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        for key, (dtype, shape) in shapes.items():
            kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
            gain = key.endswith(("norm.weight", "gamma", "latents_std")) or (len(shape) == 1 and key.endswith(".weight"))
            block = (noise + 1 if gain else noise).to(kind).view(torch.uint8 if kind != torch.bfloat16 else torch.int16)
            for piece in _pieces(np.asarray(block).view(np.uint8), _size((dtype, shape))):
                file.write(piece)


def _pieces(block: np.ndarray, size: int) -> Iterator[memoryview]:
    while size > 0:
        yield memoryview(block[:size])
        size -= len(block)


def write_tokenizers(layout: Layout, folder: Path) -> None:
    """Tokenizers of the kinds and vocabulary sizes that the repositories have, of a few words and numbered fillers."""
    index = layout.configs["model_index.json"]
    text = layout.configs["text_encoder/config.json"]
    place = folder / "tokenizer"
    place.mkdir(parents=True)
    if layout.sentencepiece:
        (place / "spiece.model").write_bytes(sentencepiece_model(32000))
        extra = [f"<extra_id_{number}>" for number in range(100)]
        special = {"additional_special_tokens": extra, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        config = special | {"extra_ids": 100, "legacy": True, "model_max_length": 226, "sp_model_kwargs": {},
                            "clean_up_tokenization_spaces": True, "tokenizer_class": "T5Tokenizer"}  # fmt: skip
        (place / "added_tokens.json").write_text(json_text({token: 32099 - number for number, token in enumerate(extra)}))
        (place / "special_tokens_map.json").write_text(json_text(special))
        (place / "tokenizer_config.json").write_text(json_text(config))
        return
    llama = index["tokenizer"][1] == "LlamaTokenizerFast"
    vocabulary = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS)]
    vocabulary += [f"<filler_{number}>" for number in range(text["vocab_size"] - 300 - len(vocabulary))]
    if llama:
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

        split = pre_tokenizers.Whitespace()
        template = {word for word, _ in split.pre_tokenize_str(DEFAULT_PROMPT_TEMPLATE["template"])}
        vocabulary = ["<pad>", "</s>", "<unk>", *WORDS, *sorted(template - set(WORDS))]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = split
    else:
        tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unk_id=2))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(place / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = names | {"tokenizer_class": "PreTrainedTokenizerFast" if llama else "T5Tokenizer", "padding_side": "right",
                      "model_max_length": 1000000000000000019884624838656}  # fmt: skip
    (place / "tokenizer_config.json").write_text(json_text(config))
    if "tokenizer_2" in index:
        second = folder / "tokenizer_2"
        second.mkdir()
        letters = [chr(code) for code in range(33, 127)]
        pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        (second / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
        (second / "merges.txt").write_text("#version: 0.2\n")
        special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
                   "unk_token": "<|endoftext|>"}  # fmt: skip
        (second / "special_tokens_map.json").write_text(json_text(special))
        config = special | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace"}
        (second / "tokenizer_config.json").write_text(json_text(config))


def sentencepiece_model(size: int) -> bytes:
    """A SentencePiece unigram model of `size` pieces: its protocol buffer, written field by field."""

    def varint(number: int) -> bytes:
        return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)

    def message(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def integer(number: int, value: int) -> bytes:
        return varint(number << 3) + varint(value)

    def piece(text: str, score: float, kind: int) -> bytes:
        return message(1, message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + integer(3, kind))

    normal, unknown, control = 1, 2, 3
    pieces = [("<pad>", 0.0, control), ("</s>", 0.0, control), ("<unk>", 0.0, unknown)]
    pieces += [(f"▁{word}", -1.0 - number, normal) for number, word in enumerate(WORDS)]
    pieces += [(letter, -30.0, normal) for letter in "▁abcdefghijklmnopqrstuvwxyz.,"]
    pieces += [(f"{number}#", -40.0, normal) for number in range(size - len(pieces))]
    trainer = integer(3, 1) + integer(4, size) + integer(40, 2) + integer(42, 1)  # unigram; ids of <unk> and </s>
    normalizer = message(1, b"identity") + integer(3, 1) + integer(4, 1) + integer(5, 1)
    return b"".join(piece(*entry) for entry in pieces) + message(2, trainer) + message(3, normalizer)
