"""`longgen doctor --gpu`, rehearsed on the CPU: equality, ratios, one file that grows, a page, and failures that stop nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from longgen.backbones import defaults
from longgen.backbones.registry import FAMILIES, SPECS
from longgen.backbones.settings import ModelSettings
from longgen.bench import device_check, device_report, device_run
from longgen.bench.card_rates import card_rates
from longgen.bench.device_report import TARGETS, Check, DeviceReport, Timing
from longgen.bench.record import StepTiming
from longgen.cli import app
from longgen.errors import LonggenError
from longgen.preset import Sample
from tests.bench.small import SHAPE
from tests.simcuda import kernels, simulated

HOSTILE = '<script>ran = 1</script> {{ 7 * 7 }} & "quoted"'
SMALL = ["doctor", "--gpu", "--device", "cpu", "--frames", "17", "--output", "out", "--quiet"]


def longgen(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and no variables."""
    for name in ("BACKBONE", "FRAMES", "DEVICE", "DTYPE", "SIZE"):
        monkeypatch.delenv(f"LONGGEN_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_report(**changes: Any) -> DeviceReport:
    """Of the run that the targets are for, on a card."""
    settings = {"backbone": "wan2.1-1.3b", "frames": 321, "size": [832, 480], "dtype": "bf16"}
    return DeviceReport("1", "cuda (a card)", {"torch": "2"}, settings, **changes)


def timing(*seconds: float, count: float = 50, **changes: Any) -> Timing:
    return Timing("wan2.1-1.3b", [StepTiming("step", count, [*seconds], 10**9)], **changes)


# The report


def test_ratios_targets_and_estimates_follow_from_the_measurements() -> None:
    report = a_report(timings={
        "stock": timing(1.0), "direct": timing(1.0, 3.0, 2.0, estimated_seconds=150.0, estimated_bytes=2 * 10**9),
        "sliding-window": timing(0.8), "freenoise": timing(1.4), "riflex": timing(2.0), "freepca": timing(),
    })  # fmt: skip
    assert report.timings["direct"].run_seconds == 100
    assert report.ratio("sliding-window") == 0.4
    assert [report.met(name) for name in ("sliding-window", "freenoise", "riflex", "freepca")] == [True, False, None, None]
    assert report.estimate_error("direct") == 0.5
    assert report.memory_error("direct") == 1.0
    assert report.ratio("freepca") is None
    summary = " ".join(report.summary())
    assert "5 of 6 were measured" in summary
    assert "1 of 2 targets" in summary
    assert "Direct sampling takes 2.000 times" in summary
    assert "time was off by 50% (median), 50% at most" in summary


@pytest.mark.parametrize(
    ("device", "changed"), [("cpu (x)", {}), ("cuda (x)", {"frames": 81}), ("cuda (x)", {"backbone": "ltx-2b"})]
)
def test_targets_are_judged_for_the_run_that_they_are_for(device: str, changed: dict[str, Any]) -> None:
    report = a_report(timings={"direct": timing(1.0), "sliding-window": timing(0.1)})
    assert report.met("sliding-window")
    report.device, report.settings = device, report.settings | changed
    assert report.met("sliding-window") is None


def test_the_targets_are_those_of_the_issue() -> None:
    assert list(TARGETS.values()) == [0.42, 0.6, 0.8, 0.9, 0.9, 1.25, 1.7]
    assert device_run.default_frames(SPECS["wan2.1-1.3b"]) == 321
    assert device_run.ordered(["yarn", "longdiff", "sliding-window"]) == ["direct", "sliding-window", "longdiff", "yarn"]


def test_it_is_stored_and_read_again_whole(tmp_path: Path) -> None:
    report = a_report(
        checks={"direct": Check("wan2.1-1.3b", float("inf"), 0.1, "bf16", 1.0), "yarn": Check("wan2.1-1.3b", failure="x")},
        timings={"direct": timing(1.0), "yarn": timing(failure="y")}, card={"launch_microseconds": 5.0}, unsupported={"sink": "z"},
    )  # fmt: skip
    report.save(tmp_path)
    again = device_report.resume(tmp_path, a_report())
    assert again == report
    assert json.loads((tmp_path / "gpu.json").read_text())["checks"]["direct"]["error"] is None  # JSON has no infinity
    assert report.failures.keys() == {"direct", "yarn"}
    changed = a_report()
    changed.settings["frames"] = 81
    with pytest.raises(LonggenError, match=r"another run: settings: frames is 321 there and 81 here") as caught:
        device_report.resume(tmp_path, changed)
    assert "--overwrite" in caught.value.hint
    (tmp_path / "gpu.json").write_text("{}")
    with pytest.raises(LonggenError, match="damaged"):
        device_report.resume(tmp_path, a_report())


def test_the_page_is_whole_and_escaped_and_the_text_fits_a_terminal(tmp_path: Path) -> None:
    names = [*TARGETS, "a" * 40]
    report = a_report(
        timings={"direct": timing(1.0), **{name: timing(0.5, floor=0.4, estimated_seconds=30.0) for name in names}},
        checks={name: Check("wan2.1-1.3b", 1e-7, 1e-2, "bf16") for name in names} | {"freespec": Check("x", failure=HOSTILE)},
        unsupported={"sink": HOSTILE}, card={"launch_microseconds": 5.0}, stopped=HOSTILE,
    )  # fmt: skip
    report.save(tmp_path)
    page = (tmp_path / "gpu.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;ran = 1") == 3
    assert not re.search(r"""(src|href)=|https?:|url\(""", page)
    assert page.count('class="tag good">met') == 6  # of seven: 0.5 is above the target of sliding-window alone
    assert page.count('class="tag bad">missed') == 1
    assert max(map(len, report.text().splitlines())) <= 80


# Equality with the CPU


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_model_of_every_family_is_compared(family: str) -> None:
    spec = next(spec for spec in FAMILIES[family].specs if not spec.built_in)
    small = device_check.small(spec)
    pair = device_check.Pair(small, "cpu", "bf16")
    name = "self-forcing" if spec.causal else "direct"
    plan = device_check.small_plan(name, small, device_run.make_plan, 33)
    check = pair.check(plan)
    assert check.equal
    assert check.error == 0
    assert 1e-4 < check.error_in_dtype < 0.3  # type: ignore[operator]


def test_presets_equal_the_cpu_on_a_simulated_device_beyond_the_native_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command checks on a card: other kernels, and the ways of attention that accelerators take."""
    monkeypatch.setattr(device_check, "STEPS", 2)
    small = device_check.small(replace(SHAPE, native_px=17))
    with simulated() as log:
        pair = device_check.Pair(small, "cuda", "bf16")
        log.clear()
        for name in ("sliding-window", "tsa", "glc-diffusion"):
            check = pair.check(device_check.small_plan(name, small, device_run.make_plan, 33))
            assert check.equal, f"{name}: {check.error}"
            assert check.error_in_dtype < 0.1, name  # type: ignore[operator]
        kernels_used = {name for name, *_ in log.attention}
        assert {kernels.FLASH, kernels.EFFICIENT} <= kernels_used


def test_a_difference_is_told_from_rounding_and_a_shape_or_nan_is_infinite() -> None:
    x = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    assert device_check.relative_error(x, x) == 0
    assert device_check.relative_error(1.01 * x, x) == pytest.approx(0.01, rel=1e-4)
    assert device_check.relative_error(x[:, :1], x) == device_check.relative_error(x * float("nan"), x) == float("inf")
    assert Check("x", 1e-4).equal
    assert not Check("x", 1e-2).equal
    assert not Check("x", 0.0, failure="it failed").equal


def test_rates_have_their_units_in_their_names() -> None:
    rates = card_rates("cpu", "fp32")
    assert all(rate > 0 for rate in rates.values())
    assert {name.rsplit("_", 1)[1] for name in rates} == {"tflops", "microseconds", "second"}


def test_time_is_estimated_on_a_card_whose_rates_are_known() -> None:
    """And on no other, which a report says by a dash."""
    spec = SPECS["wan2.1-1.3b"]
    plans = {"direct": device_run.make_plan("direct", spec, Sample(frames=321))}
    for device, known in (("cuda (NVIDIA H100 80GB HBM3)", True), ("cuda (another)", False)):
        report = a_report()
        report.device = device
        device_run._targets(report, plans, ModelSettings("cpu", "bf16"))
        assert (report.timings["direct"].estimated_seconds is not None) == known
    assert report.timings["stock"].estimated_bytes is None


# The command


def test_a_rehearsal_writes_one_json_and_one_page_and_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run adds what is missing; one without time says what is left; the measured stays as it is."""
    monkeypatch.setattr(device_run, "ROUNDS", 1)
    done = longgen(*SMALL, "--presets", "sliding-window,self-forcing", "--json")
    assert done.exit_code == 0, done.output
    first = json.loads(done.stdout)
    stored = json.loads((place / "out" / "gpu.json").read_text())
    assert first.items() <= stored.items()
    assert {row["preset"] for row in first["presets"]} == {"stock", "direct", "sliding-window", "self-forcing"}
    assert [row["equals_cpu"] for row in first["presets"]].count(True) == 3
    assert first["timings"]["self-forcing"]["backbone"] == "tiny-causal"
    assert first["stopped"] is None
    assert "A rehearsal" in (place / "out" / "gpu.html").read_text()

    none = json.loads(longgen(*SMALL, "--presets", "sliding-window,freespec", "--minutes", "0", "--json").stdout)
    assert none["stopped"] == "the 0 minutes were over before freespec; the same command goes on"
    assert none["timings"]["sliding-window"] == first["timings"]["sliding-window"]

    monkeypatch.setattr(device_check, "latents_of", lambda *_: 1 / 0)
    more = longgen(*SMALL, "--presets", "sliding-window,freespec")
    assert more.exit_code == 1  # a check failed, and full size was measured all the same
    assert "freespec: check: ZeroDivisionError" in more.stdout
    assert json.loads((place / "out" / "gpu.json").read_text())["timings"]["freespec"]["steps"][0]["seconds"]

    other = longgen(*[part if part != "17" else "33" for part in SMALL])
    assert other.exit_code == 2
    assert "another run: settings: frames is 17 there and 33 here" in other.stderr


def test_a_device_that_answers_no_more_ends_the_run_and_the_next_one_goes_on_without(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, spec, causal = ModelSettings("meta", "fp32"), SPECS["tiny"], SPECS["tiny-causal"]
    monkeypatch.setattr(device_run, "card_rates", lambda *_: {"launch_microseconds": 1.0})
    lost = SimpleNamespace(check=lambda plan: 1 / 0)
    monkeypatch.setattr(device_check, "Pair", lambda *_: lost)
    report = device_run.new_report(spec, settings, 33, None)
    with pytest.raises(LonggenError, match="the device no longer answers after direct") as caught:
        device_run.run(report, spec, causal, settings, ["direct", "yarn"], 1, place, lambda progress: None)
    assert "goes on without direct" in caught.value.hint
    again = device_report.resume(place, device_run.new_report(spec, settings, 33, None))
    assert [*again.checks] == ["direct"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--gpu"], 3, ["a GPU that torch can use", "--device cpu --backbone tiny"]),
        (["--frames", "9"], 2, ["--frames has no effect without --gpu"]),
        (["--minutes", "3"], 2, ["--minutes has no effect without --gpu"]),
        (["--gpu", "--device", "cpu", "--backbone", "ltx-2b"], 2, ["takes hours", "--backbone tiny"]),
        (["--gpu", "--device", "cpu", "--backbone", "tiny-causal"], 2, ["is causal", "another backbone"]),
        (["--gpu", "--device", "cpu", "--presets", "freespeck"], 2, ["freespec"]),
        (["--gpu", "--device", "cpu", "--output", "taken"], 2, ["--output taken is a file", "a folder"]),
        (["--gpu", "--device", "cuda:7"], 2, ["--device cuda:7 is not available"]),
    ],
)
def test_a_wrong_input_has_one_clear_message(args: list[str], code: int, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(defaults, "has_gpu", lambda: False)
    Path("taken").touch()
    done = longgen("doctor", *args)
    assert done.exit_code == code, done.output
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.count("longgen:") == 1
    assert "Traceback" not in done.stderr
