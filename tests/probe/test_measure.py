"""A probe as a whole, on tiny at few frames and steps: its scores, what it keeps, and how it goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from longgen.backbones.causal_wan import TINY_CAUSAL
from longgen.backbones.cogvideox import COGVIDEOX_2B
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY
from longgen.errors import UsageError
from longgen.layers.probe_file import Probe, ProbeSettings, cached_probes, read
from longgen.probe import run
from longgen.probe.measure import PartialResults, make_settings, measure
from longgen.progress import Progress

PROMPT = "a small red circle orbiting on a black background"


SMALL = dataclasses.replace(TINY, native_px=9)  # three latent frames, so that few are more

ON_CPU = ModelSettings("cpu", "fp32")


def settings(mode: Any = "full", seeds: tuple[int, ...] = (0,)) -> ProbeSettings:
    """One shift, 32x32 pixels, two steps, 25 frames."""
    made = make_settings(SMALL, mode, 25, 2, [PROMPT], seeds, (32, 32), "fp32", ())
    return made.model_copy(update={"shifts": (3,)})


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def full(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Progress]]:
    """What a full probe measures in one go, and what it reports."""
    reports: list[Progress] = []
    parts = PartialResults(tmp_path_factory.mktemp("full"))
    return measure(lambda: tiny, SMALL, settings(), parts, ON_CPU, reports.append), reports


def test_a_full_probe_has_every_score_and_goes_on_where_it_was_stopped(full: Any, tiny: Any, tmp_path: Path) -> None:
    whole, reports = full

    def until(count: int) -> Any:
        def report(now: Progress) -> None:
            if now.done == count:
                raise StoppedError

        return report

    assert [now.done for now in reports if now.total != 14] == []
    assert reports[-1].done == 14  # two that are watched, a shift and a window for each of six layers
    assert reports[-1].eta_s == pytest.approx(0, abs=1e-6)
    loads: list[str] = []
    parts = PartialResults(tmp_path / "parts")
    for stop in (1, 5, 9):
        with pytest.raises(StoppedError):
            measure(lambda: loads.append("loaded") or tiny, SMALL, settings(), parts, ON_CPU, until(stop))
    again = measure(lambda: tiny, SMALL, settings(), parts, ON_CPU, until(-1))
    assert again == whole
    assert len(loads) == 9  # a run each, and never one twice
    (found,), ranks = whole
    assert {kind: sorted(scores) for kind, scores in found.scores.items()} == {
        "position": ["attention", "latent", "video"], "context": ["attention", "latent", "video"],
    }  # fmt: skip
    assert all(len(values) == 6 and min(values) > 0 for scores in found.scores.values() for values in scores.values())
    assert sorted(ranks) == ["1x", "2x", "4x"]


def test_a_part_that_the_disk_lost_is_made_again(tiny: Any, tmp_path: Path) -> None:
    parts = PartialResults(tmp_path)
    first = measure(lambda: tiny, SMALL, settings("quick"), parts, ON_CPU, lambda now: None)
    (tmp_path / "0-0-long.json").write_text('{"cont')
    assert measure(lambda: tiny, SMALL, settings("quick"), parts, ON_CPU, lambda now: None) == first


def test_quick_is_what_full_reads_off_attention(full: Any, tiny: Any, tmp_path: Path) -> None:
    (found, ranks), _ = full
    quick, same = measure(lambda: tiny, SMALL, settings("quick"), PartialResults(tmp_path / "quick"), ON_CPU, lambda now: None)
    assert same == ranks
    for kind in ("position", "context"):
        assert quick[0].scores[kind] == {"attention": found[0].scores[kind]["attention"]}  # type: ignore[index]
    assert not list((tmp_path / "quick").glob("*.safetensors"))  # nothing is compared with them


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Any) -> ProbeSettings:
    """ProbeSettings of a quick probe, with an empty cache and tiny loaded already."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("longgen.pipelines.loading.load", lambda spec, model_settings, *_: tiny)
    return settings("quick", seeds=(0, 1))


def probed(small: ProbeSettings, **options: Any) -> tuple[Probe, Path, list[str]]:
    said: list[str] = []
    made, path = run.probe(SMALL, ModelSettings("cpu", "fp32"), small, log=said.append, **options)
    return made, path, said


def test_a_probe_is_kept_and_found_again_and_judged_anew_without_measuring(small: ProbeSettings) -> None:
    made, path, said = probed(small)
    assert read(path) == made
    assert said == []
    assert made.metric == "attention"
    assert made.stability["position"].seeds is not None
    assert made.stability["position"].prompts is None
    assert not (path.parent / "parts").exists()
    again, same, said = probed(small, top=2)
    assert same == path
    assert said == [f"already measured: {path}"]
    assert again.runs == made.runs
    assert again.seconds == made.seconds
    assert len(again.sensitive("position")) == len(again.sensitive("context")) == 2
    assert [found for found, _ in cached_probes(SMALL)] == [again]
    assert cached_probes(SMALL, lora=("style.safetensors",)) == []
    assert cached_probes(TINY_CAUSAL) == []


def test_measuring_again_gives_the_same(small: ProbeSettings) -> None:
    first, _, _ = probed(small)
    second, _, said = probed(small, again=True)
    assert said == []
    assert second.runs == first.runs


def test_a_quick_probe_quotes_how_well_a_full_one_says_it_ranks(small: ProbeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probed(small)[0].agreement == {"position": {}, "context": {}}
    full, _, _ = probed(settings())
    assert set(full.agreement["context"]) == {"latent", "video"}
    assert probed(small)[0].agreement == full.agreement


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "latent"}, "measures attention alone"),
        ({"top": 7}, "6 layers"),
        ({"top": 1, "threshold": 0.1}, "cannot be combined"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_loaded(
    small: ProbeSettings, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    def load(spec: Any, model_settings: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("longgen.pipelines.loading.load", load)
    with pytest.raises(UsageError, match=message):
        probed(small, **options)


def test_context_needs_more_frames_than_native() -> None:
    with pytest.raises(UsageError, match="not longer"):
        make_settings(TINY, "full", 81, None, None, (0,), None, "fp32", ())


def test_defaults_of_settings() -> None:
    made = make_settings(TINY, "full", None, None, None, (0, 1), None, "fp32", ())
    assert (made.frames, made.native_frames, made.steps) == (321, 81, 10)
    assert made.shifts == (-42, -21, 21, 42)
    assert made.observed_steps == (0, 3, 6, 9)
    assert len(made.prompts) == 2
    assert make_settings(TINY_CAUSAL, "full", None, None, None, (0,), None, "fp32", ()).steps == 6
    assert make_settings(COGVIDEOX_2B, "quick", None, None, None, (0,), None, "fp32", ()).shifts == ()


def test_a_rollout_is_probed_too(causal: Any, tmp_path: Path) -> None:
    wanted = make_settings(causal.spec, "full", 37, 2, [PROMPT], (0,), (32, 32), "fp32", ())
    (found,), ranks = measure(lambda: causal, causal.spec, wanted, PartialResults(tmp_path), ON_CPU, lambda now: None)
    for scores in found.scores.values():
        assert all(len(values) == causal.spec.layers and min(values) > 0 for values in scores.values())
    assert len(ranks["4x"]) == causal.spec.layers
    assert torch.is_grad_enabled()
