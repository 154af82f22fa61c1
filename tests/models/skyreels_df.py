"""SkyReels-V2 with diffusion forcing in small: "skyreels-df", which is told the rate of frames, as the one of 1.3 billion is."""

from __future__ import annotations

from tests.models.skyreels import build as build

NAMES = ("skyreels-df",)
