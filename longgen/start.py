"""What a video starts from, read from the files that a user names: `longgen generate --image`, `longgen.generate(image=)`."""

from __future__ import annotations

import os
from pathlib import Path

from longgen import naming, past, pictures, rundir
from longgen.conditions import NOTHING, Conditions, restore
from longgen.errors import LonggenError, UsageError, shown
from longgen.past import Past
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
    conditions = Conditions(first, last, None if continue_from is None else _past(Path(continue_from), stored), join=join, fit=fit)
    conditions.check()
    return conditions


def _picture(path: Path, option: str, stored: Conditions) -> Picture:
    """The picture at `path`; where there is none, that of its name in a run that goes on. A copy has the name of its original."""
    same = (picture for picture in stored.pictures.values() if picture.name == path.name and picture.path.is_file())
    if not os.path.lexists(path) and (kept := next(same, None)):
        return kept
    picture = pictures.read(path, option)
    if path.stem != picture.sha256:
        return picture
    own = _stored(naming.output_of(path.absolute().parent.parent)).pictures.values()
    return next((kept for kept in own if kept.sha256 == picture.sha256), picture)


def _past(path: Path, stored: Conditions) -> Past:
    """The earlier video at `path`; where there is nothing, that of the same name in a run that goes on."""
    kept = stored.past
    gone = kept is not None and Path(kept.name).stem == path.stem and not os.path.lexists(path)
    return kept if gone and kept is not None else past.read(path)


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
        raise UsageError("--fit has no effect without a picture or an earlier video", hint="add one, or leave --fit out",
                         expected="--image FILE or --continue VIDEO with it")  # fmt: skip
