"""What a model in single files needs beside them, and --vae and --text-encoder: where each part is, and how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

from longgen.backbones import formats, hub, single_file, vae_file
from longgen.backbones.registry import adapter_of, family_of
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.pipelines import file_weights
from longgen.pipelines.file_weights import OnBytes
from longgen.pipelines.load_progress import LoadProgress, folder_of, weight_files

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json", "tokenizer.model")


class Place(NamedTuple):
    """A component: `name` in the folder or repository `source`."""

    source: str
    name: str


def text_places(spec: BackboneSpec, folder: str | None) -> dict[str, Place]:
    """The text encoders and tokenizers in the folder of --text-encoder, by component; a pipeline's folder, or one encoder's.

    Raises MissingError or UsageError where there is none.
    """
    if folder is None:
        return {}
    path = Path(folder)
    wanted = [name for name in family_of(spec).folders if name.startswith(("text_encoder", "tokenizer"))]
    places = {name: Place(folder, name) for name in wanted if (path / name).is_dir()}
    if "text_encoder" not in places and (path / "config.json").is_file():
        places["text_encoder"] = Place(str(path.parent), path.name)
    if "tokenizer" not in places:
        near = [path, path.parent / "tokenizer"]
        found = next((place for place in near if any((place / file).is_file() for file in TOKENIZER_FILES)), None)
        if found is not None:
            places["tokenizer"] = Place(str(found.parent), found.name)
    expected = f"a folder with {' and '.join(wanted)}, or one that transformers wrote, with config.json"
    if not path.is_dir():
        raise MissingError(f"--text-encoder {folder}: no such folder", expected=expected, hint="check the path")
    if "text_encoder" not in places:
        raise UsageError(f"--text-encoder {folder} holds no text encoder", expected=expected, hint="give the folder of config.json")
    return places


def missing(spec: BackboneSpec, model_settings: ModelSettings) -> list[str]:
    """The parts of a model in single files that neither the settings give nor its source has on this machine."""
    if not spec.files:
        return []
    given = {*text_places(spec, model_settings.text_encoder), *(["vae"] if model_settings.vae else [])}
    folder = folder_of(spec.source)
    here = [] if folder is None else [name for name in single_file.parts(spec) if any((folder / name).glob("*.*"))]
    return [name for name in single_file.parts(spec) if name not in given and name not in here]


def check(spec: BackboneSpec, model_settings: ModelSettings) -> list[str]:
    """Notes on parts that are not here. Raises LonggenError and its kinds where a file is not what it is given for."""
    if model_settings.vae is not None:
        vae_file.check(Path(model_settings.vae), spec)
    text_places(spec, model_settings.text_encoder)
    for file in spec.files:
        if single_file.read(Path(file)).gguf:
            file_weights.need_gguf(Path(file))
        elif model_settings.quantize == "int8" or (model_settings.quantize and "fp8" in single_file.read(Path(file)).storage):
            raise _quantized(file, model_settings.quantize)
        if single_file.read(Path(file)).gguf and model_settings.quantize:
            raise _quantized(file, model_settings.quantize)
    absent = missing(spec, model_settings)
    when = "must be downloaded first, which HF_HUB_OFFLINE forbids," if hub.offline() else "will be downloaded"
    return [f"{' and '.join(absent)} of {spec.name} {when} from {spec.source}"] if absent else []


def _quantized(file: str, how: str) -> UsageError:
    return UsageError(f"--quantize {how} is for weights that diffusers loads from a folder in full, and {file} is a single file",
                      expected="no --quantize, or fp8 with a file in bf16, fp16 or fp32",
                      hint="leave --quantize out; files in fp8 and GGUF are small already")  # fmt: skip


def fetch(spec: BackboneSpec, model_settings: ModelSettings) -> None:
    """Downloads the parts that are not here. Raises MissingError that says which, and what brings them."""
    absent = missing(spec, model_settings)
    if not absent:
        return
    patterns = " ".join(f'--include "{name}/*"' for name in absent)
    others = [option for part, option in (("vae", "--vae FILE"), ("text_encoder", "--text-encoder DIR")) if part in absent]
    what = f"what {' and '.join(spec.files)} needs beside it ({', '.join(absent).replace('_', ' ')}), from {spec.source},"
    hint = " and ".join(others) + "; or " * bool(others)
    hint += f'on a machine with network: hf download {spec.source} --include "model_index.json" {patterns}'
    if Path(spec.source).is_dir():
        raise MissingError(f"{what} is not there", expected="a complete diffusers folder", hint=hint)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def get(local: bool) -> str:
        if local:
            raise LocalEntryNotFoundError(f"{', '.join(absent)} of {spec.source}")
        return snapshot_download(spec.source, allow_patterns=["model_index.json", "scheduler/*", *(f"{name}/*" for name in absent)])

    hub.fetch(what, spec.source, get, "these parts in the Hugging Face cache, in a folder, or given", hint)


def has_index(source: str) -> bool:
    folder = folder_of(source)
    return folder is not None and (folder / "model_index.json").is_file()


def text_kind(place: Place) -> Any:
    """The class of the text encoder at `place`, as its config.json names it. Raises LonggenError."""
    path = Path(place.source) / place.name / "config.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
        kind = getattr(transformers, str(names[0]), None) if names else None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise LonggenError(
            f"{path} cannot be read: {error}", expected="JSON as transformers writes it", hint="copy it again"
        ) from None
    if kind is None:
        raise UsageError(f"{path} names no class of transformers", expected="architectures, as [\"UMT5EncoderModel\"]",
                         hint="give another folder")  # fmt: skip
    return kind


def vae(spec: BackboneSpec, path: Path, dtype: torch.dtype, on_bytes: OnBytes) -> Any:
    """The VAE in the file at `path`, by the first config that it fits: beside it, of the backbone's source, a published one's."""
    kind, table = adapter_of(spec).vae_kind, formats.header(path, vae_file.EXPECTED)
    prefixed = [name for name in table.tensors if name.startswith("vae.")]
    names = {name.removeprefix("vae."): name for name in prefixed or table.tensors}
    folder = folder_of(spec.source)
    beside = [path.with_name("config.json"), *([] if folder is None else [folder / "vae" / "config.json"])]
    written = [json.loads(file.read_text(encoding="utf-8")) for file in beside if file.is_file()]
    configs = [config for config in written if config.get("_class_name") == kind.__name__] + vae_file.CONFIGS[kind.__name__]
    shapes = {bare: torch.empty(table.tensors[name][1], device="meta") for bare, name in names.items()}
    fault: LonggenError | None = None
    for config in configs:
        with init_empty_weights():
            model = kind.from_config(config)
        try:
            file_weights.check(model, _vae_names(kind, model, shapes), path)
        except (LonggenError, KeyError) as error:  # the second where diffusers' table does not know the names
            fault = fault or (error if isinstance(error, LonggenError) else None)
            continue
        tensors, done, reader = {}, 0, file_weights.Reader(path, table)
        for bare, name in names.items():
            tensors[bare] = reader.read(name, dtype)
            done += table.spans[name][1]
            on_bytes(done)
        return file_weights.place(model, _vae_names(kind, model, tensors), path)
    reason = "its names are not known" if fault is None else fault.given.removeprefix(f"{path} ")
    raise UsageError(f"--vae {path} is no {kind.__name__} that diffusers reads: {reason}", expected=vae_file.EXPECTED,
                     hint="give the file of diffusers' vae folder, with its config.json beside it")  # fmt: skip


def _vae_names(kind: Any, model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    expected = model.state_dict().keys()
    if tensors.keys() <= expected or kind.__name__ not in SINGLE_FILE_LOADABLE_CLASSES:
        return dict(tensors)
    prefix = "vae." if kind is diffusers.AutoencoderKLLTXVideo else ""  # diffusers' table wants it
    table = SINGLE_FILE_LOADABLE_CLASSES[kind.__name__]["checkpoint_mapping_fn"]
    return table({prefix + name: tensor for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Files:
    """The parts of a model that are in single files or in the folder of --text-encoder.

    transformers: by component. indexed: its source has a model_index.json here, or is to be asked for one.
    """

    spec: BackboneSpec
    transformers: dict[str, Path]
    vae_file: Path | None
    texts: dict[str, Place]
    indexed: bool

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by component, of those in files."""
        return {name: path.stat().st_size for name, path in self._paths().items()}

    def text_sizes(self) -> dict[str, int]:
        return {name: sum(path.stat().st_size for path in weight_files(Path(place.source) / place.name))
                for name, place in self.texts.items() if name.startswith("text_encoder")}  # fmt: skip

    def _paths(self) -> dict[str, Path]:
        return self.transformers | ({} if self.vae_file is None else {"vae": self.vae_file})

    def text_kinds(self) -> dict[str, Any]:
        return {name: text_kind(place) for name, place in self.texts.items() if name.startswith("text_encoder")}

    def load(self, dtypes: Mapping[str, torch.dtype], device: torch.device | None, progress: LoadProgress) -> dict[str, Any]:
        """The models in files by component, each on `device` before the next is read; None leaves them. Raises LonggenError."""
        kind, models = getattr(diffusers, family_of(self.spec).transformer), {}
        for name, path in self._paths().items():
            progress.start(name)
            dtype = dtypes.get(name, dtypes["default"])
            if name == "vae":
                model = vae(self.spec, path, dtype, progress.read)
            else:
                file = single_file.read(path)
                config = single_file.transformer_config(self.spec, file)
                model = file_weights.transformer(kind, config, file, dtype, progress.read)
            models[name] = model if device is None else model.to(device)
            progress.finish()
        return models

    def tokenizers(self) -> dict[str, Any]:
        return {name: transformers.AutoTokenizer.from_pretrained(Path(place.source) / place.name)
                for name, place in self.texts.items() if name.startswith("tokenizer")}  # fmt: skip

    def assembled(self, parts: dict[str, Any]) -> Any:
        """The pipeline of `parts` where nothing of its source is here, with the published scheduler."""
        models = [parts[name] for name in self.transformers]
        stock = family_of(self.spec).random_pipeline(self.spec, models, None)
        plain = {key: stock.config[key] for key in ("boundary_ratio", "expand_timesteps") if key in stock.config}
        return type(stock)(**{**stock.components, **self.tokenizers(), **parts, **plain})


def of(spec: BackboneSpec, model_settings: ModelSettings) -> Files:
    """Raises as `text_places`."""
    names = ("transformer", "transformer_2")[: len(spec.files)]
    vae_path = model_settings.vae or (spec.files[0] if spec.file_vae else None)
    return Files(spec, dict(zip(names, map(Path, spec.files), strict=True)), None if vae_path is None else Path(vae_path),
                 text_places(spec, model_settings.text_encoder), not spec.files or has_index(spec.source))  # fmt: skip
