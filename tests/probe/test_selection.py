"""How the layers of a preset are resolved: a cached or named probe, a published list, all, none, or at random."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longgen import disk, planner, preset, start
from longgen.backbones.causal_wan import TINY_CAUSAL
from longgen.backbones.ltx import LTX_2B
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import TINY, WAN_1_3B, WAN_14B
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.layers import selection
from longgen.layers.fingerprint import fingerprint
from longgen.layers.probe_file import Probe, ProbeRun, ProbeSettings, probe_folder
from longgen.plan import Plan
from longgen.probe.classify import classify
from longgen.resolve import PlanRequest, resolve

SAMPLE = preset.Sample(frames=321)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def probe_of(spec: BackboneSpec, frames: int = 321, weights: str | None = None, top: int = 2, lora: tuple[str, ...] = ()) -> Probe:
    """A probe whose first `top` layers are position-sensitive and whose last `top` are context-sensitive."""
    falling = [float(spec.layers - layer) for layer in range(spec.layers)]
    settings = ProbeSettings(
        mode="quick", frames=frames, native_frames=81, size=(64, 64), steps=10, observed_steps=(0,), guidance_scale=3.0,
        shifts=(21,), windows=(1,), prompts=("a",), seeds=(0,), dtype="fp32", lora=lora,
    )  # fmt: skip
    scores: Any = {"position": {"attention": falling}, "context": {"attention": falling[::-1]}}
    runs = [ProbeRun(prompt=0, seed=0, scores=scores)]
    return Probe(
        longgen="0", backbone=spec.name, weights=weights or fingerprint(spec, lora), settings=settings, runs=runs, seconds=1.0,
        peak_memory_bytes=1, device="cpu", **classify(runs, {"1x": falling}, "attention", None, top),
    )  # fmt: skip


def keep(probe: Probe) -> Path:
    path = probe_folder(probe.weights, probe.settings) / "probe.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.save_json(path, probe.as_dict())
    return path


def layers_of(made: Plan) -> dict[str, tuple[int, ...]]:
    return {act.name: act.layers for act in made.techniques}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("freeloc", ("freeloc", None)), ("freeloc@all", ("freeloc", "all")), ("a@b/m.toml@random:12", ("a@b/m.toml", "random:12")),
     ("me@home.toml", ("me@home.toml", None)), ("freeloc@random:", ("freeloc@random:", None)), ("@all", ("", "all"))],
)  # fmt: skip
def test_names_with_a_choice_behind_them(name: str, expected: tuple[str, str | None]) -> None:
    assert selection.split_name(name) == expected


def test_the_probe_that_is_kept_is_taken_and_written_out() -> None:
    path = keep(probe_of(TINY))
    made = resolve(PlanRequest("freeloc", TINY, sample=SAMPLE))
    assert layers_of(made) == {"vrpr": (0, 1), "tsa": (4, 5)}
    assert [note for note in made.notes if str(path) in note and "0-1" in note]
    written = preset.from_tables(made.preset.as_dict(), "again")  # what run.json and the video have
    assert layers_of(planner.build(written, TINY)) == layers_of(made)
    assert "position-sensitive" not in made.preset.as_toml().split("[[technique]]", 1)[1]


def test_the_newest_probe_of_the_length_is_taken() -> None:
    keep(probe_of(TINY, top=2))
    keep(probe_of(TINY, top=3).model_copy(update={"settings": probe_of(TINY).settings.model_copy(update={"seeds": (5,)})}))
    keep(probe_of(TINY, frames=161, top=1))
    assert layers_of(resolve(PlanRequest("freeloc", TINY, sample=SAMPLE)))["vrpr"] == (0, 1, 2)


def test_a_probe_of_another_length_is_refused_with_the_reason() -> None:
    path = keep(probe_of(TINY, frames=161))
    for options in ({}, {"probe": str(path)}):
        with pytest.raises(UsageError, match=r"161.* frames, and this video has 321"):
            resolve(PlanRequest("freeloc", TINY, sample=SAMPLE, **options))
    asked = preset.Sample(frames=159)  # 161 are made
    assert layers_of(resolve(PlanRequest("freeloc", TINY, sample=asked)))["vrpr"] == (0, 1)


def test_a_probe_of_other_weights_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    disk.save_json(path, probe_of(TINY, weights="f" * 64).as_dict())
    with pytest.raises(UsageError, match="other weights: tiny, fingerprint ffffffffffff"):
        resolve(PlanRequest("freeloc", TINY, sample=SAMPLE, probe=str(path)))
    disk.save_json(path, probe_of(TINY_CAUSAL).as_dict())
    with pytest.raises(UsageError, match="other weights: tiny-causal"):
        resolve(PlanRequest("freeloc", TINY, sample=SAMPLE, probe=str(tmp_path)))  # the folder of a report does too
    with pytest.raises(UsageError, match="with 6 layers, ltx-2b has 28"):
        resolve(PlanRequest("freeloc", LTX_2B, sample=SAMPLE, probe=str(path)))


def test_a_lora_makes_other_weights(tmp_path: Path) -> None:
    style = tmp_path / "style.safetensors"
    style.write_bytes(b"weights")
    keep(probe_of(TINY, lora=(f"{style}:0.5",)))
    assert layers_of(resolve(PlanRequest("freeloc", TINY, sample=SAMPLE, lora=(f"{style}:0.5",))))["vrpr"] == (0, 1)
    for lora in ((), (f"{style}:0.7",)):
        with pytest.raises(UsageError, match="has not been probed at this length"):
            resolve(PlanRequest("freeloc", TINY, sample=SAMPLE, lora=lora))
    style.write_bytes(b"another")
    with pytest.raises(UsageError, match="has not been probed at this length"):
        resolve(PlanRequest("freeloc", TINY, sample=SAMPLE, lora=(f"{style}:0.5",)))


def test_without_a_probe_what_to_do_is_said() -> None:
    with pytest.raises(UsageError, match="has not been probed at this length") as refused:
        resolve(PlanRequest("freeloc", TINY, sample=SAMPLE))
    assert "longgen probe --backbone tiny" in refused.value.hint
    with pytest.raises(UsageError, match="no list of sensitive layers has been published"):
        resolve(PlanRequest("freeloc", WAN_14B, sample=SAMPLE, probe="published"))


def test_the_published_list_serves_where_there_is_one() -> None:
    made = resolve(PlanRequest("freeloc", WAN_1_3B, sample=SAMPLE))
    assert layers_of(made)["tsa"] == WAN_1_3B.verdicts["context-sensitive"]
    assert [note for note in made.notes if "published" in note]


def test_all_and_none_need_no_probe() -> None:
    made = resolve(PlanRequest("freeloc@all", TINY, sample=SAMPLE))
    assert layers_of(made) == {"vrpr": tuple(range(6)), "tsa": tuple(range(6))}
    assert made.preset.name == "freeloc@all"
    none = resolve(PlanRequest("freeloc", TINY, sample=SAMPLE, layers="none"))
    assert layers_of(none) == {"vrpr": (), "tsa": ()}
    assert not none.table.any()


def test_random_layers_are_as_many_and_repeat() -> None:
    keep(probe_of(TINY, top=2))
    draws = {
        name: layers_of(resolve(PlanRequest(f"freeloc@{name}", TINY, sample=SAMPLE)))
        for name in ("random", "random:0", "random:1", "random:2")
    }
    assert draws["random"] == draws["random:0"]
    assert len({str(draw) for draw in draws.values()}) == 3
    for draw in draws.values():
        assert {name: len(layers) for name, layers in draw.items()} == {"vrpr": 2, "tsa": 2}
        assert not set(draw["vrpr"]) & set(draw["tsa"])  # as in the probe


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("freeloc", {"layers": "some"}, "invalid --layers .some."),
        ("freeloc@all", {"layers": "none"}, "both choose layers"),
        ("riflex", {"layers": "all"}, "does not select its layers by a probe"),
        ("riflex@none", {}, "does not select its layers by a probe"),
        ("direct", {"probe": "run"}, "does not select its layers by a probe"),
    ],
)
def test_wrong_choices(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(PlanRequest(name, TINY, sample=SAMPLE, **options))


def test_a_file_that_is_no_probe(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        resolve(PlanRequest("freeloc", TINY, sample=SAMPLE, probe=str(tmp_path / "probe.json")))
    (tmp_path / "probe.json").write_text('{"schema": 1, "backbone": "tiny"}')
    with pytest.raises(LonggenError, match=r"is not a probe: .*required"):
        resolve(PlanRequest("freeloc", TINY, sample=SAMPLE, probe=str(tmp_path / "probe.json")))
    (tmp_path / "probe.json").write_bytes(b"\x00\x01 not JSON")
    with pytest.raises(LonggenError, match="is not a probe"):
        resolve(PlanRequest("freeloc", TINY, sample=SAMPLE, probe=str(tmp_path)))


def test_damaged_probes_in_the_cache_are_passed_over() -> None:
    path = keep(probe_of(TINY))
    other = path.parent.with_name("other") / "probe.json"
    other.parent.mkdir()
    other.write_text("{}")
    assert layers_of(resolve(PlanRequest("freeloc", TINY, sample=SAMPLE)))["vrpr"] == (0, 1)


def test_every_backbone_that_could_be_probed_stands_in_the_list_of_presets() -> None:
    plans = planner.on_every_backbone(preset.load("freeloc"))
    able = {name for name, made in plans.items() if isinstance(made, Plan)}
    assert {"tiny", "wan2.1-1.3b", "ltx-2b", "hunyuanvideo"} <= able
    assert "cogvideox-2b" not in able


def test_a_setting_that_is_not_used_changes_no_folder() -> None:
    """So that probes of before there were pictures, or heads, are found."""
    probe = probe_of(TINY)
    settings = probe.settings.model_dump(mode="json").items()
    before = {key: value for key, value in settings if key not in ("conditions", "heads")}
    given = hashlib.sha256(json.dumps(before, separators=(",", ":")).encode()).hexdigest()[:16]
    assert probe_folder(probe.weights, probe.settings).name == given
    pictured = probe.settings.model_copy(update={"conditions": {"image": "1" * 64, "fit": "crop"}})
    assert probe_folder(probe.weights, pictured).name != given


def test_a_probe_from_a_picture_is_for_videos_from_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    text = probe_of(TINY, top=1)
    pictured = probe_of(TINY, top=2)
    pictured = pictured.model_copy(
        update={"settings": pictured.settings.model_copy(update={"conditions": {"image": "1" * 64, "fit": "crop"}})}
    )
    request = PlanRequest("freeloc", TINY, sample=SAMPLE)
    from_picture = dataclasses.replace(request, conditions=start.read(tmp_path / "a.png"))

    def chosen(of: PlanRequest) -> tuple[int, str]:
        made = resolve(of)
        return len(layers_of(made)["vrpr"]), next(note for note in made.notes if note.startswith("layers: "))

    keep(pictured)
    assert chosen(from_picture)[0] == 2
    assert "whose runs" not in chosen(from_picture)[1]
    assert chosen(request)[1].endswith("whose runs started from a picture")
    time.sleep(0.01)
    keep(text)  # the newer one
    assert (chosen(from_picture)[0], chosen(request)[0]) == (2, 1)
    assert "whose runs" not in chosen(from_picture)[1] + chosen(request)[1]
    keep(pictured).unlink()
    assert chosen(from_picture)[1].endswith("whose runs started from text alone")
