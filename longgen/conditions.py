"""What a video starts from beside its prompt: a first and a last picture, or an earlier video that it goes on from.

They are known by the SHA-256 of their files, which decides whether two runs are the same. A run keeps copies in its folder
(`keep`), so that it can be resumed when the files have moved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longgen import past, pictures
from longgen.errors import LonggenError, UsageError, conflict
from longgen.naming import INPUTS
from longgen.past import Past
from longgen.pictures import FITS, Fit, Picture


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
        """What becomes of the pictures in a video of `size` (width, height)."""
        return [note for option, picture in self.pictures.items() for note in picture_notes(picture, option, size, self.fit)]

    def keep(self, folder: Path) -> None:
        """Copies everything to INPUTS in the run's `folder`, files under their hashes. Raises LonggenError."""
        for picture in self.pictures.values():
            pictures.keep(picture, folder / INPUTS)
        if self.past is not None:
            past.keep(self.past, folder / INPUTS)


def picture_notes(picture: Picture, what: str, size: tuple[int, int], fit: Fit) -> list[str]:
    """How `picture`, which `what` names, is read and brought to `size`."""
    fitted = pictures.fit_note(picture.size, size, fit)
    return [f"{what} {picture.name} {note}" for note in (*picture.notes, *filter(None, [fitted]))]


def options(settings: Mapping[str, Any], run: Path) -> list[tuple[str, Any]]:
    """The options and values that say again what stored `settings` start from: the copies in the folder of the `run` where they
    are, and else the names that the files had.
    """
    stored, files, names = stored_parts(settings)
    words = [(name, next(iter(copies(key, run)), Path(str(names.get(key, "FILE"))))) for name, key in files.items()]
    return [*words, *((name, stored[name]) for name in ("fit", "join") if name in stored)]


def copies(sha256: str, run: Path) -> list[Path]:
    """The files in the folder of the `run` that bear this hash."""
    return sorted((run / INPUTS).glob(f"{sha256}.*")) if re.fullmatch("[0-9a-f]{64}", sha256) else []


def label(settings: Mapping[str, Any]) -> str:
    """What stored `settings` start from, in a few words."""
    stored, files, names = stored_parts(settings)
    words = [f"{name.replace('_', ' ')} {names.get(key, '')} {key[:12]}" for name, key in files.items()]
    return ", ".join([*words, f"fit {stored.get('fit')}"]) if words else "text alone"


def stored_parts(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Of stored settings, which anybody may have written: the conditions, the hashes of their files, and names by hash."""
    stored, names = settings.get("conditions"), settings.get("inputs")
    stored, names = stored if isinstance(stored, dict) else {}, names if isinstance(names, dict) else {}
    return stored, {name: str(stored[name]) for name in ("image", "last_image", "continue") if name in stored}, names


def restore(stored: Any, folder: Path, names: Mapping[str, str]) -> Conditions:
    """The conditions that `as_dict` stored, with the copies in the run's `folder`, whether these are still there or not.

    names: of the files that the user gave, by their hashes. Raises LonggenError for damaged ones, and MissingError where what an
    earlier video left is gone, without which there is no plan.
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
    earlier = None
    if stored.get("continue") is not None:
        earlier = replace(past.restored(folder / INPUTS, stored["continue"]), named=names.get(stored["continue"]))
    return Conditions(image, last_image, earlier, stored["fit"], stored.get("join") is True)


NOTHING = Conditions()
