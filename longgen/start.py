"""What a video starts from, read from the files that a user names: `longgen generate --image`, `longgen.generate(image=)`."""

from __future__ import annotations

import os
from pathlib import Path

from longgen import past, pictures, rundir
from longgen.conditions import NOTHING, Conditions, restore
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
    """The conditions in these files. resumed: the video of a run that goes on, whose copies stand in for files that are gone.

    Raises UsageError, MissingError and LonggenError as `longgen.pictures.read` does.
    """
    if fit not in FITS:
        raise UsageError(f"fit = {shown(fit)} is unknown", expected=" or ".join(FITS), hint="pass one of them")
    stored = NOTHING if resumed is None else _stored(resumed)
    first, last = (
        None if name is None else _picture(Path(name), option, stored)
        for name, option in ((image, "--image"), (last_image, "--last-image"))
    )
    earlier = None
    if continue_from is not None:
        gone = stored.past is not None and stored.past.name == Path(continue_from).name and not os.path.lexists(continue_from)
        earlier = stored.past if gone else past.read(Path(continue_from))
    conditions = Conditions(first, last, earlier, fit, join)
    conditions.check()
    return conditions


def _picture(path: Path, option: str, stored: Conditions) -> Picture:
    """The picture at `path`; where there is nothing, that of the same name in a run that goes on."""
    same = (picture for picture in stored.pictures.values() if picture.name == path.name and picture.path.is_file())
    kept = None if os.path.lexists(path) else next(same, None)
    return kept or pictures.read(path, option)


def _stored(output: Path) -> Conditions:
    """What the run of `output` started from; nothing where there is no such run, or a damaged one, which resuming it says."""
    try:
        settings = rundir.stored_record(output)["settings"]
        names = settings.get("inputs")
        return restore(settings.get("conditions"), rundir.run_folder(output), names if isinstance(names, dict) else {})
    except LonggenError:
        return NOTHING


def check_fit(given: bool, used: bool) -> None:
    """Raises UsageError where a fit was asked for, `given`, and there is nothing that it is used for."""
    if given and not used:
        raise UsageError("--fit has no effect without a picture", expected="--image FILE with it",
                         hint="add it, or leave --fit out")  # fmt: skip
