"""Measurements of presets and accelerators. GREY: the picture that a model which needs one is measured with."""

from pathlib import Path

GREY = Path(__file__).parent / "grey.png"
