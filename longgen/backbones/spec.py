"""The contracts of backbones: what is known of a model before its weights are loaded, and of the family that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from longgen.backbones.model_config import ModelConfigs

RELATIVE_POSITIONS, FRAME_TIMESTEPS, WHOLE_CLIP, KV_CACHE = "relative-positions", "frame-timesteps", "whole-clip", "kv-cache"
FIRST_FRAME, LAST_FRAME, LATENT_CONDITION = "first-frame", "last-frame", "latent-condition"
CAPABILITIES = {  # what each means
    RELATIVE_POSITIONS: "rotary time positions inside self-attention",
    FRAME_TIMESTEPS: "one timestep for each latent frame",
    WHOLE_CLIP: "frames that are denoised together and see each other both ways",
    KV_CACHE: "frames that are made in chunks, each of which sees the past through a cache of keys and values",
    FIRST_FRAME: "a picture as the first frame",
    LAST_FRAME: "a picture as the last frame, beside one as the first",
    LATENT_CONDITION: "latents of the first frames in channels beside the noise, with a mask of them",
}
TINY_FOLDER = Path(__file__).parent / "tiny" / "weights"
TINY_CAUSAL_FOLDER = TINY_FOLDER.with_name("weights-causal")


class Tokenized(NamedTuple):
    """A prompt as a pipeline tokenizes it: within `text`, of whose beginning these characters and tokens do not count.

    lost: how many tokens fewer than `text_tokens` are read of a text that is longer.
    """

    text: str
    chars_before: int = 0
    tokens_before: int = 0
    lost: int = 0


class TokenShift(NamedTuple):
    """A flow shift that grows with the number of tokens: its logarithm is a straight line through two points."""

    base_log: float
    most_log: float
    base_tokens: int
    most_tokens: int

    def at(self, tokens: int) -> float:
        slope = (self.most_log - self.base_log) / (self.most_tokens - self.base_tokens)
        return math.exp(min(self.base_log + slope * (tokens - self.base_tokens), 700.0))  # a float ends at exp(709)


class Sound(NamedTuple):
    """The audio stream beside the video's: its channels in the transformer, its latents (one a token) of a second."""

    width: int
    per_s: float


@dataclass(frozen=True)
class BackboneSpec:
    """Everything about one video model that is known before its weights are loaded.

    source: a hub id or a diffusers folder. stride_*: pixels per latent cell. patch: latent cells per token (t, h, w).
    native_px: pixel frames of a training clip. size: (width, height) in pixels. rotary_dims: temporal rotary channels.
    rotary_span_s: see `frequencies`. text_tokens: the length prompts are padded to. cpu_threads: the fastest number on a CPU;
    None leaves it to torch. flow_shift: the default shift of the noise levels; None: the checkpoint's scheduler has it.
    scheduler: diffusers' class of that one. checkpoint_shift: its shift, or token_shift: how it follows from the number of tokens;
    None where they are not known. fixed_shift: why the shift cannot be chosen. advised: options and values that the publisher takes
    where the defaults here are others, and advised_in: where. All of these with their sources: longgen.backbones.sources.
    checkpoint: weights that replace the transformer in `source`: a .pt or .safetensors file, a folder that diffusers wrote, or
    `owner/name/path/in/repository` on the hub. lora: a LoRA that is merged into them, in the same forms.
    sound: of a model that makes sound with the video. more_calls: of the transformer in a step with guidance, beside those for the
    prompt and the negative prompt.
    files: single files in which its transformers are, as ComfyUI reads them; the rest is that of `source`. file_vae: the first of
    them holds the VAE too. file_notes: what is to be said of them before anything is loaded.
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
    rotary_span_s: int | None = None
    repetition_lat: int | None = None  # see longgen.frameplan.Geometry
    most_lat: int = 1024  # latent frames that can be addressed: the rows of Wan's rotary table
    cpu_threads: int | None = None
    capabilities: tuple[str, ...] = (RELATIVE_POSITIONS, FRAME_TIMESTEPS, WHOLE_CLIP)
    checkpoint: str | None = None
    lora: str | None = None
    flow_shift: float | None = None
    scheduler: str = "UniPCMultistepScheduler"
    checkpoint_shift: float | None = None
    token_shift: TokenShift | None = None
    advised: tuple[tuple[str, float], ...] = ()
    advised_in: str = ""
    fixed_shift: str | None = None
    joint_text: bool = False  # text tokens take part in self-attention; else cross-attention reads them
    first_order: str = "the flow-matching Euler scheduler"  # the scheduler used where a technique edits the latent
    least_steps: int = 1  # that its scheduler can take
    experts: int = 1  # transformers that share the schedule; `parameters` counts them all
    guidance_scale_2: float | None = None  # of the second expert
    boundary: float | None = None  # noise level, 0 to 1, below which it predicts
    embedded_guidance: bool = False  # guidance is an input of the model, and no negative prompt is read
    verdicts: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)  # published verdict -> layers
    picture_needed: bool = False  # it cannot start from text alone
    last_picture_needed: bool = False  # nor without a last picture beside the first
    condition_channels: int = 0  # of the transformer's input, beside the latents: what is given of the video, encoded
    image_tokens: int = 0  # of the pictures, which attention reads beside those of the text
    chunk_lat: int = 3  # of a rollout: latent frames of a chunk that it was distilled for
    first_steps: int | None = None  # of a rollout: steps of a video's first chunk, where they are not `steps`
    clean_lat: int = 0  # the most clean latent frames that a clip may begin with, which `--continue` and chains hand over
    fixed_size: bool = False  # it makes no other size than `size`
    sound: Sound | None = None
    more_calls: int = 0
    most_size: tuple[int, int] | None = None  # nor a wider or higher one than this
    picture_crf: int = 0  # H.264's rate factor of the pictures that it was trained on, at which one is compressed; 0: as it is
    sigmas: tuple[float, ...] = ()  # the noise levels that it was distilled for, one a step, in place of a schedule
    meanflow: bool = False  # distilled to few steps: a call tells also the timestep that the step ends at, as diffusers does
    token_lat: int = 1  # latent frames of the VAE that a token holds: what is called a latent frame elsewhere, and `stride_t` and
    # `latent_channels` are of, is then that many, whose channels stand one after the other
    files: tuple[str, ...] = ()
    file_vae: bool = False
    kept: tuple[int, int] = (0, 0)  # of the parameters, those that stay in 8 bits or fewer as the files have them; their bytes
    file_notes: tuple[str, ...] = ()

    @property
    def native_lat(self) -> int:
        return (self.native_px - 1) // self.stride_t + 1

    @property
    def built_in(self) -> bool:
        """Whether its weights are in the package, and its prompts those of `tiny_grammar`."""
        return self.source == str(TINY_FOLDER) and self.checkpoint in (None, str(TINY_CAUSAL_FOLDER))

    @property
    def causal(self) -> bool:
        """Whether a frame attends to itself and the past only, so that a video is rolled out chunk by chunk."""
        return KV_CACHE in self.capabilities

    @property
    def latent_space(self) -> tuple[str, int, int, int, bool]:
        """Equal where one model can read the latents of the other; a causal family has the VAE of the one that it is made of."""
        return self.family.removeprefix("causal-"), self.latent_channels, self.stride_t, self.stride_hw, self.built_in

    @property
    def continues(self) -> bool:
        """Whether it can go on from a video."""
        return self.causal or self.clean_lat > 0

    @property
    def width(self) -> int:
        """Channels of the transformer."""
        return self.heads * self.head_dim

    @property
    def size_multiple(self) -> tuple[int, int]:
        """Width and height must be multiples of these; the pipelines themselves insist on 16."""
        return tuple(math.lcm(16, self.stride_hw * patch) for patch in (self.patch[2], self.patch[1]))  # type: ignore[return-value]

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Temporal rotary frequencies, in radians a latent frame.

        theta_j = base^(-2 (j - 1) / d_t), j = 1 .. d_t / 2. With `rotary_span_s` positions are seconds, as in LTX-Video:
        base^(j / (F - 1)), j = 0 .. F - 1, times pi for every `rotary_span_s` seconds, F a sixth of all channels.
        """
        if self.rotary_span_s is not None:
            count, per_frame = self.width // 6, math.pi * self.stride_t / (self.rotary_span_s * self.fps)
            return tuple(per_frame * self.rotary_base ** (j / max(1, count - 1)) for j in range(count))
        return tuple(self.rotary_base ** (-2 * j / self.rotary_dims) for j in range(self.rotary_dims // 2))

    def frame_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens of one latent frame at `size` (width, height)."""
        width, height = size
        return height // self.stride_hw // self.patch[1], width // self.stride_hw // self.patch[2]

    def sound_lat(self, frames_lat: int) -> int:
        """The audio latents of `frames_lat` latent frames, as diffusers' pipelines count them; 0 of a silent model."""
        if self.sound is None:
            return 0
        return round((self.stride_t * (frames_lat - 1) + 1) / self.fps * self.sound.per_s)

    def same_shape(self, other: BackboneSpec) -> bool:
        """Whether both transformers have layers of the same number and sizes, and inputs of the same kind."""
        names = (
            "layers",
            "heads",
            "head_dim",
            "ffn_dim",
            "latent_channels",
            "picture_needed",
            "condition_channels",
            "image_tokens",
            "meanflow",
        )
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True)
class Family:
    """What all models of one architecture share, and how longgen tells, loads and drives them.

    One object a family, in a file that imports neither torch nor diffusers: `longgen plan` reads it. Functions may import them.

    title: as its authors write it. specs: the published models. adapter: "module:Class" of its PipelineBackbone.
    pipeline: diffusers' class, as model_index.json names it; picture_pipelines: those that start from a picture. marker: the class
    of the transformer there that tells this family from another with the same pipeline. from_configs: the spec of a model of this
    family, by its configs; raises UsageError.
    transformer: diffusers' class. transformer_config: its arguments for a spec, where no config.json is at hand; the class's
    defaults are the rest. random_pipeline: (spec, transformers, text) -> a diffusers pipeline with the published scheduler, whose
    text encoder is replaced by `text` (pipelines.random_weights.RandomText); without VAE and tokenizer.
    peak_activations: numbers alive at the peak of a block, in units of N tokens times d channels: in attention, and in the
    feed-forward beside the 2 f / d of its hidden layer, f its width. Counted in the published models on the meta device
    (tests/test_memory.py). token_modulation: as many more where frames have noise levels of their own. moved: numbers that a
    block's kernels read and write beside matrix products and attention, in the same units, as `longgen bench --count` counts
    them. batches_guidance: the pipeline runs both branches of guidance as one batch.
    folders: of a diffusers pipeline of this family, beside those of its transformers: what a download needs. picture_folders: more
    of a model with image_tokens.
    context_parallel: diffusers has a context-parallel plan for its transformer, so that ranks can share its tokens.
    vae_float32: the VAE runs in float32, whatever the dtype. broken_caches: step caches of diffusers that do not work on it,
    first-block and mag among them where its registry of blocks lacks the transformer's (settings.CACHE_FAULTS says why).
    distilled: noise levels of its distilled models, which are those whose scheduler does not shift.
    tokenized: (prompt, spec) -> what its pipeline tokenizes.
    author_layers: names of layers in diffusers -> the authors' name of a layer, which LoRA files use, to the layers in diffusers
    that it stands for: several where the authors fuse them.
    """

    name: str
    title: str
    specs: tuple[BackboneSpec, ...]
    adapter: str
    pipeline: str
    from_configs: Callable[[ModelConfigs], BackboneSpec]
    transformer: str
    transformer_config: Callable[[BackboneSpec], dict[str, Any]]
    random_pipeline: Callable[[BackboneSpec, Sequence[Any], Any], Any]
    peak_activations: tuple[float, float]
    token_modulation: float = 0.0
    moved: float = 180.0
    batches_guidance: bool = False
    folders: tuple[str, ...] = ("scheduler", "text_encoder", "tokenizer", "vae")
    picture_folders: tuple[str, ...] = ()
    context_parallel: bool = False
    vae_float32: bool = False
    marker: str | None = None
    broken_caches: tuple[str, ...] = ()
    picture_pipelines: tuple[str, ...] = ()
    distilled: tuple[float, ...] = ()
    tokenized: Callable[[str, BackboneSpec], Tokenized] = lambda prompt, _: Tokenized(prompt)
    author_layers: Callable[[Collection[str]], Mapping[str, tuple[str, ...]]] = lambda layers: {}


def transformer_sizes(spec: BackboneSpec) -> dict[str, Any]:
    """The arguments that diffusers' video transformers have in common."""
    channels, condition = (count // spec.token_lat for count in (spec.latent_channels, spec.condition_channels))
    return dict(num_attention_heads=spec.heads, attention_head_dim=spec.head_dim, in_channels=channels + condition,
                out_channels=channels)  # fmt: skip


def substitute(name: str, replacements: Sequence[tuple[str, str]]) -> str:
    """`name` after each (old, new) of `replacements`, in order."""
    for old, new in replacements:
        name = name.replace(old, new)
    return name
