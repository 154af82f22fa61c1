"""A picture as H.264 leaves it: LTX-2 was trained on pictures that had been through it. diffusers does so too, by PyAV."""

from __future__ import annotations

import importlib.util

import numpy as np
from PIL import Image

from longgen.errors import MissingError, UsageError
from longgen.plan import Plan

MOST = 16384  # pixels a side of an H.264 picture


def check(plan: Plan) -> None:
    """Raises MissingError or UsageError where `plan` has a picture that is to be compressed and cannot be."""
    picture = plan.conditions.image
    if picture is None or not plan.spec.picture_crf:
        return
    _check_library()
    if max(picture.size) > MOST:
        width, height = picture.size
        raise UsageError(f"--image {picture.name} is {width}x{height}, and {plan.spec.name} takes a picture through H.264",
                         expected=f"at most {MOST} pixels a side", hint="save it smaller")  # fmt: skip


def _check_library() -> None:
    if importlib.util.find_spec("av") is None:
        raise MissingError("--image with ltx-2 needs the library av, which is not installed: a picture is compressed as H.264 "
                           "first, as in training", expected="pip install 'longgen[ltx2]'", hint="install it")  # fmt: skip


def compressed(image: Image.Image, crf: int) -> Image.Image:
    """The RGB `image` at the constant rate factor `crf`. H.264 halves colours: an odd last column or row is left out.

    One of a single row or column, which H.264 has not, stays as it is, and so does any at `crf` 0. Raises MissingError.
    """
    from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf

    if not crf or min(image.size) < 2:
        return image
    _check_library()
    return Image.fromarray(apply_image_conditioning_crf(np.array(image), crf))
