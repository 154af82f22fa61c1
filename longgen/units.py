"""Durations, byte counts and lists of layers, as users write and read them."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction

from longgen.errors import UsageError, shown

_DURATION = re.compile(r"(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)m)?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)s?)?")


def seconds(text: str, what: str) -> Fraction:
    """Seconds of a time such as `20s`, `1m30s`, `2m` or `7.5`. Raises UsageError on anything else, calling it `what`."""
    match = _DURATION.fullmatch(text.strip().lower())
    if not match or not any(match.groups()):
        raise UsageError(
            f"{what} {shown(text)} is not a time", expected="20s, 1m30s, 2m or 7.5 (seconds)", hint="write it as one of these"
        )
    minutes, rest = (Fraction(group or 0) for group in match.groups())
    return 60 * minutes + rest


def duration_frames(duration: str, fps: int) -> int:
    """Pixel frames of a duration such as `20s`, `1m30s`, `2m` or `7.5`, at `fps` frames a second; at least 1.

    Raises UsageError on anything else, and on no time at all.
    """
    asked = seconds(duration, "--duration")
    if asked == 0:
        raise UsageError(f"--duration {duration} is no time for a video", expected="20s, 1m30s, 2m or 7.5 (seconds)",
                         hint="make it longer, or leave it out for the model's own length")  # fmt: skip
    return max(1, round(asked * fps))


def count_label(numbers: tuple[int, ...], total: int) -> str:
    """`all 30`, `0-9`, `0, 3-5 of 30`: a short way to write a sorted list of layers or steps."""
    if len(numbers) == total:
        return f"all {total}"
    runs = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return f"{', '.join(runs) or 'none'} of {total}"


def human_bytes(count: float) -> str:
    """`1.5 GB`: powers of 1000, two significant places below ten."""
    if count < 1:
        return "0 B"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.3g} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"
