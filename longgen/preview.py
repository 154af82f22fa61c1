"""`--preview`: a strip of frames while a video is sampled, decoded from the clean latents that the newest step predicts.

A few latent frames, spread over the video, go through the model's own VAE one by one, each as the first frame of a video. Nothing
of the run is touched: no generator draws, and no setting of the run is another. Where frames are decoded as they come, some of
these make the strip, without further work of the VAE.
"""

from __future__ import annotations

import base64
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longgen import disk, loops, naming
from longgen.progress import clock_text

if TYPE_CHECKING:
    from longgen.loops import State
    from longgen.pipelines.base import PipelineBackbone
    from longgen.plan import Plan

FRAMES = 6  # of a strip
WIDTH = 192  # pixels of a frame in it, at most
SHARE = 0.03  # of the time of sampling, at most, where no interval is asked for
FIRST = 0.25  # of the steps, after which the first strip is made to learn what one costs
WRITTEN_EVERY_S, DRAWN_EVERY_S = 2.0, 15.0  # where the strips are of frames that are done
CHUNK = 4096  # bytes of base64 in an escape sequence of kitty


class Preview:
    """The strips of one video. every: steps between two; None for as many as cost SHARE. draw: shows a PNG, if the screen can."""

    def __init__(
        self, backbone: PipelineBackbone, plan: Plan, folder: Path, every: int | None, draw: Callable[[bytes], None],
        log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.backbone, self.plan, self.path, self.every, self.draw, self.log = (
            backbone,
            plan,
            folder / naming.PREVIEW,
            every,
            draw,
            log,
        )
        self.begun, self.spent_s, self.cost_s, self.made = time.monotonic(), 0.0, 0.0, 0
        self.thumbs: list[np.ndarray] = []
        self.stride, self.passed, self.written, self.drawn = 1, 0, 0.0, 0.0
        self.silent, self.streams = False, loops.streams(plan, backbone.model_settings.offload)

    def on_step(self, state: State) -> None:
        """Makes a strip where one is due. Nothing that fails here ends the run."""
        if self.streams or not self._due(state.done):
            return
        began = time.monotonic()
        try:
            thumbs = self._decoded(state)
            if not thumbs:
                return
            self._write(thumbs)
        except Exception as error:  # of the VAE, of memory, of the disk
            self._end(error)
            return
        self.made, self.cost_s = self.made + 1, time.monotonic() - began
        self.spent_s += self.cost_s
        if self.made == 1:
            self._say_cost(state.done)

    def _due(self, done: int) -> bool:
        if self.silent:
            return False
        if self.every is not None:
            return done % self.every == 0
        if not self.made:
            return done >= math.ceil(FIRST * self.plan.rounds)
        return self.spent_s + self.cost_s <= SHARE * (time.monotonic() - self.begun)

    def _decoded(self, state: State) -> list[np.ndarray]:
        """The frames of a strip, [height, width, 3] uint8; none where the scheduler tells no clean latents."""
        import torch

        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x0 = None if state.x0 is None else state.x0()
            if x0 is None:
                self.silent = True
                self.log("note: no preview: the steps of this run tell no clean latents")
                return []
            count = x0.shape[2]
            shown = dict.fromkeys(np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int).tolist())
            return [next(iter(self.backbone.decode(x0[:, :, index : index + 1].contiguous())))[0] for index in shown]

    def passing(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """`frames` of a video that is decoded as it is sampled; some of them make strips, at no cost of the VAE.

        As many are kept as a strip has, twice that at most, however long the video becomes.
        """
        for batch in frames:
            for frame in batch:
                if self.passed % self.stride == 0:
                    self.thumbs.append(_thumb(frame))
                    if len(self.thumbs) == 2 * FRAMES:
                        self.thumbs, self.stride = self.thumbs[::2], 2 * self.stride
                self.passed += 1
            self._show_passing()
            yield batch

    def _show_passing(self) -> None:
        now = time.monotonic()
        if self.silent or not self.thumbs or now - self.written < WRITTEN_EVERY_S:
            return
        shown = now - self.drawn >= DRAWN_EVERY_S
        self.written, self.drawn = now, now if shown else self.drawn
        try:
            self._write(self.thumbs, shown)
        except Exception as error:  # of the disk, or of what draws: no reason to end the run
            self._end(error)
            return
        self.made += 1
        if self.made == 1:
            self.log(f"preview: {self.path}, of the frames that are done")

    def _end(self, error: Exception) -> None:
        self.silent = True
        self.log(f"note: no preview any more: {' '.join(str(error).split())[:200]}")

    def _write(self, frames: list[np.ndarray], shown: bool = True) -> None:
        from PIL import Image

        strip = Image.fromarray(np.concatenate([_thumb(frame) for frame in frames], axis=1))
        disk.replace_file(self.path, lambda partial: strip.save(partial, format="PNG"))
        if shown:
            self.draw(self.path.read_bytes())

    def _say_cost(self, done: int) -> None:
        step_s = (time.monotonic() - self.begun - self.spent_s) / done
        if self.every is not None:
            share = self.cost_s / (self.every * step_s) if step_s else 0.0
            how = f"{100 * share:.1f}% more time at one every {'step' if self.every == 1 else f'{self.every} steps'}"
        else:
            share = self.cost_s / (step_s * self.plan.rounds) if step_s else 0.0
            how = f"at most {100 * SHARE:.0f}% of the time goes into them" if share <= SHARE else (
                f"{100 * share:.1f}% of this run, so there is no other: --preview N makes one every N steps")  # fmt: skip
        self.log(f"preview: {self.path}; a strip takes {clock_text(self.cost_s)}, {how}")


def _thumb(frame: np.ndarray) -> np.ndarray:
    """`frame` [height, width, 3] uint8 at most WIDTH wide."""
    from PIL import Image

    height, width = frame.shape[:2]
    if width <= WIDTH:
        return frame
    return np.asarray(Image.fromarray(frame).resize((WIDTH, max(1, round(height * WIDTH / width))), Image.Resampling.BILINEAR))


def escapes(png: bytes, environment: Mapping[str, str] = os.environ) -> str | None:
    """The control sequence by which the terminal that `environment` names shows `png`; None where it shows none, as within tmux.

    kitty's graphics protocol (kitty, Ghostty), iTerm2's inline images (iTerm2, WezTerm), or sixels where textual-image is installed
    (foot, mlterm, Contour, mintty, Windows Terminal).
    """
    data, program = base64.b64encode(png).decode("ascii"), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX") or environment.get("STY") or environment.get("TERM") == "dumb":
        return None
    if environment.get("KITTY_WINDOW_ID") or environment.get("TERM") == "xterm-kitty" or program == "ghostty":
        parts = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
        heads = [("a=T,f=100,q=2," if index == 0 else "") + f"m={int(index + 1 < len(parts))}" for index in range(len(parts))]
        return "".join(f"\x1b_G{head};{part}\x1b\\" for head, part in zip(heads, parts, strict=True))
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return f"\x1b]1337;File=inline=1;size={len(png)};preserveAspectRatio=1:{data}\x07"
    named = environment.get("TERM", "").startswith(("foot", "mlterm", "contour", "xterm-sixel"))
    return _sixels(png) if named or program in ("mintty", "contour") or environment.get("WT_SESSION") else None


def _sixels(png: bytes) -> str | None:
    """`png` in at most 256 colours; None without the library."""
    from PIL import Image

    try:
        from textual_image._sixel import image_to_sixels  # its public class asks the terminal for its size, by stdin
    except ImportError:
        return None
    return str(image_to_sixels(Image.open(io.BytesIO(png))))
