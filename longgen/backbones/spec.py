"""What is known of each backbone before any of its weights is loaded. Pure data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

RELATIVE_POSITIONS, FRAME_TIMESTEPS, WHOLE_CLIP, KV_CACHE = "relative-positions", "frame-timesteps", "whole-clip", "kv-cache"
CAPABILITIES = {  # what each means
    RELATIVE_POSITIONS: "rotary time positions inside self-attention",
    FRAME_TIMESTEPS: "one timestep for each latent frame",
    WHOLE_CLIP: "frames that are denoised together and see each other both ways",
    KV_CACHE: "frames that are made in chunks, each of which sees the past through a cache of keys and values",
}


@dataclass(frozen=True)
class BackboneSpec:
    """A text-to-video diffusion model.

    source: a hub id or a folder. stride_*: pixels per latent cell. patch: latent cells per token (t, h, w).
    native_px: pixel frames it was trained on. size: (width, height) in pixels. rotary_dims: temporal rotary channels.
    text_tokens: the length prompts are padded to. cpu_threads: what serves it best on a CPU; None leaves it to torch.
    flow_shift: what noise levels are shifted by where nobody says it; None: what the checkpoint's own scheduler has.
    script_shift: what the authors' own script takes, where diffusers' copy of the checkpoint may have another. fixed_shift: why
    the shift cannot be chosen.
    checkpoint: a causal transformer's own weights, in place of those in `source`: a .pt or .safetensors file, a folder that
    diffusers wrote, or `owner/name/path/in/repository` on the hub. lora: what is merged into them, in the same forms.
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
    intrinsic_component: int | None
    text_tokens: int
    parameters: int  # of the transformer
    companions: int  # parameters of text encoder and VAE
    most_lat: int = 1024  # latent frames that can be addressed: the rows of Wan's rotary table
    cpu_threads: int | None = None
    capabilities: tuple[str, ...] = (RELATIVE_POSITIONS, FRAME_TIMESTEPS, WHOLE_CLIP)
    checkpoint: str | None = None
    lora: str | None = None
    flow_shift: float | None = None
    script_shift: float | None = None
    fixed_shift: str | None = None
    joint_text: bool = False  # text tokens take part in self-attention; else cross-attention reads them
    first_order: str = "the flow-matching Euler scheduler"  # what steps where a technique edits the latent
    least_steps: int = 1  # what its scheduler can do
    experts: int = 1  # transformers that share the schedule; `parameters` counts them all
    guidance_scale_2: float | None = None  # of the second expert
    embedded_guidance: bool = False  # guidance is an input of the model, and no negative prompt is read
    verdicts: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)  # layers by what a probe says of them

    @property
    def native_lat(self) -> int:
        return (self.native_px - 1) // self.stride_t + 1

    @property
    def built_in(self) -> bool:
        """Whether its weights are in the package, and its prompts those of `tiny.grammar`."""
        return self.source == str(TINY_FOLDER) and self.checkpoint in (None, str(TINY_CAUSAL_FOLDER))

    @property
    def causal(self) -> bool:
        """Whether frames see the past only, so that a video is rolled out chunk by chunk."""
        return KV_CACHE in self.capabilities

    @property
    def width(self) -> int:
        """Channels of the transformer."""
        return self.heads * self.head_dim

    @property
    def size_multiple(self) -> tuple[int, int]:
        """What width and height must be multiples of; the pipelines themselves insist on 16."""
        return tuple(math.lcm(16, self.stride_hw * patch) for patch in (self.patch[2], self.patch[1]))  # type: ignore[return-value]

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Temporal rotary frequencies, in radians a latent frame.

        theta_j = base^(-2 (j - 1) / d_t), j = 1 .. d_t / 2; on LTX-Video base^(j / (F - 1)), j = 0 .. F - 1, times pi for
        every 20 seconds, F a sixth of all channels.
        """
        if self.family == "ltx":
            count, turn = self.width // 6, math.pi * self.stride_t / (20 * self.fps)
            return tuple(turn * self.rotary_base ** (j / max(1, count - 1)) for j in range(count))
        return tuple(self.rotary_base ** (-2 * j / self.rotary_dims) for j in range(self.rotary_dims // 2))

    def frame_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens of one latent frame at `size` (width, height)."""
        width, height = size
        return height // self.stride_hw // self.patch[1], width // self.stride_hw // self.patch[2]


TINY_FOLDER = Path(__file__).parent / "tiny" / "weights"
TINY_CAUSAL_FOLDER = TINY_FOLDER.with_name("weights-causal")
# Sizes, frames, fps, steps, guidance, negative prompts and shifts below are those of the authors' own scripts, named at each.
# Wan 2.1 9737cba and 2.2 42bf4cf, wan/configs/shared_config.py: sample_neg_prompt, whole. Their scripts use it for every size.
_WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
)

TINY = BackboneSpec(
    name="tiny", family="wan", source=str(TINY_FOLDER), license="Apache-2.0, with the package",
    about="a small text-to-video model of our own, trained on rendered clips; runs on a CPU in seconds",
    stride_t=4, stride_hw=16, patch=(1, 1, 1), native_px=81, fps=16, size=(64, 64), steps=20, guidance_scale=3.0,
    negative_prompt="", dtype="fp32", layers=6, heads=4, head_dim=64, ffn_dim=768, latent_channels=48, rotary_dims=24,
    rotary_base=10000.0, intrinsic_component=3, text_tokens=24, parameters=6_126_896, companions=4_566_960,
    cpu_threads=1,  # two are barely faster on two idle cores and many times slower on busy ones
)  # fmt: skip
# FreeLOC's code ships these lists for Wan2.1-1.3B: a layer is in one of them. In its paper layer 28 is highly
# position-sensitive and 18 is not; nobody has published lists for other models.
_FREELOC = {
    "position-sensitive": (2, 3, 5, 8, 12, 17, 19, 20, 21, 26, 27, 28, 29),
    "context-sensitive": (0, 1, 4, 6, 7, 9, 10, 11, 13, 14, 15, 16, 18, 22, 23, 24, 25),
}
# Wan 2.1 9737cba, generate.py: 50 steps, guidance 5, shift 5 for text-to-video of every size. Its README: for this model guidance
# 6 and shift 8 to 12; with diffusers shift 3 for 480p and 5 for 720p. The checkpoint's own scheduler has 3.
WAN_1_3B = BackboneSpec(
    name="wan2.1-1.3b", family="wan", source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", license="Apache-2.0",
    about="Wan 2.1 text-to-video, 1.3 billion parameters, 480p",
    stride_t=4, stride_hw=8, patch=(1, 2, 2), native_px=81, fps=16, size=(832, 480), steps=50, guidance_scale=5.0,
    negative_prompt=_WAN_NEGATIVE, dtype="bf16", layers=30, heads=12, head_dim=128, ffn_dim=8960, latent_channels=16,
    rotary_dims=44, rotary_base=10000.0, intrinsic_component=6, text_tokens=512, parameters=1_418_996_800, companions=5_807_802_867,
    verdicts=_FREELOC, script_shift=5.0,
)  # fmt: skip
WAN_14B = replace(
    WAN_1_3B, name="wan2.1-14b", source="Wan-AI/Wan2.1-T2V-14B-Diffusers", size=(832, 480), layers=40, heads=40,
    about="Wan 2.1 text-to-video, 14 billion parameters, 480p and 720p", ffn_dim=13824, parameters=14_288_491_584, verdicts={},
)  # fmt: skip
# Wan 2.2 42bf4cf, wan/configs/wan_t2v_A14B.py: 40 steps, guidance 4 at high noise and 3 at low, boundary 0.875, shift 12.
WAN_2_2_A14B = replace(
    WAN_14B, name="wan2.2-t2v-a14b", source="Wan-AI/Wan2.2-T2V-A14B-Diffusers", steps=40, guidance_scale=4.0, guidance_scale_2=3.0,
    about="Wan 2.2 text-to-video, two experts of 14 billion parameters, 480p and 720p", experts=2, parameters=2 * 14_288_491_584,
    script_shift=12.0,
)  # fmt: skip
# The same, wan_ti2v_5B.py: 50 steps, guidance 5, 121 frames at 24 fps, shift 5, 1280x704.
WAN_2_2_5B = replace(
    WAN_1_3B, name="wan2.2-ti2v-5b", source="Wan-AI/Wan2.2-TI2V-5B-Diffusers", native_px=121, fps=24, size=(1280, 704),
    about="Wan 2.2 text-to-video, 5 billion parameters, 720p, VAE with 16x16 pixels a cell", stride_hw=16, latent_channels=48,
    heads=24, ffn_dim=14336, parameters=4_999_787_712, companions=6_385_000_000, verdicts={},
)  # fmt: skip
# LTX-Video 5a592aa (the release of 0.9), inference.py: 40 steps, guidance 3, 704x480, 121 frames at 25 fps, this negative prompt;
# configs/ltxv-2b-0.9.yaml adds spatiotemporal guidance, which diffusers' LTXPipeline does not have.
LTX_2B = BackboneSpec(
    name="ltx-2b", family="ltx", source="Lightricks/LTX-Video", license="LTX-Video Open Weights",
    about="LTX-Video 0.9, 2 billion parameters",
    stride_t=8, stride_hw=32, patch=(1, 1, 1), native_px=121, fps=25, size=(704, 480), steps=40, guidance_scale=3.0,
    negative_prompt="worst quality, inconsistent motion, blurry, jittery, distorted", dtype="bf16", layers=28, heads=32,
    head_dim=64, ffn_dim=8192, latent_channels=128, rotary_dims=682, rotary_base=10000.0, intrinsic_component=None,
    text_tokens=128, parameters=1_923_385_472, companions=5_181_000_000, least_steps=2,
    fixed_shift="its pipeline shifts the noise levels by the number of tokens",
)  # fmt: skip
# CogVideo 7a1af71, inference/cli_demo.py: 50 steps, guidance 6, no negative prompt, 720x480; 49 frames at 8 fps are its README's.
# The script also raises guidance over the steps (use_dynamic_cfg), which the model card's own example does not.
COGVIDEOX_5B = BackboneSpec(
    name="cogvideox-5b", family="cogvideox", source="zai-org/CogVideoX-5b", license="CogVideoX License",
    about="CogVideoX, 5 billion parameters",
    stride_t=4, stride_hw=8, patch=(1, 2, 2), native_px=49, fps=8, size=(720, 480), steps=50, guidance_scale=6.0,
    negative_prompt="", dtype="bf16", layers=42, heads=48, head_dim=64, ffn_dim=12288, latent_channels=16, rotary_dims=16,
    rotary_base=10000.0, intrinsic_component=2, text_tokens=226, parameters=5_570_283_072, companions=4_977_000_000,
    capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP), joint_text=True, first_order="the DDIM scheduler",
    fixed_shift="its noise levels are those of a DDPM schedule, which has no flow shift",
)  # fmt: skip
COGVIDEOX_2B = replace(
    COGVIDEOX_5B, name="cogvideox-2b", source="zai-org/CogVideoX-2b", license="Apache-2.0", dtype="fp16", layers=30, heads=30,
    about="CogVideoX, 2 billion parameters; absolute positions, so no technique can move its frames in time", ffn_dim=7680,
    rotary_dims=0, intrinsic_component=None, parameters=1_693_783_872, capabilities=(WHOLE_CLIP,),
)  # fmt: skip
# HunyuanVideo fa14b00, hyvideo/config.py: 50 steps, embedded guidance 6 and no other, shift 7 as the checkpoint's own, 1280x720,
# 129 frames; sample_video.py writes 24 fps. Its negative prompt is for guidance by two calls, which this model does not have.
HUNYUANVIDEO = BackboneSpec(
    name="hunyuanvideo", family="hunyuan", source="hunyuanvideo-community/HunyuanVideo", license="Tencent Hunyuan Community",
    about="HunyuanVideo, 13 billion parameters",
    stride_t=4, stride_hw=8, patch=(1, 2, 2), native_px=129, fps=24, size=(1280, 720), steps=50, guidance_scale=6.0,
    negative_prompt="", dtype="bf16", layers=60, heads=24, head_dim=128, ffn_dim=12288, latent_channels=16, rotary_dims=16,
    rotary_base=256.0, intrinsic_component=4, text_tokens=256, parameters=12_821_012_544, companions=8_400_000_000,
    capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP), joint_text=True, embedded_guidance=True,
)  # fmt: skip
TINY_CAUSAL = replace(
    TINY, name="tiny-causal", family="causal-wan", checkpoint=str(TINY_CAUSAL_FOLDER), steps=6, guidance_scale=1.0,
    flow_shift=5.0,
    about="the causal sibling of tiny: three latent frames at a time, of any number; runs on a CPU in seconds",
    capabilities=(RELATIVE_POSITIONS, KV_CACHE),
)  # fmt: skip
# Self-Forcing 33593df, configs/self_forcing_dmd.yaml: four steps, shift 5, chunks of three latent frames; its guidance and its
# negative prompt are those of training. LongLive e52d9ef (v1.0), configs/longlive_inference.yaml: the same.
SELF_FORCING = replace(
    WAN_1_3B, name="self-forcing", family="causal-wan", checkpoint="gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt",
    about="Self-Forcing: Wan 2.1 of 1.3 billion parameters made causal, four steps, three latent frames at a time", steps=4,
    guidance_scale=1.0, negative_prompt="", capabilities=(RELATIVE_POSITIONS, KV_CACHE), verdicts={}, flow_shift=5.0,
    script_shift=None,
)  # fmt: skip
LONGLIVE = replace(
    SELF_FORCING, name="longlive", checkpoint="Efficient-Large-Model/LongLive-1.3B/models/longlive_base.pt",
    lora="Efficient-Large-Model/LongLive-1.3B/models/lora.pt",
    about="LongLive: Self-Forcing tuned for minutes, with a sink of three latent frames and prompts that change",
)  # fmt: skip
_ALL = (TINY, TINY_CAUSAL, WAN_1_3B, WAN_14B, WAN_2_2_A14B, WAN_2_2_5B, SELF_FORCING, LONGLIVE, LTX_2B, COGVIDEOX_2B, COGVIDEOX_5B,
        HUNYUANVIDEO)  # fmt: skip
SPECS = {spec.name: spec for spec in _ALL}


def known_as(spec: BackboneSpec) -> str:
    """The name under which `spec` is known, if it is: its own, the one before its colon, or that of the model of its shape."""
    own = spec.name.partition(":")[0]
    parts = ("family", "layers", "heads", "head_dim", "ffn_dim", "latent_channels", "experts")
    alike = (name for name, known in SPECS.items() if all(getattr(known, part) == getattr(spec, part) for part in parts))
    return own if own in SPECS else next(alike, own)
