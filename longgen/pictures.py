"""Picture files that a video starts from: checked whole when they are named, then upright, in 8-bit sRGB, at a given size.

What is read, and what becomes of it; a note says so wherever it is not plain 8-bit RGB:

    formats       PNG, JPEG, WebP: their decoders alone run, chosen by the first bytes of the file and not by its name
    orientation   as EXIF says, so that the picture is upright
    16 bits       scaled to 8, rounded where it is grey; of colours Pillow's decoder keeps the upper byte
    transparency  shown on BACKGROUND
    colours       an ICC profile is converted to sRGB; without one numbers are taken for sRGB, and CMYK is converted plainly
    animation     its first frame

Legend: h rows, w columns, in pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from longgen import disk
from longgen.errors import LonggenError, MissingError, UsageError, shown
from longgen.textfile import on_one_line, visible

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "pad"]
FITS: tuple[Fit, ...] = get_args(Fit)
ACCEPTED = "a PNG, JPEG or WebP file"
MOST_PIXELS = 80_000_000  # 240 MB in RGB; Pillow itself warns of 89 million
MOST_BYTES = 400_000_000  # of a file
BACKGROUND, BARS = (255, 255, 255), (0, 0, 0)  # where a picture is transparent; beside one that is padded
NAMED = {(255, 255, 255): "white", (0, 0, 0): "black"}
SIGNATURES = {  # (at byte, bytes) -> format; those that are read, and what people take for a picture that is
    (0, b"\x89PNG\r\n\x1a\n"): "PNG", (0, b"\xff\xd8\xff"): "JPEG", (8, b"WEBP"): "WebP",
    (0, b"GIF8"): "a GIF", (0, b"BM"): "a BMP", (0, b"II*\0"): "a TIFF", (0, b"MM\0*"): "a TIFF", (0, b"%PDF"): "a PDF",
    (0, b"8BPS"): "a Photoshop file", (4, b"ftypavif"): "an AVIF", (4, b"ftyphei"): "an HEIC", (4, b"ftypmif1"): "an HEIC",
    (0, b"\xff\x0a"): "a JPEG XL", (4, b"JXL "): "a JPEG XL", (4, b"jP  "): "a JPEG 2000", (4, b"ftyp"): "a video",
    (0, b"\x1aE\xdf\xa3"): "a video", (8, b"AVI "): "a video", (0, b"<svg"): "an SVG", (0, b"<?xml"): "an SVG or another XML file",
}  # fmt: skip
UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
           8: "ROTATE_90"}  # fmt: skip  # EXIF orientation -> what undoes it
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".picture")  # of copies
ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/|data:")  # a Path has one slash; C:/ is a drive
ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class Picture:
    """A picture file. path: where it is now. sha256: of the file's bytes. size: (width, height), upright; (0, 0) where the file
    is gone. notes: how it is read, phrased to follow its name. named: what its user called it, where that is not `path`.
    """

    path: Path
    sha256: str
    size: tuple[int, int]
    notes: tuple[str, ...] = ()
    named: str | None = None

    @property
    def name(self) -> str:
        """The name of the file that the user gave, without its folder."""
        return self.named or self.path.name


def read(path: Path, what: str = "--image") -> Picture:
    """The picture at `path`, which the option `what` names; it is decoded once, so that a damaged one is known before any work.

    Raises MissingError, UsageError for what is no picture or too large, LonggenError for a damaged or unreadable one.
    """
    name = _shown(path, what)
    data = _bytes(path, name)
    image, notes = _upright(data, name)
    return Picture(path, hashlib.sha256(data).hexdigest(), image.size, tuple(notes))


def fitted(picture: Picture, size: tuple[int, int], fit: Fit, before: Callable[[Image], Image] | None = None) -> Image:
    """`picture` as an RGB image of `size` (width, height): never stretched, but cropped at its edges, or padded with BARS.

    Resampled by Lanczos' filter, as diffusers' image processor does. before: done to the picture at its own size. Raises
    LonggenError where the file is not as it was.
    """
    image, _ = _upright(_unchanged(picture), _shown(picture.path, "the picture"))
    return fitted_image(image if before is None else before(image), size, fit)


def fitted_image(image: Image, size: tuple[int, int], fit: Fit) -> Image:
    """What `fitted` does, to an RGB image; a frame of a video, for example."""
    from PIL import Image, ImageOps

    if image.size == size:
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    inner = _inner_size(image.size, size)
    canvas = Image.new("RGB", size, BARS)
    canvas.paste(image.resize(inner, Image.Resampling.LANCZOS), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return canvas


def _inner_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The size of a picture of `size` that is padded to `target`."""
    scale = min(target[0] / size[0], target[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def fit_note(size: tuple[int, int], target: tuple[int, int], fit: Fit) -> str | None:
    """What `fitted` does to a picture, or to a frame, of `size` (width, height), phrased to follow its name.

    None where it does nothing, or the size is unknown.
    """
    (width, height), (w, h) = size, target
    if size == target or 0 in size:
        return None
    across, down = w / width, h / height
    scale = max(across, down) if fit == "crop" else min(across, down)
    done = [f"enlarged {scale:.3g} times"] * (scale > 1) + [f"reduced to {100 * scale:.3g}%"] * (scale < 1)
    cut, inner = 1 - min(across, down) / scale, _inner_size(size, target)
    if fit == "pad":
        done += [f"{w - inner[0]} columns of {NAMED[BARS]} added"] * (inner[0] < w)
        done += [f"{h - inner[1]} rows of {NAMED[BARS]} added"] * (inner[1] < h)
    elif cut > 0.0005 or not done:
        done += [f"{100 * cut:.3g}% cut off at {'left and right' if across < down else 'top and bottom'}"]
    return f"is {width}x{height}: {', '.join(done)} to be {w}x{h}" + " (--fit pad keeps all of it)" * (cut > 0.0005)


# Copies that a run keeps


def keep(picture: Picture, folder: Path) -> None:
    """Copies `picture` to `folder` under its hash, atomically, unless it is there. Raises LonggenError where it has changed."""
    copy = folder / f"{picture.sha256}{_suffix(picture.path)}"
    if not copy.is_file() or hashlib.sha256(copy.read_bytes()).hexdigest() != picture.sha256:
        data = _unchanged(picture)
        disk.make_folder(folder)
        disk.replace_file(copy, lambda partial: _write(partial, data))


def kept(sha256: str, folder: Path, named: str | None) -> Picture:
    """The picture that `keep` copied to `folder`; of size (0, 0), at the place where it would be, if it is not there.

    Raises LonggenError where it is damaged, or where `sha256` is no hash.
    """
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):  # anybody may have written it
        raise LonggenError(f"{shown(sha256)} is no hash of a picture", expected="settings as longgen stores them",
                           hint="start again")  # fmt: skip
    copy = next((path for suffix in SUFFIXES if (path := folder / f"{sha256}{suffix}").is_file()), None)
    if copy is None:
        return Picture(folder / f"{sha256}{SUFFIXES[0]}", sha256, (0, 0), (), named)
    picture = read(copy, "the kept picture")
    if picture.sha256 != sha256:
        raise disk.damaged(copy, "it is not the picture whose hash is its name")
    return Picture(copy, sha256, picture.size, picture.notes, named)


def thumbnail(picture: Picture, most: int) -> bytes:
    """`picture` as a PNG of at most `most` pixels a side. Raises LonggenError where the file is not as it was."""
    image, _ = _upright(_unchanged(picture), _shown(picture.path, "the picture"))
    image.thumbnail((most, most))
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def _suffix(path: Path) -> str:
    """That of a copy, by which viewers know it."""
    return path.suffix.lower() if path.suffix.lower() in SUFFIXES else ".picture"


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _unchanged(picture: Picture) -> bytes:
    """The bytes of the file. Raises LonggenError where they are not those that were read first."""
    name = _shown(picture.path, "the picture")
    data = _bytes(picture.path, name)
    if hashlib.sha256(data).hexdigest() != picture.sha256:
        raise LonggenError(f"{name} has changed since it was read", expected="the file that the plan was made with",
                           hint="repeat the command")  # fmt: skip
    return data


# Files


def _shown(path: Path, what: str) -> str:
    """`what` and the path, on one line."""
    text = visible(os.fspath(path)).replace("\n", r"\n").replace("\t", r"\t")
    return f"{what} {disk.shortened(text)}"


def _bytes(path: Path, name: str) -> bytes:
    """The bytes of the file `path`, of ordinary files only: nothing waits for a pipe. Messages call it `name`."""
    try:
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode) or not stat.S_ISREG(facts.st_mode):
            kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe or a device"
            raise UsageError(f"{name} is {kind}", expected=ACCEPTED, hint="name a file")
        if facts.st_size > MOST_BYTES:
            raise UsageError(f"{name} has {facts.st_size // 10**6} MB", expected=f"{ACCEPTED} of at most {MOST_BYTES // 10**6} MB",
                             hint="save it smaller")  # fmt: skip
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if ADDRESS.match(os.fspath(path)):
            raise UsageError(f"{name} is an address, and longgen reads files", ACCEPTED, "download it first") from None
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise LonggenError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}", expected="a readable file",
                               hint="check its name and its permissions") from None  # fmt: skip
        raise MissingError(f"{name} is not there", expected=ACCEPTED, hint="check the path") from None


def _format(data: bytes, name: str) -> str:
    """PNG, JPEG or WebP. Raises UsageError for anything else."""
    if not data:
        raise UsageError(f"{name} is empty", expected=ACCEPTED, hint="check the path")
    head = data[:64]
    found = next((kind for (at, mark), kind in SIGNATURES.items() if head[at:].startswith(mark)), "no picture")
    if found not in ("PNG", "JPEG", "WebP"):
        hint = "--continue goes on from a video" if found == "a video" else "convert it" if found != "no picture" else "check it"
        raise UsageError(f"{name} is {found}", expected=ACCEPTED, hint=hint)
    return found


# Decoding


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Pillow's decoders raise anything where a file is damaged, and warn on stderr: one error, no warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (LonggenError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise LonggenError(f"{name} is damaged: {reason}", expected="a whole picture",
                           hint="save or download it again") from None  # fmt: skip


def _opened(data: bytes, kind: str) -> Image:
    """The picture by the decoder of its format alone, at its first frame, not decoded yet."""
    if kind == "PNG":
        from PIL.PngImagePlugin import PngImageFile

        return PngImageFile(io.BytesIO(data))
    if kind == "JPEG":
        from PIL.JpegImagePlugin import JpegImageFile

        return JpegImageFile(io.BytesIO(data))
    from PIL.WebPImagePlugin import WebPImageFile

    return WebPImageFile(io.BytesIO(data))


def _upright(data: bytes, name: str) -> tuple[Image, list[str]]:
    """The picture in 8-bit sRGB, upright, without transparency; and notes on what was done, phrased to follow its name."""
    from PIL import Image

    kind, notes = _format(data, name), list[str]()
    with _decoding(name):
        image = _opened(data, kind)
        width, height = image.size
    if width * height > MOST_PIXELS:
        raise UsageError(f"{name} is {width}x{height}, {width * height / 1e6:.0f} million pixels",
                         expected=f"at most {MOST_PIXELS // 10**6} million pixels", hint="save it smaller")  # fmt: skip
    with _decoding(name):
        image.load()
        if getattr(image, "n_frames", 1) > 1:
            notes.append(f"is an animation of {image.n_frames} frames: the first is used")  # type: ignore[attr-defined]
        orientation = _orientation(image, notes)
        image, alpha = _eight_bits(image, kind == "PNG" and data[24] == 16, notes)
        image = _in_srgb(image, notes)
        if alpha is not None and (clear := sum(alpha.histogram()[:255])):
            share = 100 * clear / (width * height)
            notes.append(f"is transparent in {share:.3g}% of its pixels: shown on {NAMED[BACKGROUND]}")
            image = Image.composite(image, Image.new("RGB", image.size, BACKGROUND), alpha)
        if orientation in UPRIGHT:
            notes.append("is turned upright, as its EXIF orientation says")
            image = image.transpose(Image.Transpose[UPRIGHT[orientation]])
    return image, notes


def _orientation(image: Image, notes: list[str]) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF is written by many programs, some of them wrong
        notes.append("has EXIF that cannot be read: it is taken as it lies")
        return 1


def _eight_bits(image: Image, sixteen: bool, notes: list[str]) -> tuple[Image, Image | None]:
    """The colours in mode L, RGB or CMYK, and the alpha channel, if there is one. sixteen: whether the file has 16-bit channels.

    Pillow's own `convert` would clip 16-bit grey at 255; here 0 to 65535 become 0 to 255.
    """
    import numpy as np
    from PIL import Image

    if sixteen:
        notes.append("has 16 bits a channel: scaled to 8")
    if image.mode.startswith(("I", "F")):  # 16-bit grey: I;16, or I of older versions
        grey = np.asarray(image).astype(np.uint32)
        clear = image.info.get("transparency")
        alpha = None if clear is None else Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8))
        return Image.fromarray(((grey + 128) // 257).clip(0, 255).astype(np.uint8)), alpha
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        both = image.convert("RGBA")
        return both.convert("RGB"), both.getchannel("A")
    return (image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")), None


def _in_srgb(image: Image, notes: list[str]) -> Image:
    """`image` in mode RGB, by its ICC profile where it has one for its mode."""
    profile_bytes, plain = image.info.get("icc_profile"), image.convert("RGB")
    if image.mode == "CMYK" and not profile_bytes:
        notes.append("is CMYK without a colour profile: its colours are approximate")
    if not profile_bytes:
        return plain
    from PIL import ImageCms

    try:
        profile: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        described = on_one_line(ImageCms.getProfileDescription(profile), 60)
        if "srgb" in described.lower():
            return plain
        space = profile.profile.xcolor_space.strip()
        source = image if {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}[image.mode] == space else plain if space == "RGB" else None
        if source is None:
            raise ValueError(f"it is for {space}")
        converted = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception as error:  # a profile is a program of its own; or Pillow lacks LittleCMS
        reason = on_one_line(str(error), 100)
        notes.append(f"has a colour profile that cannot be applied ({reason}): its numbers are taken for sRGB")
        return plain
    notes.append(f"is converted from the colours of {described} to sRGB")
    return converted or plain
