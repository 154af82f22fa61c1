"""Durations, byte counts and index lists, parsed and formatted for people."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction

from longgen.errors import UsageError, conflict, shown

_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
_DURATION = re.compile(rf"(?:{_NUMBER} *(?:m|min|mins|minutes?))? *(?:{_NUMBER} *(?:s|secs?|seconds?)?)?")
_CLOCK = re.compile(r"([0-9]{1,9}):([0-5][0-9](?:\.[0-9]{1,9})?)")


def seconds(text: str, what: str) -> Fraction:
    """Parses a time such as `20s`, `1m30s`, `1:30`, `2 min` or `7.5` to seconds. Raises UsageError, naming `what`."""
    match = _CLOCK.fullmatch(text.strip()) or _DURATION.fullmatch(text.strip().lower())
    if not match or not any(match.groups()):
        hint = "use one of these forms"
        if re.fullmatch(r"[0-9]+ *(f|frames?)", text.strip().lower()):
            hint = f"--frames {re.split('[^0-9]', text.strip())[0]}"
        raise UsageError(f"{what} {shown(text)} is not a time", "20s, 1m30s, 1:30, 2m or 7.5 (seconds)", hint)
    minutes, rest = (Fraction(group or 0) for group in match.groups())
    return 60 * minutes + rest


def duration_frames(duration: str, fps: int) -> int:
    """Pixel frames, at least 1, of a time that `seconds` parses. Raises UsageError, also for zero."""
    duration_s = seconds(duration, "--duration")
    if duration_s == 0:
        raise UsageError(f"--duration {duration} is too short for a video", expected="20s, 1m30s, 2m or 7.5 (seconds)",
                         hint="make it longer, or leave it out for the model's native length")  # fmt: skip
    return max(1, round(duration_s * fps))


def frames_asked(frames: int | None, duration: str | None, fps: int) -> int | None:
    """The pixel frames that --frames, or --duration at `fps`, asks for; None without both. Raises UsageError for both."""
    if duration is None:
        return frames
    if frames is not None:
        raise conflict("--frames", "--duration")
    return duration_frames(duration, fps)


def count_label(numbers: tuple[int, ...], total: int) -> str:
    """`all 30`, `0-9`, `0, 3-5 of 30`: a compact form of a sorted list of layers or steps."""
    if len(numbers) == total:
        return f"all {total}"
    runs = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return f"{', '.join(runs) or 'none'} of {total}"


def short(number: float) -> str:
    """A positive number with three digits or, from 100, as an integer: `11.9`, `2,718`; from a million as `1e+07`."""
    return f"{number:,.0f}" if 100 <= number < 1e6 else f"{number:.3g}"


def human_bytes(count: float) -> str:
    """`1.5 GB`: units of powers of 1000, three significant digits."""
    if count < 1:
        return "0 B"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.3g} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"


def about_time(seconds_: float) -> str:
    """`40 s`, `6 min` or `2.1 h`: two significant digits, for estimates."""
    if seconds_ < 100:
        return f"{seconds_:.2g} s"
    if seconds_ < 100 * 60:
        return f"{float(f'{seconds_ / 60:.2g}'):g} min"
    return f"{float(f'{seconds_ / 3600:.2g}'):g} h"
