"""What a video starts from beside its prompt: a first and a last picture, or an earlier video that it goes on from.

They are known by the SHA-256 of their files, which decides whether two runs are the same. A run keeps copies in its folder
(`keep`), so that it can be resumed when the files have moved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longgen import pictures
from longgen.errors import LonggenError, UsageError, conflict
from longgen.pictures import FITS, Fit, Picture

INPUTS = "inputs"  # the folder of the copies, in that of the run


@dataclass(frozen=True)
class Past:
    """An earlier video that a new one goes on from.

    path: a video file, or a run folder of longgen. sha256: of the file, or of the run's latents. frames_px, fps, size: of that
    video. latents: how many latent frames the run folder holds, which are handed over as they are; None for a video file, whose
    last frames are encoded.
    """

    path: Path
    sha256: str
    frames_px: int
    fps: float
    size: tuple[int, int]
    latents: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conditions:
    """image, last_image: the first and the last frame. past: what the video goes on from. fit: how pictures come to the video's
    size. join: whether the file that is written holds `past` too.
    """

    image: Picture | None = None
    last_image: Picture | None = None
    past: Past | None = None
    fit: Fit = "crop"
    join: bool = False

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.image, self.last_image, self.past))

    def as_dict(self) -> dict[str, Any] | None:
        """What decides the video, as JSON: hashes and not names. None where there is nothing."""
        if not self and self.fit == FITS[0]:
            return None
        given = {"image": self.image, "last_image": self.last_image, "continue": self.past}
        hashes = {name: part.sha256 for name, part in given.items() if part is not None}
        return hashes | {"fit": self.fit} | ({"join": True} if self.join else {})

    @property
    def pictures(self) -> dict[str, Picture]:
        """The pictures by their options."""
        both = {"--image": self.image, "--last-image": self.last_image}
        return {option: picture for option, picture in both.items() if picture is not None}

    def check(self) -> None:
        """Raises UsageError where the parts contradict each other."""
        if self.last_image is not None and self.image is None:
            raise UsageError("--last-image is given without a first picture", expected="--image FILE with it",
                             hint="add --image, or leave --last-image out")  # fmt: skip
        if self.image is not None and self.past is not None:
            raise conflict("--image", "--continue", "the last frames of the earlier video are what it starts from")
        if self.join and self.past is None:
            raise UsageError("--join has no effect without --continue: there is no earlier video to join",
                             expected="--continue VIDEO with it", hint="add it, or leave --join out")  # fmt: skip

    def notes(self, size: tuple[int, int]) -> list[str]:
        """What becomes of the files in a video of `size` (width, height)."""
        notes = [note for option, picture in self.pictures.items() for note in picture_notes(picture, option, size, self.fit)]
        return notes if self.past is None else [*notes, *(f"--continue {self.past.path.name} {note}" for note in self.past.notes)]

    def keep(self, folder: Path) -> None:
        """Copies the pictures to INPUTS in the run's `folder`, each under its hash. Raises LonggenError."""
        for picture in self.pictures.values():
            pictures.keep(picture, folder / INPUTS)


def picture_notes(picture: Picture, what: str, size: tuple[int, int], fit: Fit) -> list[str]:
    """How `picture`, which `what` names, is read and brought to `size`."""
    fitted = pictures.fit_note(picture, size, fit)
    return [f"{what} {picture.name} {note}" for note in (*picture.notes, *filter(None, [fitted]))]


def options(settings: Mapping[str, Any], run: Path) -> list[tuple[str, Any]]:
    """The options and values that say again what stored `settings` start from: the copies in the folder of the `run` where they
    are, and else the names that the files had.
    """
    stored, names = (one if isinstance(one := settings.get(key), dict) else {} for key in ("conditions", "inputs"))
    files = {name: str(stored[name]) for name in ("image", "last_image", "continue") if name in stored}
    words = [(name, next(iter(copies(key, run)), Path(str(names.get(key, "FILE"))))) for name, key in files.items()]
    return [*words, *((name, stored[name]) for name in ("fit", "join") if name in stored)]


def copies(sha256: str, run: Path) -> list[Path]:
    """The files in the folder of the `run` that bear this hash."""
    return sorted((run / INPUTS).glob(f"{sha256}.*")) if re.fullmatch("[0-9a-f]{64}", sha256) else []


def label(settings: Mapping[str, Any]) -> str:
    """What stored `settings` start from, in a few words."""
    stored, names = (one if isinstance(one := settings.get(key), dict) else {} for key in ("conditions", "inputs"))
    files = {name: str(stored[name]) for name in ("image", "last_image", "continue") if name in stored}
    words = [f"{name.replace('_', ' ')} {names.get(key, '')} {key[:12]}" for name, key in files.items()]
    return ", ".join([*words, f"fit {stored.get('fit')}"]) if words else "text alone"


def restore(stored: Any, folder: Path, names: Mapping[str, str]) -> Conditions:
    """The conditions that `as_dict` stored, with the copies in the run's `folder`, whether these are still there or not.

    names: of the files that the user gave, by their hashes. Raises LonggenError for damaged ones.
    """
    if stored is None:
        return NOTHING
    known = {"image", "last_image", "continue", "fit", "join"}
    if not isinstance(stored, dict) or not known.issuperset(stored) or stored.get("fit") not in FITS:
        raise LonggenError("what the stored video started from cannot be read", expected="settings as longgen stores them",
                           hint="start again with --overwrite")  # fmt: skip
    image, last_image = (
        None if stored.get(name) is None else pictures.kept(stored[name], folder / INPUTS, names.get(stored[name]))
        for name in ("image", "last_image")
    )
    return Conditions(image, last_image, None, stored["fit"], stored.get("join") is True)


NOTHING = Conditions()
