"""A run is killed at file operations and at random moments, with and without a finished video in its place; then it goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

from tests.harness import operations
from tests.harness.trial import KINDS, Outcome, Reference, content, ended, fresh, latents, longgen, reference, start


def die_at(folder: Path, number: int) -> None:
    def act(now: int, name: str) -> None:
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)

    operations.watch(folder, act)


def count_of(folder: Path, arguments: list[str]) -> int:
    """How many operations a run has."""
    said = folder.with_name(f"{folder.name}.count")

    def act(now: int, name: str) -> None:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, str(now).encode())
        os.close(descriptor)

    done = longgen(folder, arguments, lambda: operations.watch(folder, act))
    assert done.code == 0, done.said
    return int(said.read_text())


def run(trials: int, seed: int, folder: Path) -> dict[str, int]:
    chance = random.Random(seed)
    few = trials < 50
    kinds = [chance.choice([*KINDS])] if few else [*KINDS]
    whole = {kind: (reference(kind, 1, folder.parent), reference(kind, 2, folder.parent)) for kind in kinds}
    cases = []
    counts = {"trials": 0, "wrong": 0, "operations": 0, "refused": 0, "litter": 0}
    for kind in kinds:
        for earlier in (True,) if few else (False, True):
            place = fresh(folder, 90_000 + len(cases))
            flags = ["--overwrite"] if earlier else []
            if earlier:
                whole[kind][0].put(place)
            number = count_of(place, [*whole[kind][1].arguments, "-o", "a.mp4", *flags])
            counts["operations"] += number
            cases += [(kind, earlier, at) for at in range(1, number + 1)]
    asked = chance.sample(cases, min(trials * 4 // 5, len(cases)))
    asked += [(chance.choice(kinds), chance.random() < 0.5, None) for _ in range(trials - len(asked))]
    for number, (kind, earlier, at) in enumerate(asked):
        place = fresh(folder, number)
        old, new = whole[kind]
        if earlier:
            old.put(place)
        command = [*new.arguments, "-o", "a.mp4"]
        first = stopped(place, [*command, *(["--overwrite"] if earlier else [])], at, chance)
        reason = standing(place, old if earlier else None, new) or ("" if first.sentence else first.said)
        if chance.random() < 0.25 and not reason:  # the one that goes on is stopped as well
            stopped(place, [*command, "--resume"], chance.randint(1, 60), chance)
            reason = standing(place, old if earlier else None, new)
        done = longgen(place, [*command, "--resume"])
        if done.code == 2 and earlier and done.sentence:  # it had not begun: what is there is the earlier video's
            counts["refused"] += 1
            reason = reason or standing(place, old, new)
            done = longgen(place, [*command, "--overwrite"])
        if not reason and (done.code != 0 or not done.sentence or not new.is_at(place)):
            reason = f"resumed with exit code {done.code}: {done.said}"
        counts["trials"] += 1
        counts["wrong"] += bool(reason)
        left = not reason and content(place).keys() ^ new.files.keys()
        counts["litter"] += bool(left)
        if left:
            print(f"stops: {kind} at {at} left {left}", flush=True)
        if reason:
            print(f"stops: {kind}, {'with' if earlier else 'without'} an earlier video, at {at}: {reason}", flush=True)
        else:
            shutil.rmtree(place)
    return counts


def stopped(place: Path, arguments: list[str], at: int | None, chance: random.Random) -> Outcome:
    """`longgen` in `place`, killed at operation `at`, or at a random moment."""
    if at is not None:
        return longgen(place, arguments, lambda: die_at(place, at))
    process, said = start(place, arguments)
    time.sleep(chance.uniform(0, 1.2))
    os.kill(process, signal.SIGKILL)
    return ended(process, said)


def standing(place: Path, old: Reference | None, new: Reference) -> str:
    """What is wrong with what stands in `place` after a stop: nothing finished may be lost, and nothing half-made have its name."""
    video = place / "a.mp4"
    now = video.read_bytes() if video.exists() else None
    if now == new.video:
        return ""
    if old is None:
        return "" if now is None else "a video that is not whole has the name"
    if now != old.video:
        return "the earlier video is gone"
    kept = [latents(folder) for folder in (place / "a.run", place / "a.run" / "earlier")]
    return "" if old.latents in kept else "the earlier latents are gone"
