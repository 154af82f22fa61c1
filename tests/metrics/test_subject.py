"""The words of a prompt held against a clip, frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longgen.backbones import tiny_grammar
from longgen.backbones.tiny import clips
from longgen.metrics import tiny_reading
from longgen.metrics.score import Scorer

WORDS = tiny_grammar.Words("large", "cyan", "circle", "orbiting", "maroon")
OTHER = WORDS._replace(colour="red", motion="bouncing")


def render(words: tiny_grammar.Words = WORDS, frames_px: int = 81) -> np.ndarray:
    video, _ = clips.render(clips.draw_scene(words, torch.Generator().manual_seed(0)), torch.arange(frames_px, dtype=torch.float32))
    return ((video + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def values(frames: np.ndarray, words: tiny_grammar.Words) -> dict[str, float]:
    scorer = Scorer(16, prompt=words.prompt)
    scorer.add(frames)
    return {name: value for name, value in scorer.result().values.items() if name.startswith("subject_") and value is not None}


def test_a_clip_shows_its_own_words_and_not_others() -> None:
    assert values(render(), WORDS) == {"subject_colour": 100, "subject_one_object": 100, "subject_motion": 100}
    assert values(render(), OTHER) == {"subject_colour": 0, "subject_one_object": 100, "subject_motion": 0}


def test_a_colour_that_is_lost_halfway_is_kept_by_half() -> None:
    frames = np.concatenate([render(), render(OTHER)])
    assert values(frames, WORDS)["subject_colour"] == 50


def test_frame_by_frame_is_as_all_at_once() -> None:
    frames = render(frames_px=161)
    frames[40:60, 2:12, 2:12] = 255  # a second object
    frames[70:80] = frames[0, 0, 0]  # none
    whole = tiny_reading.score(tiny_reading.read(frames), WORDS)
    assert values(frames, WORDS) == {f"subject_{name}": 100 * whole[name] for name in ("colour", "one_object", "motion")}
    assert 0 < whole["one_object"] < 1


@pytest.mark.parametrize(
    ("prompt", "size", "applies"),
    [(WORDS.prompt, 64, True), (f" {WORDS.prompt.upper()}. ", 64, True), (WORDS.prompt, 128, False),
     ("a dog on a beach", 64, False), ("", 64, False), (None, 64, False)],
)  # fmt: skip
def test_only_for_the_grammar_at_its_size(prompt: str | None, size: int, applies: bool) -> None:
    scorer = Scorer(16, prompt=prompt)
    scorer.add(np.repeat(np.repeat(render(frames_px=2), size // 64, axis=1), size // 64, axis=2))
    assert ("subject_motion" in scorer.result().values) is applies
