"""Transformers built for measuring: no published model, random weights, a size at which one thing decides the time."""

from __future__ import annotations

from dataclasses import replace

from longgen.backbones.wan import WAN_1_3B

CPU_ATTENTION = replace(
    WAN_1_3B, name="cpu-attention", source="", license="none: no weights are kept",
    about="a Wan transformer whose attention over 81 latent frames takes most of the time on a CPU",
    size=(128, 128), dtype="fp32", layers=6, heads=4, head_dim=64, ffn_dim=1024, rotary_dims=24, intrinsic_component=3,
    text_tokens=32, parameters=8_004_416, companions=0,
    verdicts={"position-sensitive": (0, 1, 2), "context-sensitive": (3, 4, 5)},  # made up for the shape: nobody probed it
)  # fmt: skip
SHAPES = {shape.name: shape for shape in (CPU_ATTENTION,)}
FRAMES = 321  # of a benchmark that says no length: 81 latent frames of Wan
