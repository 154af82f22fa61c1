"""The prompts that the `tiny` backbone was trained on, and the colours of their words, as plain data.

A prompt is ``a {size} {colour} {shape} {motion} on a {background} background``; 2 x 8 x 3 x 5 x 5 = 1,200
sentences. 48 of them are held out of training and used by `longgen.backbones.tiny.check`.

In an unsaid sentence the colour is left out; the object then has any hue, which only the frames before can tell.
"""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

SIZES = ("small", "large")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "pink", "white")
SHAPES = ("circle", "square", "triangle")
MOTIONS = ("bouncing", "sliding left and right", "moving up and down", "orbiting", "pulsing")
BACKGROUNDS = ("navy", "sand", "forest", "grey", "maroon")

RGB = {
    "red": (0.90, 0.10, 0.10), "orange": (1.00, 0.52, 0.05), "yellow": (0.98, 0.92, 0.15), "green": (0.15, 0.80, 0.20),
    "cyan": (0.10, 0.85, 0.90), "blue": (0.15, 0.30, 1.00), "pink": (1.00, 0.35, 0.75), "white": (0.97, 0.97, 0.97),
    "navy": (0.05, 0.07, 0.25), "sand": (0.72, 0.60, 0.42), "forest": (0.06, 0.25, 0.13), "grey": (0.42, 0.42, 0.44),
    "maroon": (0.30, 0.06, 0.12),
}  # fmt: skip
SHADE = 0.12  # the background runs from 1 + SHADE at the top to 1 - SHADE at the bottom

GRAMMAR = "a {size} {colour} {shape} {motion} on a {background} background"
SLOTS = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "motion": MOTIONS, "background": BACKGROUNDS}
HELD_OUT_COUNT = 48
UNSAID_HELD_OUT_COUNT = 16


class Words(NamedTuple):
    """One sentence of the grammar, word by word."""

    size: str
    colour: str  # empty where the sentence leaves it out
    shape: str
    motion: str
    background: str

    @property
    def prompt(self) -> str:
        return " ".join(GRAMMAR.format(**self._asdict()).split())


SENTENCES = tuple(Words(*words) for words in itertools.product(*SLOTS.values()))
_BY_PROMPT = {words.prompt: words for words in SENTENCES}
HELD_OUT = tuple(random.Random(2026).sample(SENTENCES, HELD_OUT_COUNT))
TRAINING = tuple(words for words in SENTENCES if words not in set(HELD_OUT))
UNSAID = tuple(dict.fromkeys(words._replace(colour="") for words in SENTENCES))
UNSAID_HELD_OUT = tuple(dict.fromkeys(words._replace(colour="") for words in HELD_OUT))[:UNSAID_HELD_OUT_COUNT]
UNSAID_TRAINING = tuple(words for words in UNSAID if words not in set(UNSAID_HELD_OUT))


def parse(prompt: str) -> Words | None:
    """The words of `prompt`, or None where it is no sentence of the grammar. Case, spacing and a final stop are ignored."""
    return _BY_PROMPT.get(" ".join(prompt.lower().rstrip(" .").split()))


def describe() -> str:
    """The grammar and its words, one slot a line."""
    width = max(map(len, SLOTS))
    return "\n".join([GRAMMAR, *(f"  {slot:<{width}}  {', '.join(words)}" for slot, words in SLOTS.items())])
