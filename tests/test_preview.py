"""Strips of frames during sampling: they change no latent, cost what they say, and are never escapes in a pipe."""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longgen import bars, preview, run, rundir
from longgen.loops import State
from longgen.preview import Preview

PROMPT = "a large red circle bouncing on a navy background"


def made(tiny: Any, plan: Any, output: Path, strips: list[bytes] | None) -> tuple[list[str], list[State]]:
    """The notes and the states of a run, with a strip at every step where `strips` is a list."""
    notes: list[str] = []
    states: list[State] = []

    class Watched(Preview):
        def on_step(self, state: State) -> None:
            assert state.x0 is not None
            states.append(state._replace(latents=state.latents.clone(), x0=state.x0().clone))
            super().on_step(state)

    def watched(backbone: Any, job: Any) -> Preview:
        assert strips is not None
        return Watched(backbone, job.plan, rundir.run_folder(job.output), 1, strips.append, notes.append)

    job = run.Job(plan, PROMPT, 3, output)
    run.generate_one(tiny, job, log=notes.append, preview=None if strips is None else watched)
    return notes, states


def test_a_strip_at_every_step_changes_nothing(tiny: Any, tiny_plan: Callable[..., Any], tmp_path: Path) -> None:
    plan, strips = tiny_plan("freespec", frames=101, steps=2), list[bytes]()
    made(tiny, plan, tmp_path / "a.mp4", None)
    notes, states = made(tiny, plan, tmp_path / "b.mp4", strips)
    for name in ("a.mp4", "a.run/latents.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("a", "b", 1)).read_bytes()
    assert [state.done for state in states] == [1, 2]
    assert len(strips) == 2, notes
    with Image.open(tmp_path / "b.run" / "preview.png") as strip:
        assert strip.size == (preview.FRAMES * plan.size[0], plan.size[1])
        last = np.asarray(strip)
    first = next(iter(tiny.decode(states[-1].latents[:, :, :1])))[0]
    assert np.abs(last[:, : plan.size[0]].astype(int) - first).max() <= 1  # the clean latents of the last step are the final ones
    assert sum("a strip takes" in note and "more time" in note for note in notes) == 1
    rundir.start_anew(tmp_path / "b.mp4")
    assert not (tmp_path / "b.run" / "preview.png").exists()  # of another run


def test_frames_that_pass_are_kept_evenly_and_in_bounds(tiny: Any, tiny_plan: Callable[..., Any], tmp_path: Path) -> None:
    strip = Preview(tiny, tiny_plan("direct", steps=2), tmp_path, None, lambda png: None, lambda note: None)
    frames = (np.full((2, 4, 400, 3), index % 251, np.uint8) for index in range(500))
    assert sum(len(batch) for batch in strip.passing(frames)) == 1000
    assert preview.FRAMES <= len(strip.thumbs) < 2 * preview.FRAMES
    shades = [int(thumb[0, 0, 0]) for thumb in strip.thumbs]
    assert len({b - a for a, b in itertools.pairwise(shades) if b > a}) == 1
    assert strip.thumbs[0].shape == (2, preview.WIDTH, 3)


def test_a_terminal_that_shows_pictures_gets_the_whole_png_and_another_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    png = bytes(range(256)) * 40
    kitty = preview.escapes(png, {"TERM": "xterm-kitty"})
    assert kitty is not None
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b", kitty)
    assert base64.b64decode("".join(data for _, data in parts)) == png
    assert [head.endswith("m=1") for head, _ in parts] == [True] * (len(parts) - 1) + [False]
    iterm = preview.escapes(png, {"TERM_PROGRAM": "iTerm.app"})
    assert iterm is not None
    assert base64.b64decode(iterm.partition(":")[2].removesuffix("\x07")) == png
    buffer = io.BytesIO()
    Image.new("RGB", (10, 7), "red").save(buffer, "PNG")
    sixels = preview.escapes(buffer.getvalue(), {"TERM": "foot"})
    assert sixels is not None
    assert re.fullmatch(r'\x1bP0;0;0q"1;1;10;7#0;2;100;0;0!10~-(#0)?!10@-\x1b\\', sixels)  # a full band, and a row of one pixel
    assert preview.escapes(png, {"TERM": "xterm-256color"}) is None
    assert preview.escapes(png, {"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}) is None
    bars.draw(kitty)  # without a block of bars on a terminal
    assert capfd.readouterr() == ("", "")
