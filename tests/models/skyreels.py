"""SkyReels-V2 in small: "skyreels" (text-to-video); in `skyreels_df` the one with a noise level for each frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)

from tests.models import t5
from tests.models.wan import attentive

NAMES = ("skyreels",)


def build(name: str, folder: Path) -> None:
    kinds: dict[str, Any] = {"skyreels": SkyReelsV2Pipeline, "skyreels-df": SkyReelsV2DiffusionForcingPipeline}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = SkyReelsV2Transformer3DModel(
            num_attention_heads=2, attention_head_dim=24, in_channels=16, out_channels=16, text_dim=t5.TEXT_DIM, freq_dim=32,
            ffn_dim=64, num_layers=2, inject_sample_info=name == "skyreels-df",
        )  # fmt: skip
        attentive(transformer)
        vae = AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1)
        tokenizer, encoder = t5.parts(512)
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
        kinds[name](tokenizer, encoder, transformer.eval(), vae.eval(), scheduler).save_pretrained(folder)
