"""What is known of each backbone before any of its weights is loaded. Pure data."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longgen.errors import LonggenError, MissingError, UsageError, unknown_name

RELATIVE_POSITIONS = "relative-positions"  # rotary time positions inside self-attention
FRAME_TIMESTEPS = "frame-timesteps"  # the model accepts one timestep a latent frame


@dataclass(frozen=True)
class BackboneSpec:
    """A text-to-video diffusion model.

    source: a hub id or a folder. stride_*: pixels per latent cell. patch: latent cells per token (t, h, w).
    native_px: pixel frames it was trained on. size: (width, height) in pixels. rotary_dims: temporal rotary channels.
    text_tokens: the length prompts are padded to. cpu_threads: what serves it best on a CPU; None leaves it to torch.
    """

    name: str
    family: str
    source: str
    about: str
    license: str
    stride_t: int
    stride_hw: int
    patch: tuple[int, int, int]
    native_px: int
    fps: int
    size: tuple[int, int]
    steps: int
    guidance_scale: float
    negative_prompt: str
    dtype: str
    layers: int
    heads: int
    head_dim: int
    ffn_dim: int
    latent_channels: int
    rotary_dims: int
    rotary_base: float
    intrinsic_component: int
    text_tokens: int
    parameters: int  # of the transformer
    companions: int  # parameters of text encoder and VAE
    most_lat: int = 1024  # latent frames that can be addressed: the rows of Wan's rotary table
    cpu_threads: int | None = None
    capabilities: tuple[str, ...] = (RELATIVE_POSITIONS, FRAME_TIMESTEPS)

    @property
    def native_lat(self) -> int:
        return (self.native_px - 1) // self.stride_t + 1

    @property
    def width(self) -> int:
        """Channels of the transformer."""
        return self.heads * self.head_dim

    @property
    def size_multiple(self) -> tuple[int, int]:
        """What width and height must be multiples of; WanPipeline itself insists on 16."""
        return tuple(math.lcm(16, self.stride_hw * patch) for patch in (self.patch[2], self.patch[1]))  # type: ignore[return-value]

    @property
    def frequencies(self) -> tuple[float, ...]:
        """theta_j = base^(-2 (j - 1) / d_t), j = 1 .. d_t / 2."""
        return tuple(self.rotary_base ** (-2 * j / self.rotary_dims) for j in range(self.rotary_dims // 2))

    def tokens_per_frame(self, size: tuple[int, int]) -> int:
        """Tokens of one latent frame at `size` (width, height)."""
        width, height = size
        return (width // self.stride_hw // self.patch[2]) * (height // self.stride_hw // self.patch[1])


TINY_FOLDER = Path(__file__).parent / "tiny" / "weights"
_WAN_NEGATIVE = "overexposed, static, blurred details, subtitles, worst quality, low quality, still picture, deformed"

TINY = BackboneSpec(
    name="tiny", family="wan", source=str(TINY_FOLDER), license="Apache-2.0, with the package",
    about="a small text-to-video model of our own, trained on rendered clips; runs on a CPU in seconds",
    stride_t=4, stride_hw=16, patch=(1, 1, 1), native_px=81, fps=16, size=(64, 64), steps=20, guidance_scale=3.0,
    negative_prompt="", dtype="fp32", layers=6, heads=4, head_dim=64, ffn_dim=768, latent_channels=48, rotary_dims=24,
    rotary_base=10000.0, intrinsic_component=3, text_tokens=24, parameters=6_126_896, companions=4_566_960,
    cpu_threads=1,  # two are barely faster on two idle cores and many times slower on busy ones
)  # fmt: skip
WAN_1_3B = BackboneSpec(
    name="wan2.1-1.3b", family="wan", source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", license="Apache-2.0",
    about="Wan 2.1 text-to-video, 1.3 billion parameters, 480p",
    stride_t=4, stride_hw=8, patch=(1, 2, 2), native_px=81, fps=16, size=(832, 480), steps=50, guidance_scale=5.0,
    negative_prompt=_WAN_NEGATIVE, dtype="bf16", layers=30, heads=12, head_dim=128, ffn_dim=8960, latent_channels=16,
    rotary_dims=44, rotary_base=10000.0, intrinsic_component=6, text_tokens=512, parameters=1_418_996_800, companions=5_807_802_867,
)  # fmt: skip
WAN_14B = replace(
    WAN_1_3B, name="wan2.1-14b", source="Wan-AI/Wan2.1-T2V-14B-Diffusers", size=(832, 480), layers=40, heads=40,
    about="Wan 2.1 text-to-video, 14 billion parameters, 480p and 720p", ffn_dim=13824, parameters=14_288_491_584,
)  # fmt: skip
SPECS = {spec.name: spec for spec in (TINY, WAN_1_3B, WAN_14B)}


def find(name: str) -> BackboneSpec:
    """The spec of a backbone by its name, by a local diffusers folder, or by a hub id in the local cache or on the hub.

    Raises UsageError for a name that is none of these or a model longgen cannot drive, MissingError where the hub
    cannot be asked.
    """
    if name in SPECS:
        return SPECS[name]
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # not Path.is_dir, which raises where a name is too long
        return _from_folder(path)
    if path.is_absolute() or name.startswith("."):
        raise MissingError(f"--backbone {name}: no such folder", accepted="a folder with model_index.json, or a backbone's name",
                           do="longgen backbones list")  # fmt: skip
    if name.count("/") == 1:
        return _from_hub(name)
    raise unknown_name("backbone", name, SPECS, "choose one of these, a hub id (owner/name) or a diffusers folder")


def _from_folder(folder: Path) -> BackboneSpec:
    spec = _from_configs(str(folder.resolve()), *(_read_json(folder / part) for part in _CONFIGS))
    transformer, *others = (_parameters(folder / part) for part in ("transformer", "text_encoder", "vae"))
    return replace(spec, parameters=transformer or spec.parameters, companions=sum(others) or spec.companions)


def _parameters(folder: Path) -> int:
    """Parameters in the safetensors files of `folder`, read from their headers."""
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "numpy") as file:
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no dict
        except SafetensorError as error:
            raise LonggenError(
                f"{path} is damaged: {error}", accepted="a safetensors file", do="copy or download it again"
            ) from None
    return count


def _from_hub(hub_id: str) -> BackboneSpec:
    from huggingface_hub import HfApi, hf_hub_download  # here: it costs 0.3 s, and most calls never ask the hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            paths = [Path(hf_hub_download(hub_id, part, local_files_only=True)) for part in _CONFIGS]
        except LocalEntryNotFoundError:
            HfApi().model_info(hub_id, timeout=10)  # fails at once without network, where downloads try for 23 s
            paths = [Path(hf_hub_download(hub_id, part)) for part in _CONFIGS]
    except Exception as error:  # the hub client lets its HTTP library's errors through, of many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingError(f"--backbone {hub_id} is neither in the local cache nor to be had from the hub: {reason}",
                           accepted=f"a downloaded hub id, a diffusers folder, or one of {', '.join(SPECS)}",
                           do="check the name and the network, or download it elsewhere and give its folder") from None  # fmt: skip
    return _from_configs(hub_id, *map(_read_json, paths))


_CONFIGS = ("model_index.json", "transformer/config.json", "vae/config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} is not there", accepted="a diffusers folder, with " + ", ".join(_CONFIGS),
                           do="give the folder that holds model_index.json") from None  # fmt: skip
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}", accepted="JSON as diffusers writes it", do="download it again") from None


def _from_configs(source: str, index: Any, transformer: Any, vae: Any) -> BackboneSpec:
    kind = index.get("_class_name", "WanPipeline") if isinstance(index, dict) else "WanPipeline"
    if kind != "WanPipeline":
        raise UsageError(f"--backbone {source} is a {kind}", accepted="a WanPipeline", do="choose another model")
    configs = dict(zip(_CONFIGS, (index, transformer, vae), strict=True))
    for part, keys in _NEEDED.items():
        absent = [key for key in keys if not isinstance(configs[part], dict) or key not in configs[part]]
        if absent:
            raise UsageError(f"--backbone {source}: {part} has no {', '.join(absent)}", accepted="a WanPipeline of diffusers",
                             do="copy or download it again")  # fmt: skip
    if index.get("transformer_2", [None])[0] is not None:
        raise UsageError(f"--backbone {source} has two expert transformers, which longgen cannot drive yet",
                         accepted="a WanPipeline with one transformer", do="choose another model")  # fmt: skip
    head_dim, heads = transformer["attention_head_dim"], transformer["num_attention_heads"]
    width, ffn_dim, layers = head_dim * heads, transformer["ffn_dim"], transformer["num_layers"]
    rotary_dims = head_dim - 4 * (head_dim // 6)
    return replace(
        WAN_1_3B, name=source, source=source, about="Wan, read from its folder", license="see its model card",
        stride_t=vae.get("scale_factor_temporal", 4), stride_hw=vae.get("scale_factor_spatial", 8),
        patch=tuple(transformer["patch_size"]), layers=layers, heads=heads, head_dim=head_dim, ffn_dim=ffn_dim,
        latent_channels=transformer["in_channels"], rotary_dims=rotary_dims,
        intrinsic_component=min(WAN_1_3B.intrinsic_component, rotary_dims // 2),
        parameters=layers * (8 * width**2 + 2 * width * ffn_dim),
    )  # fmt: skip


_NEEDED = {
    "model_index.json": ("_class_name",),
    "transformer/config.json": ("attention_head_dim", "num_attention_heads", "ffn_dim", "num_layers", "patch_size", "in_channels"),
    "vae/config.json": ("z_dim",),
}
