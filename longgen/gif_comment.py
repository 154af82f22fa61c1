"""The comment of a GIF, which ffmpeg neither writes nor reads: longgen's settings, as in the metadata of other videos.

A comment extension (GIF89a, 24) is 21 FE, blocks of a length and up to 255 bytes, and 00. It stands behind the global colour table.
"""

from __future__ import annotations

import shutil
from pathlib import Path

BLOCK = 255  # bytes
HEAD = 13  # bytes of the signature and of the logical screen descriptor, whose tenth byte tells the colour table's size
INTRODUCER = b"\x21\xfe"


def add(source: Path, target: Path, comment: bytes) -> None:
    """Copies the GIF `source` to `target` with `comment` in it. Raises OSError."""
    blocks = [comment[start : start + BLOCK] for start in range(0, len(comment), BLOCK)]
    extension = INTRODUCER + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    with source.open("rb") as file, target.open("wb") as copy:
        head = file.read(HEAD)
        copy.write(head + file.read(_table_bytes(head)) + extension)
        shutil.copyfileobj(file, copy)


def read(path: Path) -> bytes | None:
    """The comment that `add` wrote; None of a file that is no GIF, empty where it has none there. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        if len(head) < HEAD or head[:6] not in (b"GIF87a", b"GIF89a"):
            return None
        file.seek(_table_bytes(head), 1)
        if file.read(len(INTRODUCER)) != INTRODUCER:
            return b""
        comment = b""
        while (length := file.read(1)) not in (b"", b"\0"):
            comment += file.read(length[0])
        return comment


def _table_bytes(head: bytes) -> int:
    """Bytes of the global colour table."""
    return 3 * 2 ** ((head[10] & 7) + 1) if head[10] & 0x80 else 0
