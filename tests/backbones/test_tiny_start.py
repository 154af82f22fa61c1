"""Clips of the built-in models that start from a picture: what is read off them, and the table of presets over them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longgen import preset
from longgen.backbones import registry, tiny_grammar
from longgen.backbones.settings import ModelSettings
from longgen.backbones.tiny import check, effect, models, start
from longgen.backbones.wan import TINY
from longgen.pipelines.loading import load

WORDS = tiny_grammar.HELD_OUT[0]
QUICK = {"tiny": dataclasses.replace(TINY, steps=2)}


def decoded(tiny: Any, frames: np.ndarray) -> np.ndarray:
    """`frames` after the VAE."""
    return np.concatenate(list(tiny.decode(tiny.encoded_frames(frames, None))))


def test_the_picture_is_the_first_frame_of_the_rendered_clip(tmp_path: Path) -> None:
    image = start.conditions_of(WORDS, 3, tmp_path).image
    assert image is not None
    assert np.array_equal(np.asarray(Image.open(image.path)), start.to_bytes(start.rendered(WORDS, 81, 3))[0])
    assert start.conditions_of(WORDS, 4, tmp_path).image != image


def test_a_first_frame_is_the_picture_as_far_as_the_vae_can_show_it(tiny: Any, tmp_path: Path) -> None:
    """The rendered clip, decoded, begins with its picture; one that moved by two pixels does not."""
    given, vae = start.conditions_of(WORDS, 3, tmp_path), tiny.pipe.vae
    frames = decoded(tiny, start.to_bytes(start.rendered(WORDS, 33, 3)))
    own, moved = start.score(frames, given, vae), start.score(np.roll(frames, 2, axis=2), given, vae)
    assert own["first_frame"] == 1
    assert own["picture_db"] > 27
    assert moved["first_frame"] == 0
    assert moved["start"] == pytest.approx(own["start"], rel=0.1)


def test_a_clip_that_jumps_after_its_picture_shows_at_its_start(tmp_path: Path) -> None:
    frames = start.to_bytes(start.rendered(WORDS, 33, 3))
    jumped = np.concatenate([frames[:1], np.roll(frames[1:], 20, axis=1)])
    assert 0.5 < start.seam(frames, [1]) < 2
    assert start.seam(jumped, [1]) > 5
    assert np.isnan(start.seam(frames, []))


def test_the_check_of_pictures_reports_first_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SPECS", QUICK)
    means = check.check("tiny", preset.Sample(frames=9), "direct", 0, image=True, count=1)
    assert means.keys() >= check.IMAGE_AIMS.keys()
    assert means["first_frame"] == 1


def test_the_table_of_presets_from_pictures_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clips that `--output` holds are not made again, and those from text alone are others."""
    monkeypatch.setattr(effect, "SPECS", QUICK)
    monkeypatch.setattr(effect, "NATIVE_PX", 9)
    output = tmp_path / "effect.jsonl"
    arguments = ["effect", "--image", "--preset", "sliding-window", "--frames", "89", "--prompts", "1", "--seeds", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--output", str(output)])
    effect.main()
    rows, table = output.read_text().splitlines(), capsys.readouterr().out
    assert [json.loads(row)["preset"] for row in rows] == ["81 frames", "sliding-window"]
    assert table.splitlines()[0].startswith("| preset | first frame | colour kept | one object | motion | start | speed |")
    effect.main()
    assert output.read_text().splitlines() == rows
    assert capsys.readouterr().out == table
    effect.measured("tiny", [], 89, 1, 1, [], output)
    assert len(output.read_text().splitlines()) == 3


def test_a_difference_is_more_than_chance_makes_of_its_clips() -> None:
    """Of sixteen pairs: all of one sign are found, half of each sign and equal ones are not; what the clips lack is not tested."""
    base = [{"shift": 10.0, "speed_px": 1.0, "motion": 1.0} for _ in range(16)]
    other = [{"shift": 20.0 + n, "speed_px": 1 + (-1) ** n * (1 + n) / 10, "motion": 1.0} for n in range(16)]
    *found, count = effect.differences({"81 frames": base, "plain": base, "sink": other}, "plain")
    assert [line.partition(";")[0] for line in found] == ["sink: shift 27.500, plain 10.000"]
    assert count.startswith("2 tests at p below 0.01: chance alone makes 0.0")


def test_the_model_of_unsaid_colours_is_measured_on_sentences_without_them() -> None:
    """It is no backbone of the package, and loads as tiny-causal does."""
    assert models.UNSAID.name not in registry.SPECS
    assert {words.colour for words in models.held_out(models.UNSAID.name)} == {""}
    assert models.held_out("tiny") == models.held_out("tiny-causal") == tiny_grammar.HELD_OUT
    unsaid, causal = (load(models.SPECS[name], ModelSettings("cpu", "fp32")) for name in (models.UNSAID.name, "tiny-causal"))
    pairs = zip(unsaid.pipe.transformer.parameters(), causal.pipe.transformer.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
