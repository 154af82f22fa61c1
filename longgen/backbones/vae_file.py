"""VAEs in single files: what a file is by its header, and the configs of the published ones, which it does not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longgen.backbones import formats
from longgen.backbones.spec import BackboneSpec
from longgen.errors import UsageError

EXPECTED = "a .safetensors file of the VAE of that model"
_LATENT = (("conv2.weight", 0), ("post_quant_conv.weight", 0), ("decoder.conv_in.conv.weight", 1))  # tensor, axis of its channels
# Wan-AI/Wan2.2-TI2V-5B-Diffusers b8fff73, vae/config.json
_WAN_2_2: dict[str, Any] = dict(
    base_dim=160, decoder_base_dim=256, z_dim=48, in_channels=12, out_channels=12, is_residual=True, patch_size=2,
    scale_factor_spatial=16, clip_output=False,
    latents_mean=[
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098,
        0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567,
        -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957,
        0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ],
    latents_std=[
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454,
        0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999,
        0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444,
        0.4089, 0.7468, 0.7744,
    ],
)  # fmt: skip
# LTX-Video 5260738, configs/ltxv-2b-0.9.5.yaml; diffusers 58eb52c, scripts/convert_ltx_to_diffusers.py (get_vae_config)
_LTX_095: dict[str, Any] = dict(
    block_out_channels=[128, 256, 512, 1024, 2048], decoder_block_out_channels=[256, 512, 1024],
    decoder_inject_noise=[False] * 4, decoder_layers_per_block=[5, 5, 5, 5], decoder_spatio_temporal_scaling=[True] * 3,
    down_block_types=["LTXVideo095DownBlock3D"] * 4, layers_per_block=[4, 6, 6, 2, 2], spatio_temporal_scaling=[True] * 4,
    downsample_type=["spatial", "temporal", "spatiotemporal", "spatiotemporal"], timestep_conditioning=True,
    upsample_factor=[2, 2, 2], upsample_residual=[True] * 3, spatial_compression_ratio=32, temporal_compression_ratio=8,
)  # fmt: skip
# the same script: 0.9.1, whose transformer is that of 0.9
_LTX_091: dict[str, Any] = dict(
    block_out_channels=[128, 256, 512, 512], decoder_block_out_channels=[256, 512, 1024], decoder_layers_per_block=[5, 6, 7, 8],
    decoder_inject_noise=[False, True, True, True], decoder_spatio_temporal_scaling=[True] * 3, layers_per_block=[4, 3, 3, 3, 4],
    spatio_temporal_scaling=[True, True, True, False], timestep_conditioning=True, upsample_factor=[2, 2, 2],
    upsample_residual=[True] * 3,
)  # fmt: skip
CONFIGS: dict[str, list[dict[str, Any]]] = {  # diffusers' class -> published configs, as far as they are not its defaults
    "AutoencoderKLWan": [{}, _WAN_2_2], "AutoencoderKLLTXVideo": [{}, _LTX_091, _LTX_095], "AutoencoderKLHunyuanVideo": [{}],
}  # fmt: skip


def check(path: Path, spec: BackboneSpec) -> formats.Header:
    """The header of the VAE in the file at `path`. Raises UsageError where it is none, or of other latents than those of `spec`."""
    table = formats.header(path, EXPECTED, f"--vae {path}")
    names = {name.removeprefix("vae.").removeprefix("first_stage_model."): name for name in table.tensors}
    found = next(((name, axis) for name, axis in _LATENT if name in names), None)
    model = formats.model_of(names)
    if found is None or model not in ("a VAE", None):
        holds = ", ".join([*table.tensors][:3]) or "nothing"
        raise UsageError(f"--vae {path} is {model or 'no VAE that diffusers reads'}; it holds {holds}", expected=EXPECTED,
                         hint="choose the file of the VAE, or leave --vae out for the model's own")  # fmt: skip
    channels = table.tensors[names[found[0]]][1][found[1]]
    if channels != spec.latent_channels:
        raise UsageError(f"--vae {path} has {channels} latent channels, and {spec.name} has {spec.latent_channels}",
                         expected=EXPECTED, hint="leave --vae out for the model's own")  # fmt: skip
    return table
