"""Two processes at once: on one output, with the same settings or others, one of them decoding, or with names of longgen's own."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from tests.harness.trial import Outcome, Reference, ended, fresh, latents, reference, start

MODES = ("same", "other", "overwrite", "resume", "decode", "default", "case")


def run(trials: int, seed: int, folder: Path) -> dict[str, int]:
    chance = random.Random(seed)
    whole = {kind: (reference(kind, 1, folder.parent), reference(kind, 2, folder.parent)) for kind in ("tiny", "causal")}
    counts = {"trials": 0, "wrong": 0, "both": 0, "refused": 0}
    for number in range(trials):
        place, kind, mode = fresh(folder, number), chance.choice([*whole]), MODES[number % len(MODES)]
        one, two = whole[kind]
        name = ["-o", "a.mp4"]
        first, second = [*one.arguments, *name], [*(one if mode == "same" else two).arguments, *name]
        if mode == "overwrite":
            one.put(place)
            first, second = [*first, "--overwrite"], [*second, "--overwrite"]
        elif mode == "resume":
            first, second = [*first, "--resume"], [*first, "--resume"]
        elif mode == "decode":
            one.put(place)
            (place / "a.mp4").unlink()
            first, second = [*first, "--resume"], ["decode", "a.run", "--device", "cpu"]
        elif mode == "default":
            first, second = one.arguments, [*one.arguments, "--fps", "3"]
        elif mode == "case":
            second = [*one.arguments, "-o", "./a.mp4"]
        began = start(place, first)
        time.sleep(chance.choice([0, 0, chance.uniform(0, 0.6)]))
        other = start(place, second)
        done = [ended(*began), ended(*other)]
        counts["both"] += all(each.code == 0 for each in done)
        counts["refused"] += sum(each.code != 0 for each in done)
        reason = wrong(place, mode, done, one, two)
        counts["trials"] += 1
        counts["wrong"] += bool(reason)
        if reason:
            print(f"pairs: {mode}, {kind}: {reason}\n{done[0].said}\n{done[1].said}", flush=True)
        else:
            shutil.rmtree(place)
    return counts


def wrong(place: Path, mode: str, done: list[Outcome], one: Reference, two: Reference) -> str:
    """What is wrong after both have ended."""
    good = [each.code == 0 for each in done]
    if not all(each.sentence for each in done):
        return "an error that is nobody's sentence"
    if not any(good):
        return "neither made it"
    videos = [path for path in place.glob("*.mp4") if not path.name.endswith(".partial.mp4")]
    if len([*place.rglob("*.partial*")]) + len([*place.rglob(".lock")]):
        return "something is left behind"
    if mode == "default":
        return "" if len(videos) == sum(good) else f"{len(videos)} videos of {sum(good)}"
    if mode == "other" and all(good):
        return "both are said to be made"
    makers = [two if mode in ("other", "overwrite") and index else one for index in range(2)]
    fits = [maker for maker, fine in zip(makers, good, strict=True) if fine and (place / "a.mp4").read_bytes() == maker.video]
    if not fits:
        return "the video is that of neither"
    return "" if latents(place / "a.run") == fits[0].latents else "the latents are another video's"
