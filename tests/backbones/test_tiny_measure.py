"""The weight-free readings of a clip, on rendered clips whose sentence is known and on hand-made counter-examples."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
import torch

from longgen.backbones import tiny_grammar
from longgen.backbones.tiny import clips
from longgen.metrics import tiny_reading

SENTENCES = random.Random(7).sample(tiny_grammar.TRAINING, 100)
MIDDLE = (clips.SIDE - 1) / 2


def render(words: tiny_grammar.Words, frames_px: int, generator: torch.Generator) -> np.ndarray:
    """One random clip of `words`, uint8 [F, S, S, 3]."""
    video, _ = clips.render(clips.draw_scene(words, generator), torch.arange(frames_px, dtype=torch.float32))
    return ((video + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def degrade(frames: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """`frames` with soft edges and `noise` [F, S, S, 3], as a small VAE leaves them: a blur of 1.2 px."""
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.2) for frame in frames])
    return (soft + noise).clip(0, 255).astype(np.uint8)


def draw_noise(frames_px: int) -> np.ndarray:
    """Noise of 6 levels, int16 [F, S, S, 3]."""
    noise = np.random.default_rng(0).normal(0, 6, (frames_px, clips.SIDE, clips.SIDE, 3))
    return noise.round().astype(np.int16)


def paint(background: str, shapes: list[tuple[str, tuple[int, int]]], frames_px: int = 81) -> np.ndarray:
    """A still clip, uint8 [F, S, S, 3], of circles with a radius of 7 px, each of a colour and a centre x, y."""
    shade = np.linspace(1 + tiny_grammar.SHADE, 1 - tiny_grammar.SHADE, clips.SIDE)[:, None, None]
    frame = np.tile(np.array(tiny_grammar.RGB[background]) * shade * 255, (1, clips.SIDE, 1)).round().astype(np.uint8)
    for colour, centre in shapes:
        cv2.circle(frame, centre, 7, [round(255 * channel) for channel in tiny_grammar.RGB[colour]], thickness=-1)
    return np.repeat(frame[None], frames_px, axis=0)


@pytest.mark.parametrize(("frames_px", "count"), [(81, 60), (321, 2)])
def test_rendered_clips_read_as_their_sentence(frames_px: int, count: int) -> None:
    generator, noise = torch.Generator().manual_seed(11), draw_noise(frames_px)
    clean, degraded = [], []
    for index, words in enumerate(SENTENCES[:count]):
        frames = render(words, frames_px, generator)
        clean.append(tiny_reading.score(tiny_reading.read(frames), words))
        # One draw of noise, moved along: a fresh one for each clip would take most of the time.
        degraded.append(tiny_reading.score(tiny_reading.read(degrade(frames, np.roll(noise, 7 * index, axis=(0, 1)))), words))
    for scores, least_frames, least_motion in ((clean, 0.99, 0.97), (degraded, 0.98, 0.95)):
        mean = {key: np.mean([score[key] for score in scores]) for key in scores[0]}
        assert min(mean["colour"], mean["background"], mean["one_object"]) >= least_frames
        assert mean["motion"] >= least_motion


def test_the_reading_finds_the_drawn_path() -> None:
    words = tiny_grammar.Words("small", "cyan", "circle", "bouncing", "grey")
    scene = clips.draw_scene(words, torch.Generator().manual_seed(0))
    times = torch.arange(81, dtype=torch.float32)
    x, y, _ = clips.path(scene, times)
    frames = ((clips.render(scene, times)[0] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    reading = tiny_reading.read(frames)
    assert np.abs(reading.centre_px - np.stack([x, y], axis=1)).max() < 0.5
    drawn_px = np.hypot(np.diff(x), np.diff(y)).mean()
    assert tiny_reading.score(reading, words)["speed_px"] == pytest.approx(drawn_px, rel=0.1)


@pytest.mark.parametrize("frames_px", [81, 321])
def test_motion_bears_jitter_wrong_amplitude_and_lost_frames(frames_px: int) -> None:
    generator, noise = torch.Generator().manual_seed(12), np.random.default_rng(12)
    right = []
    for words in SENTENCES[: 100 if frames_px == 81 else 30]:
        x, y, radius = clips.path(clips.draw_scene(words, generator), torch.arange(frames_px, dtype=torch.float32))
        centre_px = (np.stack([x, y], axis=1) - MIDDLE) * noise.uniform(0.8, 1.2, 2) + MIDDLE
        centre_px += 1.5 * noise.standard_normal(centre_px.shape)
        area_px = np.pi * radius.numpy() ** 2 * (1 + 0.05 * noise.standard_normal(frames_px))
        lost = noise.random(frames_px) < 0.1
        centre_px[lost], area_px[lost] = np.nan, 0
        right.append(tiny_reading.motion_kind(centre_px, area_px) == words.motion)
    assert np.mean(right) >= 0.97


TURNS = np.linspace(0, 1, 81)
NO_MOTION = {
    "still": np.zeros((81, 2)),
    "crosses once": np.stack([40 * TURNS, 0 * TURNS], axis=1),
    "drifts off along the diagonal": np.stack([40 * TURNS, 40 * TURNS], axis=1),
    "jumps about": np.random.default_rng(3).uniform(-18, 18, (81, 2)),
    "never seen": np.full((81, 2), np.nan),
}


@pytest.mark.parametrize("path_px", NO_MOTION.values(), ids=NO_MOTION)
def test_no_motion_of_the_grammar(path_px: np.ndarray) -> None:
    jitter_px = 1.5 * np.random.default_rng(4).standard_normal(path_px.shape)
    assert tiny_reading.motion_kind(MIDDLE + path_px + jitter_px, np.full(81, 150.0)) is None


@pytest.mark.parametrize("radius_px", [5 + 6 * TURNS, np.where(TURNS < 0.5, 9, 6)], ids=["grows", "shrinks at once"])
def test_a_size_that_changes_once_is_no_pulse(radius_px: np.ndarray) -> None:
    assert tiny_reading.motion_kind(np.full((81, 2), MIDDLE), np.pi * radius_px**2) is None


def test_bounces_along_a_line_or_a_diamond_are_no_orbit_and_a_flattened_orbit_no_bounce() -> None:
    times, area_px = np.arange(81), np.full(81, 150.0)
    folded, quarter_later = (18 * (4 * np.abs(t - np.floor(t + 0.5)) - 1) for t in (times / 60, times / 60 + 0.25))
    assert tiny_reading.motion_kind(np.stack([folded, folded], axis=1), area_px) == "bouncing"
    assert tiny_reading.motion_kind(np.stack([folded, quarter_later], axis=1), area_px) == "bouncing"  # a diamond
    ellipse = np.stack([17 * np.cos(times / 10), 11 * np.sin(times / 10)], axis=1)
    assert tiny_reading.motion_kind(ellipse, area_px) == "orbiting"


def test_a_long_clip_that_freezes_early_has_no_motion() -> None:
    x = MIDDLE + 18 * np.sin(2 * np.pi * np.minimum(np.arange(321), 100) / 60)
    assert tiny_reading.motion_kind(np.stack([x, np.full(321, MIDDLE)], axis=1), np.full(321, 150.0)) is None


@pytest.mark.parametrize("background", tiny_grammar.BACKGROUNDS)
def test_an_empty_background_has_no_object(background: str) -> None:
    frames = degrade(paint(background, [], frames_px=20), draw_noise(20))
    reading = tiny_reading.read(frames)
    assert set(reading.objects) == {0}
    assert set(reading.colour) == {None}
    assert set(reading.background) == {background}
    assert reading.motion is None
    assert np.isnan(reading.centre_px).all()
    assert not reading.area_px.any()
    scores = tiny_reading.score(reading, tiny_grammar.Words("small", "red", "circle", "orbiting", background))
    assert scores["colour"] == scores["one_object"] == scores["motion"] == 0
    assert np.isnan(scores["speed_px"])


@pytest.mark.parametrize("background", tiny_grammar.BACKGROUNDS)
@pytest.mark.parametrize("colours", [("white", "red"), ("orange", "orange"), ("yellow", "blue")])
def test_two_shapes_are_two_objects(background: str, colours: tuple[str, str]) -> None:
    frames = paint(background, [(colours[0], (16, 20)), (colours[1], (45, 40))], frames_px=5)
    for shown in (frames, degrade(frames, draw_noise(5))):
        assert set(tiny_reading.read(shown).objects) == {2}


@pytest.mark.parametrize("colour", tiny_grammar.COLOURS)
def test_colour_and_background_are_read_not_assumed(colour: str) -> None:
    asked = tiny_grammar.Words("small", "red" if colour != "red" else "blue", "circle", "orbiting", "navy")
    reading = tiny_reading.read(paint("forest", [(colour, (30, 30))], frames_px=9))
    scores = tiny_reading.score(reading, asked)
    assert set(reading.colour) == {colour}
    assert set(reading.background) == {"forest"}
    assert set(reading.objects) == {1}
    assert scores == {"colour": 0.0, "background": 0.0, "one_object": 1.0, "motion": 0.0, "speed_px": 0.0}


def test_the_shift_of_a_colour_is_that_of_the_object_between_the_ends() -> None:
    parts = [paint("navy", [(name, (30, 30))], frames_px=9) for name in ("red", "green", "orange")]
    reading = tiny_reading.read(np.concatenate(parts))
    ends = (np.array(tiny_grammar.RGB[name]) for name in ("red", "orange"))
    assert tiny_reading.colour_shift(reading, 9) == pytest.approx(255 * np.linalg.norm(np.subtract(*ends)), abs=1.5)
    assert tiny_reading.colour_shift(tiny_reading.read(parts[0]), 3) == 0
    assert np.isnan(tiny_reading.colour_shift(tiny_reading.read(np.concatenate([parts[0], paint("navy", [], frames_px=9)])), 9))
    alone = tiny_reading.joined([tiny_reading.read(frame[None]) for part in parts for frame in part])
    assert np.array_equal(alone.rgb, reading.rgb)


def test_no_colour_is_asked_for_where_the_sentence_says_none() -> None:
    scores = tiny_reading.score(tiny_reading.read(paint("navy", [("red", (30, 30))], frames_px=9)), tiny_grammar.UNSAID[0])
    assert np.isnan(scores["colour"])
    assert scores["background"] == scores["one_object"] == 1


def test_other_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float64 \[2, 64, 64, 3\]; need uint8"):
        tiny_reading.read(np.zeros((2, 64, 64, 3)))
    with pytest.raises(ValueError, match=r"uint8 \[2, 3, 64, 64\]; need uint8 \[F, H, W, 3\]"):
        tiny_reading.read(np.zeros((2, 3, 64, 64), np.uint8))
