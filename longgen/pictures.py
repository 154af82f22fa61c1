"""Picture files that a video starts from: checked and hashed when they are named, then upright, in 8-bit RGB, at a given size.

Legend: h rows, w columns, in pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from longgen.errors import LonggenError, MissingError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "pad"]
FITS: tuple[Fit, ...] = get_args(Fit)
FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True)
class Picture:
    """A picture file. path: where it is now. sha256: of the file's bytes. size: (width, height), upright. notes: how it is read."""

    path: Path
    sha256: str
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


def read(path: Path, what: str = "--image") -> Picture:
    """The picture at `path`, which the option `what` names. Raises MissingError, UsageError, LonggenError."""
    from PIL import Image, UnidentifiedImageError

    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(path, formats=FORMATS) as image:
            size = image.size
    except FileNotFoundError:
        raise MissingError(f"{what} {path}: no such file", expected="a PNG, JPEG or WebP file", hint="check the path") from None
    except UnidentifiedImageError:
        raise UsageError(f"{what} {path} is no picture", expected="a PNG, JPEG or WebP file", hint="convert it") from None
    except OSError as error:
        raise LonggenError(f"{what} {path} cannot be read: {error}", expected="a whole picture", hint="save it again") from None
    return Picture(path, sha256, size)


def fitted(picture: Picture, size: tuple[int, int], fit: Fit) -> Image:
    """`picture` as an RGB image of `size` (width, height): never stretched, but cropped at its edges, or padded with black."""
    from PIL import Image, ImageOps

    with Image.open(picture.path, formats=FORMATS) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    return ImageOps.fit(upright, size) if fit == "crop" else ImageOps.pad(upright, size)
