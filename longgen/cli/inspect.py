"""longgen inspect: the settings stored in a video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from longgen.cli.app import answer, app, reports_errors
from longgen.cli.options import Json
from longgen.errors import UsageError


@app.command()
@reports_errors
def inspect(
    video: Annotated[Path, typer.Argument(help="An MP4 that longgen wrote.")],
    toml: Annotated[bool, typer.Option("--toml", help="Print a preset that makes it again, with the command to use it.")] = False,
    schedule: Annotated[bool, typer.Option("--schedule", help="Print its schedule, as --schedule of generate reads it.")] = False,
    as_json: Json = False,
) -> None:
    """Print the settings stored in a video."""
    from longgen import describe, resolve
    from longgen.video import read_settings

    kept = read_settings(video)
    if toml and schedule:
        raise UsageError("--toml and --schedule are both given, and each is a file", expected="one of them", hint="leave one out")
    if schedule:
        shots = resolve.plan_of(kept, video).schedule
        if shots is None:
            raise UsageError(f"{video} was made with one prompt, and no schedule", expected="a video of --schedule",
                             hint="leave --schedule out")  # fmt: skip
        return answer(shots.as_toml().rstrip(), shots.as_dict() | {"name": video.stem}, as_json)
    if toml:
        made = resolve.plan_of(kept, video).preset
        return answer(f"# {describe.command_again(kept, video)}\n{made.as_toml().rstrip()}", made.as_dict(), as_json)
    rows = []
    for key, value in kept.items():
        plain = isinstance(value, int) or (isinstance(value, str) and value.isprintable())
        rows.append(f"{key:<12}{value if plain else json.dumps(value)}")
    answer("\n".join(rows), {"name": video.stem} | kept, as_json)
