"""What a load reports while the libraries read, and where each component goes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import IncompleteSnapshotError

from longgen.backbones.find import find
from longgen.backbones.registry import adapter_of
from longgen.backbones.settings import ModelSettings
from longgen.errors import LonggenError
from longgen.layers.fingerprint import fingerprint
from longgen.pipelines import load_progress, loading
from longgen.pipelines.load_progress import LoadProgress, weight_files
from longgen.progress import Progress
from tests.backbones import family
from tests.models import small


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], None]:
    """counter(n): the system says that n bytes have been read."""
    path = tmp_path / "io"
    monkeypatch.setattr(load_progress, "COUNTERS", path)
    monkeypatch.setattr(load_progress, "EVERY_S", 0.002)

    def say(count: int) -> None:
        path.with_suffix(".new").write_text(f"rchar: 7\nread_bytes: {count}\n")
        path.with_suffix(".new").rename(path)

    say(50)
    return say


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for component, size in (("transformer", 700), ("vae", 300)):
        (tmp_path / "model" / component).mkdir(parents=True)
        (tmp_path / "model" / component / "a.safetensors").write_bytes(bytes(size))
    return tmp_path / "model"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_bytes_are_reported_while_a_component_is_read(counter: Callable[[int], None], folder: Path) -> None:
    """Never more than it holds: the system also reads what lies beside it. Files in the page cache make a step at once."""
    reports: list[Progress] = []
    with LoadProgress(str(folder), ["transformer", "vae"], reports.append) as progress:
        progress.start("transformer")
        counter(50 + 350)
        until(lambda: reports[-1].done == 350)
        counter(50 + 900)
        until(lambda: reports[-1].done == 700)
        progress.finish()
        progress.start("vae")
        progress.finish()
    assert [report.done for report in reports if report.done not in (350, 700)] == [0, 1000]
    assert sorted(report.done for report in reports) == [report.done for report in reports]
    assert {(report.phase, report.total, report.unit) for report in reports} == {("load", 1000, "bytes")}
    assert next(report for report in reports if report.done == 350).eta_s is not None
    assert (reports[0].counted, reports[-1].counted) == ("0 B/1 kB", "1 kB/1 kB")


def test_a_load_that_fails_is_not_reported_as_done(counter: Callable[[int], None], folder: Path) -> None:
    reports: list[Progress] = []
    with pytest.raises(LonggenError), LoadProgress(str(folder), ["transformer", "vae"], reports.append) as progress:  # noqa: PT012
        progress.start("transformer")
        raise LonggenError("damaged", expected="", hint="")
    assert not progress.thread.is_alive()
    assert [report.done for report in reports] == [0]


def test_a_system_that_does_not_count_gives_a_step_a_component(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(load_progress, "COUNTERS", Path("/none"))
    reports: list[Progress] = []
    with LoadProgress(str(folder), ["transformer", "vae"], reports.append) as progress:
        for component in ("transformer", "vae"):
            progress.start(component)
            progress.finish()
    assert [report.done for report in reports] == [0, 700, 1000]


def test_a_model_that_is_not_here_yet_is_one_step() -> None:
    reports: list[Progress] = []
    with LoadProgress("nobody/nothing", ["transformer"], reports.append) as progress:
        progress.start("transformer")
        progress.finish()
    assert [report.counted for report in reports] == ["0/1", "0/1", "1/1"]


@pytest.fixture
def in_the_hub_s_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a pipeline as owner/name in the local cache; the repository has other files too, which are not here."""

    def copied(folder: Path) -> Path:
        snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / ("0" * 40)
        shutil.copytree(folder, snapshot)

        def snapshot_download(*arguments: Any, **options: Any) -> str:
            raise IncompleteSnapshotError("all single files are missing", snapshot_path=str(snapshot))

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return snapshot

    return copied


def test_a_part_of_a_repository_in_the_cache_is_a_pipeline(
    in_the_hub_s_cache: Callable[[Path], Path], model_folder: Callable[[str], Path]
) -> None:
    """LTX-Video's has 100 GB of single files that nobody downloads. Its probe is found, its bytes are counted."""
    snapshot = in_the_hub_s_cache(model_folder("ltx"))
    assert load_progress.folder_of("owner/name") == snapshot
    there = replace(find(str(model_folder("ltx"))), source="owner/name")
    assert fingerprint(there) == fingerprint(find(str(model_folder("ltx"))))
    reports: list[Progress] = []
    with LoadProgress("owner/name", ["vae"], reports.append):
        pass
    assert reports[-1].total == (snapshot / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size


def test_what_is_no_hub_id_is_in_no_cache() -> None:
    assert [load_progress.folder_of(source) for source in ("/none/at/all", "nobody/nothing")] == [None, None]


def test_only_the_files_that_are_read_are_counted(tmp_path: Path) -> None:
    """Repositories have other dtypes beside them, and LTX-Video single files that are no part of a pipeline."""
    for name in ("model.safetensors", "model.fp16.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (tmp_path / name).write_bytes(b"")
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors", "c": "gone"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors.index.fp16.json").write_text("{}")
    assert [path.name for path in weight_files(tmp_path)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


@pytest.mark.parametrize("name", small.PLAIN)
def test_a_load_reports_the_bytes_of_its_files(name: str, model_folder: Callable[[str], Path]) -> None:
    reports: list[Progress] = []
    loading.load(find(str(model_folder(name))), ModelSettings("cpu", "fp32"), reports.append)
    size = sum(path.stat().st_size for path in model_folder(name).rglob("*.safetensors"))
    assert (reports[0].done, reports[-1].done, reports[-1].total, reports[-1].unit) == (0, size, size, "bytes")


def test_a_component_is_on_its_device_before_the_next_is_read(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the host never holds them all."""
    source, kind = str(model_folder("wan-experts")), adapter_of(find(str(model_folder("wan-experts")))).kind
    here: list[Any] = []
    read = loading.component

    def component(*arguments: Any, **options: Any) -> Any:
        assert all(weight.is_meta for model in here for weight in model.parameters())
        here.append(read(*arguments, **options))
        return here[-1]

    monkeypatch.setattr(loading, "component", component)
    kinds = loading.model_kinds(kind, source, set())
    assert set(kinds) == {"text_encoder", "transformer", "transformer_2", "vae"}
    with LoadProgress(source, kinds, lambda report: None) as progress:
        loading.components(kinds, source, {"default": torch.float32}, {}, torch.device("meta"), progress)
    assert len(here) == len(kinds)
    assert all(weight.is_meta for model in here for weight in model.parameters())


# The embedding of a text encoder


def untied(model: Any) -> None:
    """As transformers 5.0 to 5.2 load Wan's: the encoder has an embedding of its own, which nothing has filled."""
    model.encoder.embed_tokens.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))


def other(model: Any) -> None:
    """One embedding, and not the file's."""
    with torch.no_grad():
        model.shared.weight.copy_(torch.randn_like(model.shared.weight))


@pytest.mark.parametrize(
    ("name", "defect", "said"),
    [
        ("wan", untied, "shared.weight and encoder.embed_tokens.weight of .* differ, and are one embedding"),
        (
            "wan",
            other,
            "text_encoder: its embedding is not shared.weight of .*model.safetensors: UMT5EncoderModel was read wrongly",
        ),
        ("ltx", other, "its embedding is not shared.weight of .*: T5EncoderModel was read wrongly"),
    ],
)
def test_an_embedding_that_was_read_wrongly_is_named(
    name: str, defect: Any, said: str, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    kind = transformers.UMT5EncoderModel if name == "wan" else transformers.T5EncoderModel
    read = kind.from_pretrained

    def read_wrongly(*arguments: Any, **options: Any) -> Any:
        model, info = read(*arguments, **options)
        defect(model)
        return model, info

    monkeypatch.setattr(kind, "from_pretrained", read_wrongly)
    with pytest.raises(LonggenError, match=said) as caught:
        family.loaded(model_folder(name))
    assert "transformers" in caught.value.hint


def test_a_llama_s_and_a_clip_s_embeddings_are_looked_at_too(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    for kind, part in ((transformers.LlamaModel, "text_encoder"), (transformers.CLIPTextModel, "text_encoder_2")):
        read = kind.from_pretrained

        def read_wrongly(*arguments: Any, read: Any = read, **options: Any) -> Any:
            model, info = read(*arguments, **options)
            with torch.no_grad():
                model.get_input_embeddings().weight[-1] += 1
            return model, info

        with monkeypatch.context() as patch:
            patch.setattr(kind, "from_pretrained", read_wrongly)
            with pytest.raises(LonggenError, match=f"{part}: its embedding is not .*{kind.__name__} was read wrongly"):
                family.loaded(model_folder("hunyuan"))
