"""What a video starts from, read from the files that a user names: `longgen generate --image`, `longgen.generate(image=)`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path

from longgen import pictures, rundir
from longgen.conditions import INPUTS, Conditions, copies
from longgen.errors import LonggenError, UsageError, shown
from longgen.pictures import FITS, Fit, Picture

Name = str | os.PathLike[str]


def read(
    image: Name | None = None,
    last_image: Name | None = None,
    continue_from: Name | None = None,
    join: bool = False,
    fit: Fit = FITS[0],
    resumed: Path | None = None,
) -> Conditions:
    """The conditions in these files. resumed: the video of a run that goes on, whose copies stand in for pictures that are gone.

    Raises UsageError, MissingError and LonggenError as `longgen.pictures.read` does.
    """
    if fit not in FITS:
        raise UsageError(f"fit = {shown(fit)} is unknown", expected=" or ".join(FITS), hint="pass one of them")
    stand_ins = {} if resumed is None else _stand_ins(resumed)
    first, last = (
        None if name is None else _picture(Path(name), option, stand_ins)
        for name, option in ((image, "--image"), (last_image, "--last-image"))
    )
    past = None if continue_from is None else importlib.import_module("longgen.past").read(Path(continue_from))
    conditions = Conditions(first, last, past, fit, join)
    conditions.check()
    return conditions


def _picture(path: Path, option: str, stand_ins: Mapping[str, Picture]) -> Picture:
    if path.name in stand_ins and not os.path.lexists(path):
        return stand_ins[path.name]
    return pictures.read(path, option)


def _stand_ins(output: Path) -> dict[str, Picture]:
    """The pictures that the run of `output` keeps, by the names that their files had."""
    try:
        names = rundir.stored_record(output)["settings"].get("inputs", {})
    except LonggenError:  # there is no run, or a damaged one, which is said where it is resumed
        return {}
    folder = rundir.run_folder(output) / INPUTS
    return {name: pictures.kept(key, folder, name) for key, name in names.items() if copies(key, rundir.run_folder(output))}


def check_fit(given: bool, used: bool) -> None:
    """Raises UsageError where a fit was asked for, `given`, and there is nothing that it is used for."""
    if given and not used:
        raise UsageError("--fit has no effect without a picture", expected="--image FILE with it",
                         hint="add it, or leave --fit out")  # fmt: skip
