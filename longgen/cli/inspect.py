"""longgen inspect: the settings stored in a video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from longgen.cli import messages
from longgen.cli.app import answer, app
from longgen.cli.options import AllowCode, Json
from longgen.errors import UsageError, conflict
from longgen.terminal import hanging


@app.command()
def inspect(
    video: Annotated[Path, typer.Argument(help="A video that longgen wrote: .mp4, .webm or .gif.")],
    toml: Annotated[bool, typer.Option("--toml", help="Print a preset that reproduces it, with the command to use it.")] = False,
    shots: Annotated[bool, typer.Option("--shots", help="Print its schedule, in the format of generate --schedule.")] = False,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Print the settings stored in a video."""
    from longgen import describe, resolve
    from longgen.video import read_settings
    from longgen.video_info import sound_of

    stored = read_settings(video)
    if toml and shots:
        raise conflict("--toml", "--shots", "each prints a file")
    if shots:
        stored_shots = resolve.stored_schedule(stored, video)
        if stored_shots is None:
            raise UsageError(f"{video} was made with a single prompt, without a schedule", expected="a video made with --schedule",
                             hint="leave --shots out")  # fmt: skip
        return answer(stored_shots.as_toml().rstrip(), stored_shots.as_dict() | {"name": video.stem}, as_json)
    if toml:
        preset = resolve.stored_preset(stored, video, allow_code)
        return answer(f"# {describe.command_again(stored, video)}\n{preset.as_toml().rstrip()}", preset.as_dict(), as_json)
    sound = sound_of(video)
    shown = stored | ({} if sound is None else {"sound": sound})
    rows = []
    for key, value in shown.items():
        plain = isinstance(value, int) or (isinstance(value, str) and value.isprintable())
        rows.append(hanging(f"{key:<12}", str(value) if plain else json.dumps(value), messages.stdout_columns()))
    answer("\n".join(rows), {"name": video.stem} | shown, as_json)
