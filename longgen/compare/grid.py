"""The grid of presets, prompts and seeds: the videos that it is made of, and the making of those that are not there.

A video lies under a name that holds a hash of the settings that decide it, so that a finished one is known by its name alone, and
the same command goes on where an earlier one was stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longgen import cost, disk, naming, progress, run, rundir
from longgen.backbones.settings import ModelSettings
from longgen.errors import LonggenError, UsageError
from longgen.pipelines import base
from longgen.pipelines.token_limit import cut_notes, tokenizer_of
from longgen.plan import Plan
from longgen.progress import Progress
from longgen.resolve import PlanRequest, check_overrides, resolve

SHOWN = 50  # characters of a prompt in a line of progress


@dataclass(frozen=True, eq=False)
class Place:
    """A place in the grid: what its video shows and where it lies, whether it is there or not."""

    name: str
    plan: Plan
    prompt: str
    seed: int
    output: Path
    settings: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Raises LonggenError where its record is damaged."""
        return rundir.finished(self.output, self.settings, self.plan.frames_px)


def plans(requests: Sequence[PlanRequest]) -> list[Plan]:
    """A plan for each preset. An override goes to the presets that have its technique, `probe` to those that need one.

    Raises UsageError: no presets, two of the same name, an override that none of them takes, and what a plan refuses.
    """
    if not requests:
        raise UsageError("there are no presets to compare", expected="names or TOML files with commas between, as direct,freespec",
                         hint="longgen presets list shows them")  # fmt: skip
    fitted = [request.fitted() for request in requests]
    by_name: dict[str, Plan] = {}
    for request in fitted:
        plan = resolve(request)
        if plan.preset.name in by_name:
            raise UsageError(f"two of the presets are called {plan.preset.name}", expected="presets with different names",
                             hint="leave one out, or change the name in its TOML file")  # fmt: skip
        by_name[plan.preset.name] = plan
    check_overrides(requests[0].overrides, fitted)
    return [*by_name.values()]


def places(
    plans: Sequence[Plan], prompts: Iterable[str], seeds: Iterable[int], model_settings: ModelSettings, folder: Path
) -> list[Place]:
    """The places of the grid, prompt by prompt, so that there is something to watch early. Their videos lie in `folder`."""
    found = []
    for prompt, seed, plan in ((prompt, seed, plan) for prompt in prompts for seed in seeds for plan in plans):
        settings = run.settings_of(plan, prompt, seed, model_settings)
        words = f"{naming.slug(plan.preset.name, (40, 60))}-{naming.slug(prompt, (60, 100))}"
        name = f"{words}-{seed}-{content_hash(settings, model_settings)}"
        found.append(Place(name, plan, prompt, seed, folder / f"{name}.mp4", settings))
    return found


def content_hash(settings: dict[str, Any], model_settings: ModelSettings) -> str:
    """Eight hexadecimal digits of what decides the picture: not the versions of libraries, nor where it ran."""
    deciding = {key: settings.get(key) for key in run.IDENTITY} | {"vae_tiling": model_settings.vae_tiling}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:8]


def make(
    places: Sequence[Place],
    model_settings: ModelSettings,
    report: Callable[[Progress], None] = progress.no_report,
    log: Callable[[str], None] = progress.no_report,
) -> Iterator[tuple[Place, str | None]]:
    """Makes what is not there, on one loaded model. Each place comes as soon as it is settled, with an error where it failed."""
    missing = [place for place in places if not _finished(place)]
    if len(missing) < len(places):
        log(f"{len(places) - len(missing)} of {len(places)} videos are there already")
    to_do, done, began = sum(cost.ratio(place.plan) for place in missing), 0.0, 0.0
    backbone = None
    for number, place in enumerate(places, start=1):
        error = None
        if place in missing:
            log(f"[{number}/{len(places)}] {place.plan.preset.name}, seed {place.seed}, {shortened(place.prompt, SHOWN)}")
            if backbone is None:
                backbone, _ = run.load(place.plan.spec, model_settings, report)
                began = time.monotonic()
                cut = (note for one in places for note in cut_notes(one.plan, [one.prompt], tokenizer_of(backbone)))
                for note in dict.fromkeys([*backbone.notes, *cut]):
                    log(f"note: {note}")
            try:
                _make(place, backbone, report, log)
            except LonggenError as failure:
                error = failure.given
            except Exception as failure:  # a defect, of longgen or of a library: the other videos shall not wait for its mending
                if os.environ.get("LONGGEN_DEBUG") == "1":
                    raise
                error = f"{type(failure).__name__}: {failure}"
            if error:
                log(f"failed: {error}")
            spent_s, done = time.monotonic() - began, done + cost.ratio(place.plan)
            eta_s = spent_s / done * (to_do - done) if number < len(places) else None
            report(Progress("videos", number, len(places), spent_s, eta_s, progress.memory_bytes(model_settings.device)))
        yield place, error


def _finished(place: Place) -> bool:
    try:
        return place.finished
    except LonggenError:  # a damaged record, which making it says
        return False


def _make(
    place: Place,
    backbone: base.PipelineBackbone,
    report: Callable[[Progress], None],
    log: Callable[[str], None] = progress.no_report,
) -> None:
    """Makes the video of `place`, from what an earlier run left of it where it can."""
    folder = run.run_folder(place.output)
    with rundir.held(place.output):
        left = run.unfinished(place.output)
        if left and backbone.model_settings.cache and not (folder / rundir.LATENTS).is_file():
            left = None  # what a step cache held is lost
        if rundir.ready(place.output, place.settings, place.plan.frames_px, resume=True, overwrite=False):
            return  # another process was faster
        _forget_peak()
        run.generate_one(backbone, place.plan, place.prompt, place.seed, place.output, left is not None, report, log=log)
        if left:
            disk.save_record(folder / rundir.RECORD, run.stored_record(place.output) | {"resumed": True})


def _forget_peak() -> None:
    """Has Linux count the peak memory of this process anew; elsewhere a video has that of those before it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def record_of(video: Path) -> dict[str, Any]:
    """The run.json beside `video`; nothing where there is none, or a damaged one."""
    try:
        return run.stored_record(video)
    except LonggenError:
        return {}


def shortened(text: str, characters: int) -> str:
    """`text` on one line, of so many characters at most."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"
