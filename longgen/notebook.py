"""How results show themselves in a notebook: small tables, pictures and videos inside the cell's output; all values are escaped."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from longgen import html
from longgen.textfile import visible

EMBED_BYTES = 16_000_000  # of a video or a picture, which the notebook's file then holds; a larger one is linked
TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif", ".png": "image/png"}


def video(path: Path, prompt: str, caption: str, notes: Iterable[str] = ()) -> str:
    """The video at `path`, with its prompt above it and `caption` and `notes` below."""
    return shown(prompt, caption=caption, files=[path], notes=notes)


def shown(
    title: str,
    caption: str = "",
    facts: Iterable[tuple[str, str]] = (),
    heads: Sequence[str] = (),
    rows: Iterable[Sequence[str]] = (),
    files: Iterable[Path] = (),
    links: Iterable[Path] = (),
    notes: Iterable[str] = (),
    text: str = "",
) -> str:
    """HTML of one result. facts: labels and values. heads, rows: a table. files: pictures and videos, shown. links: files, named.
    text: for the end, in letters of one width.
    """
    return html.render(
        Path(__file__).with_name("notebook.html.j2"), title=visible(title), caption=caption, facts=[*facts], heads=heads,
        rows=[*rows], media=[_media(path) for path in files], links=[(_address(path), str(path)) for path in links],
        notes=[*notes], text=visible(text),
    )  # fmt: skip


def _media(path: Path) -> dict[str, str]:
    """The file as a data URI where it is small, else its address; its kind is `gone` where it is not there any more."""
    kind = TYPES.get(path.suffix.lower(), "").partition("/")[0]
    media = {"kind": kind or "file", "name": str(path), "address": _address(path)}
    try:
        if kind and path.stat().st_size <= EMBED_BYTES:
            media["address"] = f"data:{TYPES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        elif not path.is_file():
            media["kind"] = "gone"
        else:
            media["kind"] = "file"
    except OSError:
        media["kind"] = "gone"
    return media


def _address(path: Path) -> str:
    """The address of a file for a page in the current folder, where notebooks are served from."""
    relative = os.path.relpath(path)
    return path.absolute().as_uri() if relative.startswith("..") else quote(relative.replace(os.sep, "/"))
