"""longgen doctor: the findings of longgen.doctor, and exit code 1 where something is wrong."""

from __future__ import annotations

import typer

from longgen.cli.app import answer, app
from longgen.cli.options import Json


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, GPU, ffmpeg, disk, caches."""
    from longgen import doctor as checks

    findings = checks.examine()
    lines = [f"{'ok  ' if finding.ok else 'BAD '}{finding.name:<16}{finding.value}" for finding in findings]
    answer("\n".join(lines), [finding._asdict() for finding in findings], as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
