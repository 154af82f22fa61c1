"""longgen inspect: the settings stored in a video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from longgen.cli.options import Json
from longgen.cli.root import answer, app, reports_errors


@app.command()
@reports_errors
def inspect(
    video: Annotated[Path, typer.Argument(help="An MP4 that longgen wrote.")],
    toml: Annotated[bool, typer.Option("--toml", help="Print a preset that makes it again.")] = False,
    as_json: Json = False,
) -> None:
    """Print the settings stored in a video."""
    from longgen import run
    from longgen.video import read_settings

    kept = read_settings(video)
    if toml:
        made = run.plan_of(kept, video).preset
        call = f"longgen generate --prompt {json.dumps(kept['prompt'])} --backbone {kept['backbone']} --seed {kept['seed']}"
        return answer(f"# {call} --dtype {kept['dtype']} --preset THIS.toml\n{made.as_toml()}", made.as_dict(), as_json)
    rows = [f"{key:<12}{value if isinstance(value, str | int) else json.dumps(value)}" for key, value in kept.items()]
    answer("\n".join(rows), {"name": video.stem} | kept, as_json)
