"""Renders the clips that the `tiny` backbone learns: one flat shape that moves on a shaded background.

Legend: F pixel frames, S the side of the square picture in pixels. Positions and sizes are in pixels, times in
frames. A clip is a pure function of its `Scene`; `draw_scene` draws one with an explicit generator.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longgen.backbones import tiny_grammar

SIDE = 64
SATURATION, VALUE = 0.85, 0.95  # of a colour that the sentence does not say
RADIUS_PX = {"small": 7.0, "large": 12.0}
PULSE = 0.3  # a pulsing shape's radius runs from 1 - PULSE to 1 + PULSE
_EXTENT = {"circle": 1.0, "square": 0.9 * math.sqrt(2), "triangle": 1.3}  # circumradius over radius


@dataclass(frozen=True)
class Scene:
    """Everything that fixes a clip. `x`, `y`: (centre, amplitude, period, phase); a period is in frames, a phase in turns."""

    words: tiny_grammar.Words
    x: tuple[float, float, float, float]
    y: tuple[float, float, float, float]
    pulse: tuple[float, float]
    rgb: tuple[float, float, float]


def draw_scene(words: tiny_grammar.Words, generator: torch.Generator) -> Scene:
    """One random clip that shows what `words` say."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    middle = (SIDE - 1) / 2
    reach = middle - RADIUS_PX[words.size] * _EXTENT[words.shape] - 1  # how far the centre may move from the middle
    rest_x = (middle + uniform(-0.5, 0.5) * reach, 0.0, 1.0, 0.0)
    rest_y = (middle + uniform(-0.5, 0.5) * reach, 0.0, 1.0, 0.0)
    swing = (middle, reach * uniform(0.85, 1.0), uniform(48, 72), uniform(0, 1))
    if words.motion == "bouncing":
        x = (middle, reach, 4 * reach / uniform(0.9, 1.4), uniform(0, 1))
        y = (middle, reach, 4 * reach / uniform(0.9, 1.4), uniform(0, 1))
    elif words.motion == "sliding left and right":
        x, y = swing, rest_y
    elif words.motion == "moving up and down":
        x, y = rest_x, swing
    elif words.motion == "orbiting":
        turn = 0.25 if uniform(0, 1) < 0.5 else -0.25
        radius, period, phase = min(reach, 17.0) * uniform(0.85, 1.0), uniform(52, 80), uniform(0, 1)
        x, y = (middle, radius, period, phase), (middle, radius, period, phase + turn)
    else:
        x, y = rest_x, rest_y
    pulse = uniform(32, 48), uniform(0, 1)
    rgb = tiny_grammar.RGB[words.colour] if words.colour else colorsys.hsv_to_rgb(uniform(0, 1), SATURATION, VALUE)
    return Scene(words, x, y, pulse, rgb)


def path(scene: Scene, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre x, centre y and radius in pixels at `times` [F]."""

    def swing(axis: tuple[float, float, float, float]) -> Tensor:
        centre, amplitude, period, phase = axis
        turns = times / period + phase
        if scene.words.motion == "bouncing":  # a straight line folded at the walls: a triangle wave
            return centre + amplitude * (4 * (turns - (turns + 0.5).floor()).abs() - 1)
        return centre + amplitude * torch.sin(2 * math.pi * turns)

    radius = torch.full_like(times, RADIUS_PX[scene.words.size])
    if scene.words.motion == "pulsing":
        period, phase = scene.pulse
        radius = radius * (1 + PULSE * torch.sin(2 * math.pi * (times / period + phase)))
    return swing(scene.x), swing(scene.y), radius


def render(scene: Scene, times: Tensor) -> tuple[Tensor, Tensor]:
    """Frames [F, 3, S, S] in [-1, 1] at `times` [F], and how much of each pixel the shape covers [F, 1, S, S]."""
    centre_x, centre_y, radius = (value.view(-1, 1, 1) for value in path(scene, times))
    row = torch.arange(SIDE, dtype=torch.float32)
    dx, dy = row.view(1, 1, -1) - centre_x, row.view(1, -1, 1) - centre_y
    if scene.words.shape == "circle":
        distance = torch.hypot(dx, dy) - radius
    elif scene.words.shape == "square":
        distance = torch.maximum(dx.abs(), dy.abs()) - 0.9 * radius
    else:  # an upright equilateral triangle: the largest of three half-plane distances, inradius = 0.65 radius
        slanted = dx.abs() * math.cos(math.pi / 6) - dy * 0.5
        distance = torch.maximum(slanted, dy.expand_as(slanted)) - 0.65 * radius
    cover = (0.5 - distance).clamp(0, 1).unsqueeze(1)
    shade = torch.linspace(1 + tiny_grammar.SHADE, 1 - tiny_grammar.SHADE, SIDE).view(1, 1, -1, 1)
    ground = torch.tensor(tiny_grammar.RGB[scene.words.background]).view(1, 3, 1, 1) * shade
    shape = torch.tensor(scene.rgb).view(1, 3, 1, 1)
    return (ground + cover * (shape - ground)) * 2 - 1, cover
