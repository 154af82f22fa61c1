"""How VBench-Long cuts a video into clips. Source: vbench2_beta_long/utils.py `split_video_into_clips`."""

from __future__ import annotations

from longgen.errors import UsageError

SECONDS = 2  # of a clip, in its mode `long_custom_input`


def clip_frames(fps: float, seconds: int = SECONDS) -> int:
    """Frames of a clip: the rate is truncated to an integer first. Raises UsageError below one frame a second."""
    if not (fps >= 1 and seconds >= 1):
        raise UsageError(
            f"clips of {seconds} s at {fps} frames a second", expected="1 or more of both", hint="score the whole video"
        )
    return int(fps) * seconds


def clip_list(frames: int, fps: float, seconds: int = SECONDS) -> list[tuple[int, int]]:
    """First and last frame of every clip of a video of `frames` frames.

    A remainder becomes one more clip, which ends with the video and overlaps the previous one; a video shorter than a clip is one
    clip.
    """
    length = clip_frames(fps, seconds)
    starts = [*range(0, frames - length + 1, length), *([max(0, frames - length)] if frames % length else [])]
    return [(start, min(start + length, frames) - 1) for start in starts]
