"""The spec of a model whose transformer is in one file, or whose two experts are in two: safetensors or GGUF, as for ComfyUI.

A file is told by the names and shapes in its header; nothing of its weights is read. It may have the authors' names or diffusers',
with or without ComfyUI's prefix `model.diffusion_model.`, and weights in 8 bits. What is not in it (scheduler, tokenizer, text
encoder, VAE) is that of the diffusers folder it lies in, else of the published model of its sizes.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from longgen.backbones import formats, gguf_header, hub, registry
from longgen.backbones.pipeline_folder import from_folder
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import CLIP_TOKENS
from longgen.errors import LonggenError, MissingError, UsageError

EXPECTED = ("a .safetensors or .gguf file with the transformer of a Wan 2.1 or 2.2, LTX-Video or HunyuanVideo model; "
            "HIGH,LOW for the two experts of Wan 2.2; or a diffusers folder")  # fmt: skip
WHOLE = ("F64", "F32", "F16", "BF16")  # dtypes that are cast to the one that is computed in
INNER, VAE = "model.diffusion_model.", "vae."  # in a file that holds more than the transformer: the prefixes of its parts
SCALES = (".scale_weight", ".weight_scale")  # of a weight in 8 bits; ComfyUI's scaled fp8 and what came after it
MARKERS = re.compile(r"(^|\.)(scaled_fp8|scale_input|input_scale|comfy_quant)$")  # beside them; of the arithmetic of some kernels
_SAID: tuple[tuple[str, Callable[[BackboneSpec], bool]], ...] = (  # in a file's name -> what it says, where shapes are equal
    (r"i2v|image.?to.?video", lambda spec: spec.picture_needed),
    (r"720p", lambda spec: "720p" in spec.name),
    (r"0\.9\.[5-8]", lambda spec: spec.family == "ltx-condition"),
)
_BLOCKS = {"wan": ("blocks.",), "ltx": ("transformer_blocks.",),
           "hunyuan": ("double_blocks.", "single_blocks.", "transformer_blocks.", "single_transformer_blocks.")}  # fmt: skip
_FAMILIES = {"wan": ("wan",), "ltx": ("ltx", "ltx-condition"), "hunyuan": ("hunyuan",)}
_TITLES = {"wan": "a Wan transformer", "ltx": "an LTX-Video transformer", "hunyuan": "a HunyuanVideo transformer"}
_KEYS = {  # what is read off a shape: (family, value) -> names of the tensor, the authors' and diffusers'
    ("wan", "input"): ("patch_embedding.weight",),
    ("wan", "output"): ("head.head.weight", "proj_out.weight"),
    ("wan", "ffn"): ("blocks.0.ffn.0.weight", "blocks.0.ffn.net.0.proj.weight"),
    ("wan", "image"): ("img_emb.proj.1.weight", "condition_embedder.image_embedder.ff.net.0.proj.weight"),
    ("wan", "pictures"): ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ("ltx", "input"): ("patchify_proj.weight", "proj_in.weight"),
    ("ltx", "output"): ("proj_out.weight",),
    ("ltx", "ffn"): ("transformer_blocks.0.ff.net.0.proj.weight",),
    ("hunyuan", "input"): ("img_in.proj.weight", "x_embedder.proj.weight"),
    ("hunyuan", "output"): ("final_layer.linear.weight", "proj_out.weight"),
    ("hunyuan", "ffn"): ("double_blocks.0.img_mlp.fc1.weight", "transformer_blocks.0.ff.net.0.proj.weight"),
}

_WIDTHS = {  # arguments of diffusers' transformers that a shape tells -> names of the tensor; the last axis of its first ones
    "text_dim": ("text_embedding.0.weight", "condition_embedder.text_embedder.linear_1.weight"),
    "freq_dim": ("time_embedding.0.weight", "condition_embedder.time_embedder.linear_1.weight"),
    "image_dim": _KEYS["wan", "image"],
    "caption_channels": ("caption_projection.linear_1.weight",),
    "cross_attention_dim": ("transformer_blocks.0.attn2.to_k.weight",),
    "text_embed_dim": ("txt_in.input_embedder.weight", "context_embedder.proj_in.weight"),
    "pooled_projection_dim": ("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight"),
}
_ARGUMENTS = {"wan": ("text_dim", "freq_dim", "image_dim"), "ltx": ("caption_channels", "cross_attention_dim"),
              "hunyuan": ("text_embed_dim", "pooled_projection_dim")}  # fmt: skip
_STACKS = {  # of HunyuanVideo: arguments that count blocks -> the beginnings of their names
    "num_layers": ("double_blocks.", "transformer_blocks."),
    "num_single_layers": ("single_blocks.", "single_transformer_blocks."),
    "num_refiner_layers": ("txt_in.individual_token_refiner.blocks.", "context_embedder.token_refiner.refiner_blocks."),
}


@dataclass(frozen=True)
class WeightsFile:
    """One file with a transformer. tensors: its tensors by bare name -> the name in the file. storage: how it keeps the weights."""

    path: Path
    header: formats.Header
    family: str
    tensors: Mapping[str, str]
    storage: str

    def shape(self, value: str) -> tuple[int, ...] | None:
        for name in _KEYS.get((self.family, value), ()):
            if name in self.tensors:
                return self.header.tensors[self.tensors[name]][1]
        return None

    @property
    def parameters(self) -> int:
        return sum(math.prod(self.header.tensors[name][1]) for bare, name in self.tensors.items() if is_weight(bare))

    @property
    def kept(self) -> tuple[int, int]:
        """Parameters that stay as the file has them, in 8 bits or fewer, and their bytes."""
        names = [name for bare, name in self.tensors.items() if is_weight(bare) and self.header.tensors[name][0] not in WHOLE]
        return sum(math.prod(self.header.tensors[name][1]) for name in names), sum(self.header.spans[name][1] for name in names)

    @property
    def gguf(self) -> bool:
        return self.storage.startswith("GGUF")

    @property
    def has_vae(self) -> bool:
        return any(name.startswith(VAE) for name in self.header.tensors)


@dataclass(frozen=True)
class Sizes:
    """What the shapes tell. width, ffn: channels. channels, condition: of the latents, and of what stands beside them."""

    layers: int
    width: int
    ffn: int
    channels: int
    condition: int
    image_tokens: int

    def fit(self, spec: BackboneSpec) -> bool:
        pictures = spec.family != "wan" or spec.image_tokens == self.image_tokens
        return pictures and (self.layers, self.width, self.ffn, self.channels, self.condition) == (
            spec.layers, spec.width, spec.ffn_dim, spec.latent_channels, spec.condition_channels)  # fmt: skip

    def __str__(self) -> str:
        return f"{self.layers} layers of width {self.width}, {self.ffn} in the feed-forward, {self.channels} latent channels"


def is_weight(bare: str) -> bool:
    return not bare.endswith(SCALES) and not MARKERS.search(bare)


def split(place: str) -> list[Path]:
    """The file or files that `FILE` or `HIGH,LOW` names, absolute."""
    parts = [place] if "," not in place or os.path.exists(os.path.expanduser(place)) else place.split(",")
    return [Path(os.path.abspath(os.path.expanduser(part.strip()))) for part in parts]


def says_causal(path: Path) -> bool:
    """Whether the header of a safetensors file, its name or the config beside it says that its model is causal."""
    table = formats.header(path, EXPECTED)
    config = path.with_name("config.json")
    texts = [path.name, *(f"{key} {value}" for key, value in table.metadata.items() if len(value) < 10**5), *table.tensors]
    if config.is_file() and config.stat().st_size < 10**6:
        texts.append(config.read_text(encoding="utf-8", errors="replace"))
    return formats.says_causal(texts) or any(name.startswith(("generator.", "generator_ema.")) for name in table.tensors)


def from_files(place: str, base: BackboneSpec | None = None) -> BackboneSpec:
    """The spec of the transformers in the file or files at `place`. base: the published model that the user says it is.

    Raises UsageError that names what a file is, MissingError where there is none, LonggenError where it is damaged.
    """
    paths = split(place)
    if len(paths) > 2:
        raise UsageError(f"--backbone {place} names {len(paths)} files", expected=EXPECTED, hint="give one, or the two experts")
    files = [read(path, place if len(paths) == 1 else None) for path in paths]
    sizes = [sizes_of(file) for file in files]
    _check_experts(place, files, sizes)
    near = _folder_of(files[0].path)
    known = [spec for name in _FAMILIES[files[0].family] for spec in registry.FAMILIES[name].specs]
    known.sort(key=lambda spec: sum(bool(re.search(word, files[0].path.name.lower())) != test(spec) for word, test in _SAID))
    if base is None and near is None and len(files) == 1 and _noise(files[0].path):
        _refuse_expert(files[0].path, [spec for spec in known if sizes[0].fit(spec)])
    offered = [base] if base is not None else [*([near] if near is not None else []), *known]
    fitting = [spec for spec in offered if sizes[0].fit(spec) and spec.experts == len(files) and _vae_fits(files[0], spec)]
    if not fitting:
        _refuse_sizes(place, files, sizes[0], offered, known, base)
    chosen = replace(fitting[0], file_vae=files[0].family == "ltx" and files[0].has_vae)
    prefix = "" if base is None else f"{base.name}:"
    source = near.source if base is not None and near is not None and near.same_shape(base) else chosen.source
    published = fitting[0] in known
    others = [spec.name for spec in fitting[1:] if spec in known] if published and base is None else []
    return replace(
        chosen, name=prefix + ",".join(str(file.path) for file in files), source=source, files=tuple(str(f.path) for f in files),
        about=f"{_TITLES[files[0].family].split(' ', 1)[1]} in {' and '.join(file.path.name for file in files)}, {files[0].storage}"
              + (f"; of the shape of {chosen.name}" if published else f"; of the pipeline in {source}"),
        license="see its model card", parameters=sum(file.parameters for file in files), advised=(), advised_in="",
        kept=(sum(file.kept[0] for file in files), sum(file.kept[1] for file in files)),
        file_notes=_notes(place, files, chosen, source, others),
    )  # fmt: skip


def read(path: Path, given: str | None = None) -> WeightsFile:
    """The header of the file at `path`, and what it is. given: as the user wrote it. Raises as `from_files`."""
    given = given or str(path)
    if not path.exists():
        raise MissingError(f"--backbone {given}: no such file or folder", expected=EXPECTED, hint="check the path")
    kind = formats.form(path, EXPECTED)
    if kind not in ("safetensors", "gguf"):
        raise UsageError(f"{path} is a torch file, which longgen reads for causal models alone", expected=EXPECTED,
                         hint=f"for causal weights, --backbone self-forcing:{path}; else its .safetensors file")  # fmt: skip
    table = gguf_header.header(path, EXPECTED) if kind == "gguf" else formats.header(path, EXPECTED)
    inner = [name for name in table.tensors if name.startswith(INNER)]
    whole = bool(inner) and any(name.startswith(VAE) for name in table.tensors)
    tensors = {formats.unwrapped(name): name for name in (inner if whole else table.tensors)}
    family = _family(path, table, tensors, whole)
    return WeightsFile(path, table, family, tensors, _storage(path, table, tensors, family, kind))


def _family(path: Path, table: formats.Header, tensors: Mapping[str, str], whole: bool) -> str:
    def refuse(what: str, hint: str = "choose the file that holds the transformer") -> NoReturn:
        raise UsageError(f"{path} is {what}", expected=EXPECTED, hint=hint)

    holds = f"; it holds {', '.join([*table.tensors][:3]) or 'nothing'}"
    if formats.is_lora(table.tensors):
        refuse(f"a LoRA, not a transformer: give it with --lora{holds}", f"--lora {path}, with the model that it was made for")
    model = formats.model_of(tensors)
    family = next((family for family in _FAMILIES if any(key in tensors for key in _KEYS[family, "input"])), None)
    entire = formats.model_of(table.tensors) or ""
    if entire.startswith("a whole pipeline") and not (whole and model == _TITLES["ltx"]):
        refuse(entire + holds, "give the file of the transformer alone, and others with --vae and --text-encoder")
    named = model is not None and not model.endswith("transformer")
    if family is None and not named and (quantized := formats.quantized(tensors, ())):
        raise UsageError(f"{path} holds {quantized}, of {model or 'a model'}: longgen does not read them", expected=EXPECTED,
                         hint=formats.PLAIN)  # fmt: skip
    if family == "wan" and model in (None, "an image-to-video transformer", *_TITLES.values()) and formats.is_wan(tensors):
        return "wan"
    if family is not None and model == _TITLES[family]:
        return family
    hints = {"a VAE": f"--vae {path}, beside --backbone"}
    refuse(f"{model or 'no transformer of a video model that longgen knows'}{holds}", hints.get(model or "", "choose the file that "
           "holds the transformer"))  # fmt: skip


def _storage(path: Path, table: formats.Header, tensors: Mapping[str, str], family: str, kind: str) -> str:
    """How the weights are kept, in words. Raises UsageError for what cannot be computed with."""
    of = {bare: table.tensors[name] for bare, name in tensors.items()}
    matrices: dict[str, int] = {}
    for bare, (dtype, shape) in of.items():
        if is_weight(bare) and len(shape) > 1:
            matrices[dtype] = matrices.get(dtype, 0) + math.prod(shape)
    most = max(matrices, key=lambda dtype: matrices[dtype], default="F32")
    if kind == "gguf":
        if unread := sorted({dtype for dtype, _ in of.values()} - {*gguf_header.READABLE}):
            raise UsageError(f"{path} is a GGUF file of {' and '.join(unread)}, which diffusers does not compute with",
                             expected=f"one of {', '.join(gguf_header.READABLE)}", hint="take another of its files")  # fmt: skip
        return f"GGUF {most}"
    quantized = formats.quantized(of, matrices)
    eighths = [dtype for dtype in matrices if dtype in ("F8_E4M3", "F8_E5M2")]
    if quantized is None:
        return formats.DTYPES.get(most, most)
    scales = {bare: shape for bare, (_, shape) in of.items() if bare.endswith(SCALES)}
    plain = all(math.prod(shape) in (1, _rows(of, bare)) for bare, shape in scales.items())
    strange = any(formats.quantized([bare], ()) for bare in of if is_weight(bare))  # such as nf4 and nvfp4
    if not eighths or strange or not plain or any(dtype[:1] in "IU" for dtype in matrices):
        raise UsageError(f"{path} holds {quantized}, of {_TITLES[family]}: longgen does not read them", expected=EXPECTED,
                         hint=formats.PLAIN)  # fmt: skip
    return f"{'scaled ' if scales else ''}fp8 ({eighths[0]})"


def _rows(tensors: Mapping[str, tuple[str, tuple[int, ...]]], scale: str) -> int:
    """Rows of the weight that `scale` belongs to; 0 where there is none."""
    weight = next((scale.removesuffix(end) + ".weight" for end in SCALES if scale.endswith(end)), scale)
    return tensors.get(weight, ("", (0,)))[1][0]


def sizes_of(file: WeightsFile) -> Sizes:
    """Raises LonggenError where a tensor that tells is missing."""
    read_off = {value: file.shape(value) for value in ("input", "output", "ffn")}
    fault = next((value for value, shape in read_off.items() if shape is None or len(shape) < 2), None)
    if fault is not None:
        names = " or ".join(_KEYS[file.family, fault])
        raise LonggenError(f"{file.path} is incomplete or damaged: {_TITLES[file.family]} without {names}", expected=EXPECTED,
                           hint=formats.DOWNLOAD_AGAIN)  # fmt: skip
    entry, output, ffn = (shape for shape in read_off.values() if shape is not None)
    patch = math.prod(entry[2:])
    channels = output[0] // patch
    image, pictures = file.shape("image"), file.shape("pictures")
    seen = image is not None or any(".k_img." in bare or ".add_k_proj." in bare for bare in file.tensors)
    tokens = 0 if not seen else CLIP_TOKENS if pictures is None else 2 * CLIP_TOKENS
    return Sizes(_blocks(file, _BLOCKS[file.family]), entry[0], ffn[0], channels, entry[1] - channels, tokens)


def _vae_fits(file: WeightsFile, spec: BackboneSpec) -> bool:
    """Of an LTX-Video file with its VAE: from 0.9.5 on that one is wider (as diffusers tells them apart)."""
    if file.family != "ltx" or not file.has_vae:
        return True
    _, shape = file.header.tensors.get("vae.encoder.conv_out.conv.weight", ("", (0, 0)))
    return (shape[1] == 2048) == (spec.family == "ltx-condition")


def _check_experts(place: str, files: list[WeightsFile], sizes: list[Sizes]) -> None:
    """Raises UsageError where two files are no experts of one model, or their names say that they are the other way round."""
    if len(files) < 2:
        return
    if files[0].family != "wan" or files[1].family != "wan" or sizes[0] != sizes[1]:
        raise UsageError(f"--backbone {place}: the two files are no two experts of one model: {sizes[0]}; {sizes[1]}",
                         expected=EXPECTED, hint="give both experts of Wan 2.2, that of high noise first")  # fmt: skip
    first, second = (_noise(file.path) for file in files)
    if (first, second) in (("low", "high"), ("low", ""), ("", "high")):
        raise UsageError(f"--backbone {place}: by their names, low noise comes first or high noise second",
                         expected="HIGH,LOW", hint=f"--backbone {files[1].path},{files[0].path}")  # fmt: skip
    if first == second != "" or files[0].path.samefile(files[1].path):
        raise UsageError(f"--backbone {place} names one expert twice", expected="HIGH,LOW", hint="give both experts of Wan 2.2")


def _noise(path: Path) -> str:
    found = re.findall(r"(high|low)[-_ ]?noise|(?<![a-z])(high|low)(?![a-z])", path.name.lower())
    return "".join(found[0]) if len(found) == 1 else ""


def _refuse_expert(path: Path, alike: list[BackboneSpec]) -> None:
    """Raises UsageError where a model of `alike` has two experts, of which the file at `path` is one."""
    for spec in alike:
        if spec.experts == 2:
            raise UsageError(f"{path} is one of the two experts of {spec.name}", expected=EXPECTED,
                             hint="give both, that of high noise first: --backbone HIGH,LOW; for one alone, "
                                  f"--backbone {next((one.name for one in alike if one.experts == 1), 'NAME')}:{path}")  # fmt: skip


def _refuse_sizes(
    place: str, files: list[WeightsFile], sizes: Sizes, offered: list[BackboneSpec], known: list[BackboneSpec],
    base: BackboneSpec | None,
) -> NoReturn:  # fmt: skip
    kind, path = _TITLES[files[0].family], files[0].path
    alike = [spec for spec in known if sizes.fit(spec)]
    if base is None and len(files) == 1 and alike and all(spec.experts == 2 for spec in alike):
        _refuse_expert(path, alike)
    if base is not None:
        like = f", as {' and '.join(spec.name for spec in alike)}" if alike else ""
        raise UsageError(f"--backbone {base.name}:{place}: {path} is {kind} of {sizes}{like}; {base.name} has {base.experts} "
                         f"transformer{'s' * (base.experts > 1)} of {base.layers} layers of width {base.width} with "
                         f"{base.latent_channels} latent channels", expected=f"a file of that size, or HIGH,LOW of {base.name}",
                         hint=f"--backbone {place} finds the model of its sizes")  # fmt: skip
    raise UsageError(f"{path} is {kind} of no published size: {sizes}", expected=", ".join(spec.name for spec in known),
                     hint="put the file into the diffusers folder that it was made from, beside its model_index.json")  # fmt: skip


def _folder_of(path: Path) -> BackboneSpec | None:
    """The pipeline in the folder of the file, or in the one above; None where there is none."""
    folder = next((folder for folder in path.parents[:2] if (folder / "model_index.json").is_file()), None)
    return None if folder is None else from_folder(folder)


def parts(spec: BackboneSpec) -> list[str]:
    """The folders of its pipeline that a file of `spec` needs beside it; not the scheduler's, whose settings are known."""
    family = registry.family_of(spec)
    folders = (*family.folders, *(family.picture_folders if spec.image_tokens else ()))
    return [folder for folder in folders if folder != "scheduler" and not (folder == "vae" and spec.file_vae)]


def _notes(place: str, files: list[WeightsFile], chosen: BackboneSpec, source: str, others: Iterable[str]) -> tuple[str, ...]:
    notes = []
    where = "in the package" if chosen.built_in else f"from {source}"
    if not os.path.isdir(source):
        where += ", in the local cache" if hub.cached_folder(source) else ", which is not on this machine yet"
    needed = [name.replace("_", " ") for name in parts(chosen)]
    notes.append(f"{' and '.join(file.path.name for file in files)} holds the transformer{'s' * (len(files) > 1)}"
                 f"{' and the VAE' * chosen.file_vae}; {', '.join(needed)}: {where}; --vae FILE and --text-encoder DIR take "
                 "others")  # fmt: skip
    if others := [*others]:
        forms = " or ".join(f"{other}:{place}" for other in others)
        notes.append(f"taken for {chosen.name}; {', '.join(others)} {'has' if len(others) == 1 else 'have'} the same shapes: "
                     f"--backbone {forms}")  # fmt: skip
    return tuple(notes)


def transformer_config(spec: BackboneSpec, file: WeightsFile) -> dict[str, object]:
    """The arguments of the transformer in `file`: those of its source's config.json where that is here, else as published."""
    folder = Path(spec.source) if os.path.isdir(spec.source) else hub.cached_folder(spec.source)
    path = None if folder is None else folder / "transformer" / "config.json"
    if path is not None and path.is_file():
        return {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key != "quantization_config"}
    told = {key: file.header.tensors[file.tensors[name]][1][-1]
            for key in _ARGUMENTS[file.family] for name in _WIDTHS[key] if name in file.tensors}  # fmt: skip
    if file.family == "hunyuan":
        told |= {key: _blocks(file, names) for key, names in _STACKS.items()}
    return registry.family_of(spec).transformer_config(spec) | told


def _blocks(file: WeightsFile, beginnings: tuple[str, ...]) -> int:
    return len({match[0] for bare in file.tensors if (match := re.match(rf"({'|'.join(beginnings)})\d+\.", bare))})
