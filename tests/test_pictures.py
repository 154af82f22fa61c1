"""Picture files: every kind that is read, what becomes of it, and what is refused with which words."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from longgen import pictures
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.pictures import BACKGROUND, FITS, fit_note, fitted, keep, kept, read, thumbnail

FORMATS = {".png": {}, ".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}
WIDTH, HEIGHT = 48, 32


def drawn(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A smooth picture whose four corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([255 * x // width, 255 * y // height, 128 + 0 * x], axis=2).astype(np.uint8))


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: Any) -> Path:
    path = folder / name
    image.save(path, **FORMATS.get(path.suffix, {}) | options)
    return path


def pixels(path: Path, size: tuple[int, int] | None = None, fit: pictures.Fit = "crop") -> np.ndarray:
    picture = read(path)
    return np.asarray(fitted(picture, size or picture.size, fit)).astype(int)


def refused(path: Path, kind: type[LonggenError] = LonggenError) -> str:
    """The message, whose three facts are there and on lines of their own."""
    with pytest.raises(kind) as refusal:
        read(path)
    assert type(refusal.value) is kind
    assert refusal.value.expected
    assert refusal.value.hint
    assert "\n" not in refusal.value.given
    return refusal.value.given


# ---- what is read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_plain_picture_comes_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, drawn(), f"a{suffix}")
    picture = read(path)
    assert (picture.size, picture.notes, picture.name) == ((WIDTH, HEIGHT), (), f"a{suffix}")
    difference = np.abs(pixels(path) - np.asarray(drawn()).astype(int))
    assert difference.max() <= (8 if suffix == ".jpg" else 0)


def test_the_format_is_that_of_the_bytes_and_not_of_the_name(tmp_path: Path) -> None:
    path = saved(tmp_path, drawn())
    path.rename(tmp_path / "a.txt")
    assert np.array_equal(pixels(tmp_path / "a.txt"), np.asarray(drawn()))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    """What a camera stores under each orientation, undone."""
    store = {  # the inverse of pictures.UPRIGHT, by hand
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }  # fmt: skip
    upright = np.asarray(drawn())
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(store[orientation](upright))), f"a{suffix}", exif=exif)
    picture = read(path)
    assert picture.size == (WIDTH, HEIGHT)
    assert np.abs(pixels(path) - upright.astype(int)).max() <= (10 if suffix == ".jpg" else 0)
    assert bool(picture.notes) == (orientation > 1)


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_broken_exif_does_not_matter(tmp_path: Path, exif: bytes) -> None:
    assert read(saved(tmp_path, drawn(), "a.jpg", exif=exif)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_transparency_is_shown_on_the_background_and_said(tmp_path: Path, suffix: str) -> None:
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[: HEIGHT // 2], alpha[HEIGHT // 2 : HEIGHT // 2 + 4] = 0, 128
    image = drawn()
    image.putalpha(Image.fromarray(alpha))
    path = saved(tmp_path, image, f"a{suffix}", **({"exact": True} if suffix == ".webp" else {}))
    expected = np.asarray(drawn()) * (alpha[:, :, None] / 255) + np.array(BACKGROUND) * (1 - alpha[:, :, None] / 255)
    assert np.abs(pixels(path) - expected).max() <= 1
    assert read(path).notes == ("is transparent in 62.5% of its pixels: shown on white",)


def test_an_alpha_channel_without_transparency_says_nothing(tmp_path: Path) -> None:
    image = drawn()
    image.putalpha(255)
    assert read(saved(tmp_path, image)).notes == ()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA"])
def test_modes(tmp_path: Path, mode: str) -> None:
    image = drawn().convert(mode) if mode != "PA" else drawn().convert("P").convert("PA")
    if mode == "PA":  # a PNG of a palette with transparency
        path = saved(tmp_path, drawn().quantize(16), transparency=3)
        assert read(path).notes[0].startswith("is transparent in ")
        return
    path = saved(tmp_path, image)
    assert np.array_equal(pixels(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "clear"), [("1", 255), ("L", 77), ("RGB", (0, 0, 128))])
def test_a_colour_that_counts_as_transparent(tmp_path: Path, mode: str, clear: Any) -> None:
    image = drawn().convert(mode)
    if mode == "L":
        image.putpixel((3, 3), 77)
    path = saved(tmp_path, image, transparency=clear)
    assert read(path).notes[-1].endswith("shown on white")
    y, x = np.argwhere((np.asarray(image.convert("L" if mode == "1" else mode)) == clear).reshape(HEIGHT, WIDTH, -1).all(axis=2))[0]
    assert tuple(pixels(path)[y, x]) == BACKGROUND


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, WIDTH * HEIGHT).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    path = saved(tmp_path, Image.fromarray(values))
    with Image.open(path) as stored:
        assert stored.mode.startswith("I")
    assert np.array_equal(pixels(path)[:, :, 0], np.round(values / 257).astype(int))
    assert read(path).notes == ("has 16 bits a channel: scaled to 8",)
    path = saved(tmp_path, Image.fromarray(values), transparency=int(values[0, 1]))
    assert tuple(pixels(path)[0, 1]) == BACKGROUND


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG file, written by hand."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colours(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 4 * 4 * 3).astype(">u2").reshape(4, 4, 3)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(png(4, 4, 16, 2, rows))
    assert np.abs(pixels(tmp_path / "a.png") - values.astype(float) / 257).max() <= 1
    assert read(tmp_path / "a.png").notes == ("has 16 bits a channel: scaled to 8",)


def test_cmyk(tmp_path: Path) -> None:
    path = saved(tmp_path, drawn().convert("CMYK"), "a.jpg")
    with Image.open(path) as stored:
        assert stored.mode == "CMYK"
    assert np.abs(pixels(path) - np.asarray(drawn()).astype(int)).max() < 20
    assert read(path).notes == ("is CMYK without a colour profile: its colours are approximate",)


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", ".jpg"), ("RGB", ".webp"), ("RGB", ".png"), ("P", ".png"), ("RGBA", ".png")])
def test_a_profile_is_applied(tmp_path: Path, mode: str, suffix: str) -> None:
    """A profile made of sRGB's, whose red and green are exchanged, so that its effect can be told."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = plain.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    path = saved(tmp_path, drawn().convert(mode), f"a{suffix}", icc_profile=swapped)
    expected = np.asarray(drawn().convert(mode).convert("RGB")).astype(int)[:, :, [1, 0, 2]]
    assert np.abs(pixels(path) - expected).mean() < 4
    assert read(path).notes[0].startswith("is converted from the colours of test")
    assert read(saved(tmp_path, drawn().convert(mode), f"b{suffix}", icc_profile=plain)).notes == ()


@pytest.mark.parametrize("profile", [b"no profile", b"\0" * 128])
def test_a_profile_that_cannot_be_applied_is_said(tmp_path: Path, profile: bytes) -> None:
    path = saved(tmp_path, drawn(), icc_profile=profile)
    assert np.array_equal(pixels(path), np.asarray(drawn()))
    assert "colour profile that cannot be applied" in read(path).notes[0]


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    others = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, drawn(), f"a{suffix}", save_all=True, append_images=others, duration=100)
    assert np.array_equal(pixels(path), np.asarray(drawn()))
    assert read(path).notes == ("is an animation of 3 frames: the first is used",)


def test_a_jpeg_of_several_pictures_is_its_first(tmp_path: Path) -> None:
    """As phones write them, with a depth map or a second exposure."""
    image = drawn()
    image.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))])
    assert read(tmp_path / "a.jpg").size == (WIDTH, HEIGHT)
    assert read(tmp_path / "a.jpg").notes == ()


# ---- what is refused -----------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.png", MissingError) == f"--image {tmp_path / 'a.png'} is not there"
    saved(tmp_path, drawn())
    assert refused(tmp_path / "a.png" / "b.png", MissingError).endswith("is not there")


@pytest.mark.parametrize("name", ["https://a.com/x.png", "http://a.com/x.png", "s3://bucket/x.png", "file:///x.png",
                                  "data:image/png;base64,AAAA"])  # fmt: skip
def test_an_address(name: str) -> None:
    assert refused(Path(name), UsageError).endswith("is an address, and longgen reads files")


@pytest.mark.parametrize(("content", "words"), [
    (b"", "is empty"), (b"hello", "is no picture"), (b"GIF89a" + b"\0" * 20, "is a GIF"), (b"BM" + b"\0" * 60, "is a BMP"),
    (b"\0\0\0\x20ftypisom" + b"\0" * 20, "is a video"), (b"\0\0\0\x20ftypheic" + b"\0" * 20, "is an HEIC"),
    (b"\0" * 99, "is no picture"),
    (b"\0\0\0\x20ftypavif" + b"\0" * 20, "is an AVIF"), (b"\x1aE\xdf\xa3" + b"\0" * 9, "is a video"), (b"<svg>", "is an SVG"),
    (b"RIFF\0\0\0\0WAVE", "is no picture"), (b"%PDF-1.7", "is a PDF"), (b"\x89PN", "is no picture"),
    (b"II*\0" + b"\0" * 9, "is a TIFF"),
])  # fmt: skip
def test_no_picture(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert refused(tmp_path / "a.png", UsageError) == f"--image {tmp_path / 'a.png'} {words}"


def test_other_formats_of_pillow_run_no_decoder(tmp_path: Path) -> None:
    for suffix in (".gif", ".bmp", ".tiff", ".ppm", ".ico", ".tga", ".pcx", ".eps", ".sgi", ".jp2", ".dds"):
        path = tmp_path / f"a{suffix}"
        drawn().save(path)
        assert " is " in refused(path, UsageError), suffix


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert refused(tmp_path / "pipe.png", UsageError).endswith("is a pipe or a device")
    assert refused(tmp_path, UsageError).endswith("is a folder")
    assert refused(Path(os.devnull), UsageError).endswith("is a pipe or a device")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = saved(tmp_path, drawn())
    path.chmod(0)
    assert "Permission denied" in refused(path)


@pytest.mark.parametrize(
    ("name", "shown"), [("a\nb.png", r"a\nb.png"), ("a\tb.png", r"a\tb.png"), ("a\x1b[31m.png", r"a\x1b[31m.png")]
)
def test_names_stay_on_one_line(tmp_path: Path, name: str, shown: str) -> None:
    assert refused(tmp_path / name, MissingError) == f"--image {tmp_path}/{shown} is not there"
    assert read(saved(tmp_path, drawn(), name)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000 + ".png"])
def test_names_that_the_system_refuses(tmp_path: Path, name: str) -> None:
    assert "cannot be read" in refused(tmp_path / name)


def test_a_huge_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    """Nothing is decoded, no warning is given, and the limit is stated."""
    (tmp_path / "a.png").write_bytes(png(20_000, 20_000, 8, 2, b"\0"))
    with pytest.raises(UsageError) as refusal:
        read(tmp_path / "a.png")
    assert refusal.value.given.endswith("a.png is 20000x20000, 400 million pixels")
    assert refusal.value.expected == "at most 80 million pixels"
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG")
    jpeg = buffer.getvalue().replace(struct.pack(">HH", 8, 8), struct.pack(">HH", 20_000, 20_000), 1)
    (tmp_path / "a.jpg").write_bytes(jpeg)
    assert "20000x20000" in refused(tmp_path / "a.jpg", UsageError)
    with (tmp_path / "b.png").open("wb") as file:
        file.truncate(pictures.MOST_BYTES + 1)
    assert "MB" in refused(tmp_path / "b.png", UsageError)


def test_the_largest_picture_leaks_no_warning_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # far above it, as for a picture of 200 million pixels
    path = saved(tmp_path, drawn())
    assert read(path).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), f"a{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert f"a{suffix} is damaged: " in refused(path)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*FORMATS]), st.data())
def test_damage_gives_a_picture_or_one_message(suffix: str, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    drawn(16, 12).save(buffer, {".jpg": "JPEG"}.get(suffix, suffix[1:].upper()))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image, notes = pictures._upright(bytes(content), "a")
    except LonggenError as error:
        given, expected = error.given, error.expected
    else:
        given, expected = "a picture", image.mode == "RGB" and all(isinstance(note, str) for note in notes)
    assert given.startswith("a ")
    assert expected


def test_reading_is_light(tmp_path: Path) -> None:
    path = saved(tmp_path, drawn())
    code = f"""
import sys
import longgen.pictures
from pathlib import Path
assert not {{"PIL", "numpy", "torch"}} & set(sys.modules)
longgen.pictures.read(Path({str(path)!r}))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


# ---- the size of the video -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(48, 32), (64, 64), (16, 64), (96, 64), (24, 16), (47, 31)])
def test_it_is_never_stretched(tmp_path: Path, fit: pictures.Fit, size: tuple[int, int]) -> None:
    """A circle stays one: as wide as it is high."""
    y, x = np.mgrid[0:320, 0:480]
    disc = ((x - 239.5) ** 2 + (y - 159.5) ** 2 < 90**2) * 255
    path = saved(tmp_path, Image.fromarray(disc.astype(np.uint8)))
    shown = pixels(path, size, fit)[:, :, 0]
    assert shown.shape == size[::-1]
    width, height = shown.sum(axis=1).max() / 255, shown.sum(axis=0).max() / 255
    if max(width, height) < min(size) - 1:
        assert abs(width - height) <= 1.5
    assert shown[size[1] // 2, size[0] // 2] > 200


def test_what_is_cropped_and_padded(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("RGB", (100, 50), "red"))
    padded = pixels(path, (64, 64), "pad")
    assert (padded[:15] == 0).all()
    assert (padded[17:47] == (255, 0, 0)).all()
    assert (padded[-15:] == 0).all()
    assert (pixels(path, (64, 64), "crop") == (255, 0, 0)).all()
    halves = Image.new("RGB", (100, 50), "red")
    halves.paste("blue", (50, 0, 100, 50))
    cropped = pixels(saved(tmp_path, halves), (50, 50), "crop")
    assert tuple(cropped[25, 5]) == (255, 0, 0)
    assert tuple(cropped[25, 45]) == (0, 0, 255)


@pytest.mark.parametrize("shape", [(10_000, 1), (1, 10_000), (1, 1)])
@pytest.mark.parametrize("fit", FITS)
def test_extreme_shapes(tmp_path: Path, shape: tuple[int, int], fit: pictures.Fit) -> None:
    path = saved(tmp_path, Image.new("L", shape, 200))
    assert pixels(path, (64, 48), fit).shape == (48, 64, 3)
    assert fit_note(read(path).size, (64, 48), fit) is not None


@pytest.mark.parametrize(("size", "target", "fit", "note"), [
    ((64, 64), (64, 64), "crop", None),
    ((64, 64), (64, 64), "pad", None),
    ((0, 0), (64, 64), "crop", None),
    ((128, 128), (64, 64), "crop", "is 128x128: reduced to 50% to be 64x64"),
    ((32, 32), (64, 64), "pad", "is 32x32: enlarged 2 times to be 64x64"),
    ((4000, 3000), (832, 480), "crop", "is 4000x3000: reduced to 20.8%, 23.1% cut off at top and bottom to be 832x480 "
                                       "(--fit pad keeps all of it)"),
    ((3000, 4000), (832, 480), "pad", "is 3000x4000: reduced to 12%, 472 columns of black added to be 832x480"),
    ((80, 64), (64, 64), "crop", "is 80x64: 20% cut off at left and right to be 64x64 (--fit pad keeps all of it)"),
    ((8, 4000), (64, 64), "crop", "is 8x4000: enlarged 8 times, 99.8% cut off at top and bottom to be 64x64 "
                                  "(--fit pad keeps all of it)"),
    ((64, 32), (64, 64), "pad", "is 64x32: 32 rows of black added to be 64x64"),
])  # fmt: skip
def test_the_note_says_what_is_done(size: tuple[int, int], target: tuple[int, int], fit: pictures.Fit, note: str | None) -> None:
    assert fit_note(size, target, fit) == note


# ---- identity and copies -------------------------------------------------------------------------------------------------


def test_it_is_known_by_its_bytes(tmp_path: Path) -> None:
    one, other = saved(tmp_path, drawn()), saved(tmp_path, drawn(), "b.png")
    assert read(one).sha256 == read(other).sha256
    assert read(one).sha256 != read(saved(tmp_path, drawn(49))).sha256


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    picture = read(saved(tmp_path, drawn()))
    saved(tmp_path, drawn(49))
    uses: list[Callable[[], Any]] = [
        lambda: fitted(picture, (8, 8), "crop"), lambda: keep(picture, tmp_path / "kept"), lambda: thumbnail(picture, 8),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(LonggenError, match="has changed since it was read"):
            use()
    picture.path.unlink()
    with pytest.raises(MissingError):
        fitted(picture, (8, 8), "crop")


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a", "a.tar.gz"])
def test_copies(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    drawn().save(path, "PNG")
    picture, folder = read(path), tmp_path / "kept"
    keep(picture, folder)
    path.unlink()
    copy = kept(picture.sha256, folder, name)
    assert (copy.sha256, copy.size, copy.name) == (picture.sha256, picture.size, name)
    assert np.array_equal(np.asarray(fitted(copy, copy.size, "crop")), np.asarray(drawn()))
    keep(copy, folder)  # it is there
    assert len([*folder.iterdir()]) == 1
    for other in (b"x", saved(tmp_path, drawn(49), "other.png").read_bytes()):
        copy.path.write_bytes(other)
        with pytest.raises(LonggenError):
            kept(picture.sha256, folder, name)
    copy.path.unlink()
    gone = kept(picture.sha256, folder, name)
    assert (gone.size, gone.notes, gone.path.exists()) == ((0, 0), (), False)


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    picture, folder = read(saved(tmp_path, drawn())), tmp_path / "kept"
    keep(picture, folder)
    (copy,) = folder.iterdir()
    copy.write_bytes(b"x")
    keep(picture, folder)
    assert read(copy).sha256 == picture.sha256


@pytest.mark.parametrize("wrong", ["", "../../etc/passwd", "a" * 63, "*" * 64, 3, None, ["a" * 64]])
def test_a_hash_that_is_none(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(LonggenError, match="no hash"):
        kept(wrong, tmp_path, None)


def test_thumbnails_are_small(tmp_path: Path) -> None:
    small = Image.open(io.BytesIO(thumbnail(read(saved(tmp_path, drawn(480, 320))), 96)))
    assert (small.format, small.size) == ("PNG", (96, 64))
