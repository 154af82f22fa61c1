"""Measures what a 64x64 clip of `tiny` shows (colour, background, objects, motion), to be compared with the words of its prompt.

Legend: F frames, H rows, W columns, T tracked frames of one window, P trial periods. Positions, distances and areas
are in pixels, times in frames, colours RGB in [0, 1]. The thresholds fit the clips of `backbones.tiny.clips.draw_scene`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from longgen.backbones import tiny_grammar

# An object's rim lies at half the frame's strongest RGB distance from the background: halos stay outside. Never below
# noise (0.04, at most 0.11), never so high that a second object is missed (the palette's least: orange on sand, 0.47).
RIM_CONTRAST = (0.15, 0.3)
MIN_AREA_PX = 12  # the smallest shape has 53, a pulsing small triangle; specks of a soft edge stay below
CORE = 0.6  # the rim mixes in background, so colour is read this deep, as a share of the deepest pixel's way in
WINDOW_FRAMES = 81  # motion is judged in windows of one training clip, so a long clip may drift in phase and speed
STILL_PX = 3.5  # spread (std) of a resting coordinate: jitter is below 2, the gentlest motion above 8
STILL_SHARE = 0.35  # the same as a share of the other axis; bouncing and orbiting spread alike in both
TO_AND_FRO = 0.25  # the lesser of the ways back and forth, as a share of the span: a one-way drift has none
PULSE_SPREAD = 0.08  # std of sqrt(area) over its mean: 0.2 where the radius swings by 30 per cent
ROUND = 0.4  # least ratio of an orbit's narrow to its wide spread: a diagonal line has 0
MISFIT = 0.2  # share of the variance that the best fit may leave: up to 0.14 where the speed drifts by 20 per cent
_SMOOTH_FRAMES = 7
_PERIODS = {"pulse": np.geomspace(24, 64, 32), "path": np.geomspace(36, 130, 44)}  # drawn from 32..48 and 42..105
_PHASES = np.arange(24) / 48  # half a turn: a negative amplitude covers the other half


@dataclass(frozen=True)
class Reading:
    """What each of F frames shows, and how the main object, the largest of a frame, moves."""

    colour: tuple[str | None, ...]  # nearest object colour of the main object, None where there is no object
    rgb: np.ndarray  # [F, 3] of the main object, nan where there is none
    background: tuple[str, ...]  # nearest background
    objects: tuple[int, ...]  # how many objects
    centre_px: np.ndarray  # [F, 2] x, y of the main object, nan where there is none
    area_px: np.ndarray  # [F], 0 where there is none
    motion: str | None  # one of `tiny_grammar.MOTIONS`, None where it is none of them


def read(frames: np.ndarray) -> Reading:
    """Measures `frames`, uint8 [F, H, W, 3]. Raises ValueError for another type or shape."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"got {frames.dtype} {list(frames.shape)}; need uint8 [F, H, W, 3]: convert the frames first")
    pixels = frames.astype(np.float32) / 255
    shade = np.linspace(1 + tiny_grammar.SHADE, 1 - tiny_grammar.SHADE, frames.shape[1], dtype=np.float32)[:, None, None]
    # Even the largest shape covers a fifth of the picture, so the median of the unshaded pixels is background.
    unshaded = np.ascontiguousarray(np.moveaxis(pixels / shade, -1, 1)).reshape(len(frames), 3, -1)
    grounds = np.median(unshaded, axis=2)
    contrast = np.sqrt(np.square(pixels - grounds[:, None, None] * shade).sum(-1))  # [F, H, W]

    colour: list[str | None] = []
    objects: list[int] = []
    centre_px, area_px = np.full((len(frames), 2), np.nan), np.zeros(len(frames))
    rgb = np.full((len(frames), 3), np.nan)
    for index, far in enumerate(contrast):
        strongest = np.partition(far, -MIN_AREA_PX, axis=None)[-MIN_AREA_PX]
        mask = (far > np.clip(strongest / 2, *RIM_CONTRAST)).astype(np.uint8)
        _, labels, stats, centres = cv2.connectedComponentsWithStats(mask, connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]  # label 0 is the background
        objects.append(int((areas >= MIN_AREA_PX).sum()))
        if objects[-1] == 0:
            colour.append(None)
            continue
        main = 1 + int(areas.argmax())
        centre_px[index], area_px[index] = centres[main], areas[main - 1]
        # A rim of background all around: a shape cut by the picture's edge is no deeper there.
        shape = np.pad((labels == main).astype(np.uint8), 1)
        depth = cv2.distanceTransform(shape, cv2.DIST_L2, 3)[1:-1, 1:-1]
        core = pixels[index][depth >= CORE * depth.max()]
        rgb[index] = np.median(core, axis=0)
        colour.append(_nearest(rgb[index], tiny_grammar.COLOURS))
    background = tuple(_nearest(ground, tiny_grammar.BACKGROUNDS) for ground in grounds)
    return Reading(tuple(colour), rgb, background, tuple(objects), centre_px, area_px, motion_kind(centre_px, area_px))


def joined(parts: Sequence[Reading]) -> Reading:
    """The reading of a clip from those of its parts, such as single frames."""
    columns = {name: [getattr(part, name) for part in parts] for name in Reading.__annotations__}
    colour, background, objects = (tuple(itertools.chain(*columns[name])) for name in ("colour", "background", "objects"))
    rgb, centre_px, area_px = (np.concatenate(columns[name]) for name in ("rgb", "centre_px", "area_px"))
    return Reading(colour, rgb, background, objects, centre_px, area_px, motion_kind(centre_px, area_px))


def motion_kind(centre_px: np.ndarray, area_px: np.ndarray) -> str | None:
    """The motion that most windows of a clip show, one of `tiny_grammar.MOTIONS`, or None where no motion has a majority.

    `centre_px` [F, 2] and `area_px` [F] track one object; frames whose centre is nan are skipped.
    """
    last = max(len(area_px) - WINDOW_FRAMES, 0)
    starts = [*range(0, last, WINDOW_FRAMES // 2), last]
    windows = [slice(start, start + WINDOW_FRAMES) for start in starts]
    votes = Counter(_window_motion(centre_px[window], area_px[window]) for window in windows)
    motion, count = votes.most_common(1)[0]
    return motion if 2 * count > len(windows) else None


def score(reading: Reading, words: tiny_grammar.Words) -> dict[str, float]:
    """How far `reading` shows `words`.

    colour, background, one_object: share of the frames that have the asked colour, the asked background, exactly one
    object; colour is nan where none is asked. motion: 1.0 or 0.0. speed_px: mean way of the centre between neighbouring
    frames, nan if never tracked.
    """
    steps_px = np.hypot(*np.diff(reading.centre_px, axis=0).T)
    tracked = steps_px[np.isfinite(steps_px)]
    return {
        "colour": float(np.mean([name == words.colour for name in reading.colour])) if words.colour else float("nan"),
        "background": float(np.mean([name == words.background for name in reading.background])),
        "one_object": float(np.mean([count == 1 for count in reading.objects])),
        "motion": float(reading.motion == words.motion),
        "speed_px": float(tracked.mean()) if len(tracked) else float("nan"),
    }


def colour_shift(reading: Reading, frames: int) -> float:
    """Distance of the object's colours in the first and in the last `frames`, in levels of 255; nan where there is no object."""
    first, last = (part[np.isfinite(part[:, 0])] for part in (reading.rgb[:frames], reading.rgb[-frames:]))
    if not (len(first) and len(last)):
        return float("nan")
    return float(255 * np.linalg.norm(np.median(last, axis=0) - np.median(first, axis=0)))


def _nearest(rgb: np.ndarray, names: tuple[str, ...]) -> str:
    return min(names, key=lambda name: float(np.square(rgb - tiny_grammar.RGB[name]).sum()))


def _window_motion(centre_px: np.ndarray, area_px: np.ndarray) -> str | None:
    times = np.flatnonzero(np.isfinite(centre_px[:, 0]))
    if 2 * len(times) < len(area_px) or len(times) < 2 * _SMOOTH_FRAMES:
        return None
    path, radius = centre_px[times], np.sqrt(area_px[times])
    spread = path.std(axis=0)
    moves = spread > np.maximum(STILL_PX, STILL_SHARE * spread[::-1])
    if not moves.any():
        swings = radius.std() > PULSE_SPREAD * radius.mean()
        return "pulsing" if swings and _misfit(radius, times, _sine, "pulse").min() < MISFIT else None

    window = np.ones(_SMOOTH_FRAMES) / _SMOOTH_FRAMES  # jitter would count as ways back and forth
    smooth = np.stack([np.convolve(axis, window, mode="valid") for axis in path.T])  # [2, T - 6]
    steps = np.diff(smooth, axis=1)
    ways = np.minimum(steps.clip(min=0).sum(axis=1), -steps.clip(max=0).sum(axis=1))
    if (ways < TO_AND_FRO * np.ptp(smooth, axis=1))[moves].any():
        return None
    if not moves.all():
        fits = _misfit(path[:, moves.argmax()], times, _sine, "path").min() < MISFIT
        return ("sliding left and right" if moves[0] else "moving up and down") if fits else None

    share = (spread**2 / (spread**2).sum())[:, None]  # of the path's variance, for each axis
    # An orbit has one period for both axes, a bounce one for each.
    orbit = (share * [_misfit(axis, times, _sine, "path") for axis in path.T]).sum(axis=0).min()
    bounce = (share[:, 0] * [_misfit(axis, times, _triangle, "path").min() for axis in path.T]).sum()
    narrow, wide = np.sqrt(np.linalg.eigvalsh(np.cov(path.T)).clip(min=0))
    if narrow < ROUND * wide:
        orbit = 1.0
    if min(orbit, bounce) > MISFIT:
        return None
    return "orbiting" if orbit < bounce else "bouncing"


def _sine(turns: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * turns)


def _triangle(turns: np.ndarray) -> np.ndarray:
    return 4 * np.abs(turns - np.floor(turns + 0.5)) - 1


def _misfit(signal: np.ndarray, times: np.ndarray, wave: Callable, periods: str) -> np.ndarray:
    """Share of the variance of `signal` [T] at `times` [T] that the best `wave` leaves, for each trial period [P].

    Offset and amplitude are fitted, so what is left is 1 - (correlation)^2; the phase is searched.
    """
    waves = wave(times / _PERIODS[periods][:, None, None] + _PHASES[:, None])  # [P, phases, T]
    waves -= waves.mean(axis=-1, keepdims=True)
    centred = signal - signal.mean()
    explained = np.square(waves @ centred) / (np.square(waves).sum(axis=-1) * np.square(centred).sum())
    return 1 - explained.max(axis=1)
