"""How to look at a file of this machine from where the user sits: a command to type."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path


def command(path: Path, environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> str | None:
    """A command that shows `path`, or over SSH one that copies it to the machine in front of the user; None without a display.

    environment: SSH_CONNECTION names the address by which the user reached this machine, DISPLAY or WAYLAND_DISPLAY a display.
    """
    connection = environment.get("SSH_CONNECTION", "").split()
    if len(connection) == 4:
        host = f"[{connection[2]}]" if ":" in connection[2] else connection[2]
        port = "" if connection[3] == "22" else f"-P {connection[3]} "
        folder = "-r " if path.is_dir() else ""
        return f"scp {folder}{port}{shlex.quote(f'{_user()}@{host}:{path.absolute()}')} ."
    if platform == "win32":
        return f'start "" "{path}"'
    if platform == "darwin":
        return f"open {_quoted(path)}"
    if environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"):
        return f"xdg-open {_quoted(path)}"
    return None


def _quoted(path: Path) -> str:
    """`path` as a shell's argument that is no option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # an id without a name, as in a container
        return str(os.getuid())
