"""Files of a run are damaged, swapped, edited or taken away; then the run goes on, or its latents are decoded."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from longgen import checkpoint
from longgen.errors import LonggenError
from tests.harness.stops import die_at
from tests.harness.trial import KINDS, Reference, content, fresh, longgen, reference

Damage = Callable[[Path, random.Random, Path], None]


def flip(path: Path, chance: random.Random, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def flip_in_head(path: Path, chance: random.Random, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(min(len(data), 3000))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def blank(path: Path, chance: random.Random, other: Path) -> None:
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    data[at : at + 512] = bytes(len(data[at : at + 512]))
    path.write_bytes(data)


def gone(path: Path, chance: random.Random, other: Path) -> None:
    path.unlink()


def swap(path: Path, chance: random.Random, other: Path) -> None:
    """With a file of the same run."""
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def edit(path: Path, chance: random.Random, other: Path) -> None:
    """A value in JSON is another, written by hand."""
    if path.suffix != ".json":
        return flip(path, chance, other)
    record = json.loads(path.read_text())
    values = {"status": chance.choice(["done", "running"]), "seed": 9, "prompt": "x", "video": "0", "frames": 9}
    key, value = chance.choice([*values.items()])
    (record["settings"] if key in ("seed", "prompt") else record)[key] = value
    path.write_text(json.dumps(record))


def rewritten(change: Callable[[dict[str, torch.Tensor], dict[str, object]], None]) -> Damage:
    """Written by longgen itself with something in it that cannot be, and a checksum that fits."""

    def damage(path: Path, chance: random.Random, other: Path) -> None:
        if path.suffix != ".safetensors":
            return flip(path, chance, other)
        tensors, settings = checkpoint.load_tensors(path)
        change(tensors, settings)
        checkpoint.save_tensors(path, tensors, settings)

    return damage


def _fewer(tensors: dict[str, torch.Tensor], settings: dict[str, object]) -> None:
    tensors["latents"] = tensors["latents"][:, :, :-1]


def _nan(tensors: dict[str, torch.Tensor], settings: dict[str, object]) -> None:
    tensors["latents"].view(-1)[5] = float("nan")


def _beyond(tensors: dict[str, torch.Tensor], settings: dict[str, object]) -> None:
    settings["done" if "done" in settings else "chunk"] += 99  # type: ignore[operator]


DAMAGE: dict[str, Damage] = {
    "flip": flip, "flip in head": flip_in_head, "cut": cut, "blank": blank, "gone": gone, "swap": swap, "edit": edit,
    "fewer frames": rewritten(_fewer), "nan": rewritten(_nan), "done = 99": rewritten(_beyond),
}  # fmt: skip


STATES = [(kind, at) for kind in KINDS for at in ("finished", "not decoded", 34, 45, 60, 75)]


@cache
def left(kind: str, at: str | int, folder: Path) -> dict[str, bytes]:
    """The files of a run that was left at a point, an operation where it is a number."""
    whole = reference(kind, 1, folder.parent)
    if at == "finished":
        return whole.files
    if isinstance(at, str):
        return {name: data for name, data in whole.files.items() if name != "a.mp4"}
    place = fresh(folder, 95_000 + 100 * [*KINDS].index(kind) + at)
    longgen(place, [*whole.arguments, "-o", "a.mp4"], lambda: die_at(place, at))
    return {name: data for name, data in content(place).items() if "partial" not in name and ".lock" not in name}


def run(trials: int, seed: int, folder: Path) -> dict[str, int]:
    chance = random.Random(seed)
    counts = {"trials": 0, "wrong": 0, "refused": 0, "harmless": 0}
    for number in range(trials):
        place, state, kind = fresh(folder, number), chance.choice(STATES), chance.choice([*DAMAGE])
        whole, files = reference(state[0], 1, folder.parent), left(*state, folder)
        for name, data in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        names = sorted(files)
        hit, other = (place / chance.choice(names) for _ in range(2))
        try:
            DAMAGE[kind](hit, chance, other)
        except (LonggenError, KeyError, OSError):
            flip(hit, chance, other)
        decoding = chance.random() < 0.3
        before = (place / "a.mp4").read_bytes() if (place / "a.mp4").exists() else None
        command = [*whole.arguments, "-o", "a.mp4", "--resume"]
        if decoding:
            command = ["decode", "a.run", "-o", "b.mp4", "--device", "cpu"]
        done = longgen(place, command)
        reason = "" if done.sentence else done.said
        if done.code == 0 and not reason:
            reason = right(place, whole, decoding, done.said, before == whole.video)
        if not reason and before is not None and (place / "a.mp4").read_bytes() not in (before, whole.video):
            reason = "the video was replaced by another"
        counts["trials"] += 1
        counts["wrong"] += bool(reason)
        counts["harmless" if done.code == 0 else "refused"] += 1
        if reason:
            print(f"corruptions: {kind} of {hit.relative_to(place)}, {state}, {' '.join(command[:1])}: {reason}", flush=True)
        else:
            shutil.rmtree(place)
    return counts


def right(place: Path, whole: Reference, decoding: bool, said: str, finished: bool) -> str:
    """What is wrong with a result that came with exit code 0. finished: the video was there, and nothing is to be read for it."""
    if finished and not decoding:
        return "" if (place / "a.mp4").read_bytes() == whole.video else "the video is another"
    if not decoding:
        return "" if whole.is_at(place) else "exit code 0 with another video or other latents"
    if (place / "b.mp4").read_bytes() == whole.video or "note: " in said:
        return ""
    return "exit code 0 with another video"
