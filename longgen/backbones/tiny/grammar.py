"""The sentences that the `tiny` backbone knows, as plain data.

A prompt is ``a {size} {colour} {shape} {motion} on a {background} background``; 2 x 8 x 3 x 5 x 5 = 1,200
sentences. 48 of them are held out of training and used by `longgen.backbones.tiny.check`.
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

GRAMMAR = "a {size} {colour} {shape} {motion} on a {background} background"
SLOTS = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "motion": MOTIONS, "background": BACKGROUNDS}
HELD_OUT_COUNT = 48


class Words(NamedTuple):
    """One sentence of the grammar, word by word."""

    size: str
    colour: str
    shape: str
    motion: str
    background: str

    @property
    def prompt(self) -> str:
        return GRAMMAR.format(**self._asdict())


SENTENCES = tuple(Words(*words) for words in itertools.product(*SLOTS.values()))
_BY_PROMPT = {words.prompt: words for words in SENTENCES}
HELD_OUT = tuple(random.Random(2026).sample(SENTENCES, HELD_OUT_COUNT))
TRAINING = tuple(words for words in SENTENCES if words not in set(HELD_OUT))


def parse(prompt: str) -> Words | None:
    """The words of `prompt`, or None where it is no sentence of the grammar. Case, spacing and a final stop are ignored."""
    return _BY_PROMPT.get(" ".join(prompt.lower().rstrip(" .").split()))


def describe() -> str:
    """The grammar and its words, one slot a line."""
    width = max(map(len, SLOTS))
    return "\n".join([GRAMMAR, *(f"  {slot:<{width}}  {', '.join(words)}" for slot, words in SLOTS.items())])
