"""Trains the `tiny` backbone from nothing, and `tiny-causal` from that, in restartable stages.

    python -m longgen.backbones.tiny.train --work DIR [--stages images,video,latents,decoder,transformer,export]
    python -m longgen.backbones.tiny.train --work DIR --stages unpack,latents,causal,export-causal
    python -m longgen.backbones.tiny.train --work DIR --stages unpack,latents,parts,export-parts
    python -m longgen.backbones.tiny.train --work DIR --stages unpack,unsaid-latents,unsaid,export-unsaid

| stage | learns | by |
|---|---|---|
| images | VAE on single frames | temporal taps start at zero and temporal resampling as a pass-through |
| video | VAE on clips of 17 and 33 frames | starts frame-wise, so colours and places hold from the first step |
| latents | nothing: encodes clips | fixes latents_mean and latents_std |
| decoder | VAE decoder alone on clips | the latents stay as they are, so it may run beside the transformer |
| transformer | Wan transformer and UMT5 text encoder | flow matching on the encoded clips |
| export | nothing: writes the diffusers folder | fp16 safetensors |
| unpack | nothing: lays out the shipped `tiny` | as the finished stages video and transformer |
| causal | a causal transformer, from tiny's | flow matching on chunks of three latents, each at its own noise level, block-causal |
| unsaid-latents | nothing: encodes clips of sentences without a colour | any hue; scaled as the shipped VAE says |
| unsaid | a rollout that can drift, from tiny-causal | as causal, without colours and with no noise on the past |
| pictures | to start from clean first latents, from the stage transformer | flow matching; the clean ones are at time 0 |
| parts | the same also for parts of clips, from pictures if it ran | as pictures; see `parts.py` |
| export-pictures, export-parts | nothing: write the transformer's folder | fp16 safetensors |
| export-causal, export-unsaid | nothing: write the transformer's folder | fp16 safetensors; text encoder and VAE are tiny's |

Every stage writes a checkpoint each `CHECKPOINT_EVERY` steps and goes on from it; one that is done is skipped. The stages
decoder and transformer need only what latents left, so that they may run side by side in two processes.

The shipped weights: seed 2026, on two cores of an AMD EPYC (AVX-512, bf16), torch 2.13.0, diffusers 0.42.1, with

    export OMP_NUM_THREADS=1
    python -m longgen.backbones.tiny.train --work W --stages images,video,latents
    python -m longgen.backbones.tiny.train --work W --stages decoder &
    python -m longgen.backbones.tiny.train --work W --stages transformer && wait
    python -m longgen.backbones.tiny.train --work W --stages export --output longgen/backbones/tiny/weights

    python -m longgen.backbones.tiny.train --work W --stages pictures,parts
    python -m longgen.backbones.tiny.train --work W --stages export-parts --output longgen/backbones/tiny/weights/transformer

    python -m longgen.backbones.tiny.train --work C --stages unpack,latents,causal
    python -m longgen.backbones.tiny.train --work C --stages export-causal --output longgen/backbones/tiny/weights-causal

    python -m longgen.backbones.tiny.train --work U --stages unpack,unsaid-latents,unsaid
    python -m longgen.backbones.tiny.train --work U --stages export-unsaid --output longgen/backbones/tiny/weights-unsaid

images 2,000 steps in 6 minutes, video 2,600 in 18, latents 3,072 clips in 6, decoder 4,000 steps in 29 and transformer 4,400
in 90, beside other work: about two hours with the last two side by side. (The first 400 steps of video ran on two threads.) causal
1,600 steps in 75 minutes, beside much other work, from the transformer before pictures. unsaid 400 steps in 40, beside more.

Where the shipped weights differ from these commands: pictures, 900 steps in 90 minutes, saw 1,280 of the clips, the first 400
steps at the learning rates of a run of 2,000, and one latent was given in 60% of the clips that have any, not in 58%. parts, 1,600
steps in 57 minutes beside much other work, began at its weights in fp16, on all clips, encoded by the shipped VAE.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from longgen.backbones import tiny_grammar
from longgen.backbones.tiny import clips
from longgen.backbones.tiny.parts import begun
from longgen.backbones.tiny.teacher_forced import TeacherForced

SHIPPED = Path(__file__).parent / "weights"
SEED = 2026
CHECKPOINT_EVERY = 200
LOG_EVERY = 50

VAE_CONFIG = dict(
    base_dim=24,
    z_dim=48,
    dim_mult=[1, 2, 4],
    num_res_blocks=1,
    attn_scales=[],
    temperal_downsample=[True, True],
    patch_size=4,
    in_channels=48,
    out_channels=48,
    scale_factor_temporal=4,
    scale_factor_spatial=16,
    latents_mean=[0.0] * 48,
    latents_std=[1.0] * 48,
)
TRANSFORMER_CONFIG = dict(
    patch_size=(1, 1, 1),
    num_attention_heads=4,
    attention_head_dim=64,
    in_channels=48,
    out_channels=48,
    text_dim=64,
    freq_dim=64,
    ffn_dim=768,
    num_layers=6,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
)
TEXT_CONFIG = dict(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0)
TEXT_TOKENS = 24  # prompts are padded with zeros to this length; the pipeline must be called with the same
FRAMES_PX = 81
CLIPS, UNSAID_CLIPS, SHARD = 3072, 1024, 256
BATCH = 12
DROPPED_PROMPTS = 0.1
CHUNK_LAT = 3
CAUSAL_BATCH = 6
CAUSAL_TIME_SHIFT = 3.0
CONTEXT_NOISE = 0.15  # the most noise on the clean past, so that a rollout forgives its own errors; the stage unsaid has none
TIME_SHIFT = 2.0
FLOW_SHIFT = 3.0
OBJECT_WEIGHT = 7.0  # pixels of the shape and its rim; the background would drown small shapes otherwise
LATENT_NOISE = 0.03
LATENT_PENALTY = 1e-4


def start_framewise(vae: AutoencoderKLWan) -> None:
    """Makes an untrained VAE a frame-wise one: causal kernels see their last tap only, temporal resampling copies.

    The earlier taps get no gradient from single frames, so left at random they would be noise when video begins.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, WanCausalConv3d) or module.kernel_size[0] != 3:
            continue
        weight = module.weight.data
        if not name.endswith("time_conv"):
            weight[:, :, :2] = 0
            continue
        eye = torch.eye(module.in_channels, device=weight.device)
        weight.zero_()
        module.bias.data.zero_()
        if module.out_channels == module.in_channels:  # down: the mean of the last two frames
            weight[:, :, 1, 0, 0] = weight[:, :, 2, 0, 0] = eye / 2
        else:  # up: both halves a copy
            weight[:, :, 2, 0, 0] = torch.cat([eye, eye])


def draw_clip(generator: torch.Generator, frames_px: int) -> tuple[Tensor, Tensor]:
    """Pixels [3, F, S, S] and weights [1, F, S, S] of one random training clip."""
    words = tiny_grammar.TRAINING[int(torch.randint(len(tiny_grammar.TRAINING), (), generator=generator))]
    scene = clips.draw_scene(words, generator)
    start = torch.rand((), generator=generator) * (FRAMES_PX - frames_px)
    video, cover = clips.render(scene, torch.arange(frames_px) + start)
    weight = 1 + (OBJECT_WEIGHT - 1) * F.max_pool2d(cover, 5, stride=1, padding=2).gt(0)
    return video.transpose(0, 1), weight.transpose(0, 1)


def draw_batch(generator: torch.Generator, frames_px: int, batch: int, device: str) -> tuple[Tensor, Tensor]:
    videos, weights = zip(*(draw_clip(generator, frames_px) for _ in range(batch)), strict=True)
    return torch.stack(videos).to(device), torch.stack(weights).to(device)


def reconstruction_loss(video: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    error = video.float() - target
    return (weight * (error.abs() + error.square())).mean()


def fit(
    stage: str,
    work: Path,
    modules: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    loss_at: Callable[[int, torch.Generator], Tensor],
    learning_rate_at: Callable[[float], float],
    ema: dict[str, nn.Module] | None = None,
    ema_decay: float = 0.995,
    seed: int = SEED,
) -> None:
    """The one training loop: `steps` steps of `loss_at(step, generator)`, restartable from `work/<stage>.pt`.

    `learning_rate_at(progress)` scales each optimizer's own rate; progress runs from 0 to 1.
    """
    path = work / f"{stage}.pt"
    generator = torch.Generator().manual_seed(seed)
    begin = 0
    if path.exists():
        saved = torch.load(path, weights_only=True, map_location="cpu")
        begin = saved["step"]
        for name, module in modules.items():
            module.load_state_dict(saved["modules"][name])
        for name, module in (ema or {}).items():
            module.load_state_dict(saved["ema"][name])
        if begin < steps:
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            generator.set_state(saved["generator"])
        print(f"{stage}: continues at step {begin} of {steps}", flush=True)
    rates = [group["initial_lr"] for o in optimizers for group in o.param_groups]
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    running, since = 0.0, time.time()
    for step in range(begin, steps):
        groups = [group for o in optimizers for group in o.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * learning_rate_at(step / steps)
        loss = loss_at(step, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for name, module in (ema or {}).items():
            for mean, now in zip(module.parameters(), modules[name].parameters(), strict=True):
                mean.data.lerp_(now.data, 1 - ema_decay)
        running += loss.item()
        if (step + 1) % LOG_EVERY == 0:
            pace = (time.time() - since) / LOG_EVERY
            left = pace * (steps - step - 1) / 60
            print(f"{stage} {step + 1}/{steps} loss {running / LOG_EVERY:.4f} {pace:.3f} s/step, {left:.1f} min left", flush=True)
            running, since = 0.0, time.time()
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            state = {
                "step": step + 1,
                "modules": {name: module.state_dict() for name, module in modules.items()},
                "ema": {name: module.state_dict() for name, module in (ema or {}).items()},
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "generator": generator.get_state(),
            }
            unfinished = path.with_suffix(".partial")
            torch.save(state, unfinished)
            os.replace(unfinished, path)


def adamw(module: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad], lr=rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = rate
    return [optimizer]


def warm_then_fall(progress: float) -> float:
    """2% of warm-up, then a straight line down to 3% of the rate."""
    return min(progress / 0.02, 1.0) * (1 - 0.97 * progress)


def gently(progress: float) -> float:
    """For weights that have been trained."""
    return 0.4 * warm_then_fall(progress)


def load_stage(vae: AutoencoderKLWan, work: Path, *stages: str) -> None:
    for stage in stages:
        if (work / f"{stage}.pt").exists():
            vae.load_state_dict(torch.load(work / f"{stage}.pt", weights_only=True, map_location="cpu")["modules"]["vae"])
            return
    raise SystemExit(f"none of the stages {', '.join(stages)} has run in {work}: run it first")


def new_vae(device: str) -> AutoencoderKLWan:
    torch.manual_seed(SEED)
    return AutoencoderKLWan(**VAE_CONFIG).to(device)


def autoencode_loss(vae: AutoencoderKLWan, target: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
    with torch.autocast(target.device.type, torch.bfloat16):
        latent = vae.encode(target).latent_dist.mode()
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        video = vae.decode(latent + LATENT_NOISE * noise).sample
    return reconstruction_loss(video, target, weight) + LATENT_PENALTY * latent.float().square().mean()


def train_images(work: Path, device: str, steps: int) -> None:
    vae = new_vae(device)
    start_framewise(vae)
    fit(
        "images", work, {"vae": vae}, adamw(vae, 3e-3), steps,
        lambda step, g: autoencode_loss(vae, *draw_batch(g, 1, 32, device), g),
        lambda progress: min(progress / 0.02, 1.0) * (1 - 0.6 * progress),
    )  # fmt: skip


def clip_shape(step: int) -> tuple[int, int]:
    """Frames and batch of a video step: three of four see 4 clips of 17 frames, the fourth 2 clips of 33."""
    return (33, 2) if step % 4 == 3 else (17, 4)


def train_video(work: Path, device: str, steps: int) -> None:
    vae = new_vae(device)
    load_stage(vae, work, "images")
    fit(
        "video", work, {"vae": vae}, adamw(vae, 1.5e-3), steps,
        lambda step, g: autoencode_loss(vae, *draw_batch(g, *clip_shape(step), device), g),
        lambda progress: min(progress / 0.02, 1.0) * (1 - 0.7 * progress),
    )  # fmt: skip


def train_decoder(work: Path, device: str, steps: int) -> None:
    vae = new_vae(device)
    load_stage(vae, work, "video")
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        target, weight = draw_batch(generator, *clip_shape(step), device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            with torch.no_grad():
                latent = vae.encode(target).latent_dist.mode()
            noise = torch.randn(latent.shape, generator=generator).to(latent)
            video = vae.decode(latent + LATENT_NOISE * noise).sample
        return reconstruction_loss(video, target, weight)

    fit("decoder", work, {"vae": vae}, adamw(vae, 1e-3), steps, loss_at, warm_then_fall)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower case, letters only, `</s>` at the end; unknown words become `<unk>`."""
    words = sorted({word for sentence in tiny_grammar.SENTENCES for word in sentence.prompt.split()})
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z]+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_TOKENS
    )


def new_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(vocab_size=vocabulary, **TEXT_CONFIG))


def encode_clips(
    work: Path, device: str, clips_count: int, sentences: Sequence[tiny_grammar.Words] = tiny_grammar.TRAINING
) -> None:
    """Writes `latents-<shard>.safetensors`: latents [SHARD, 48, 21, 4, 4] and the index of each clip's sentence."""
    vae = new_vae(device)
    load_stage(vae, work, "video")
    vae.requires_grad_(False)
    for shard in range(clips_count // SHARD):
        path = work / f"latents-{shard:03}.safetensors"
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(SEED + 1 + shard)
        latents, indices, since = [], [], time.time()
        for position in range(SHARD):
            index = (shard * SHARD + position) % len(sentences)  # every sentence equally often
            scene = clips.draw_scene(sentences[index], generator)
            video, _ = clips.render(scene, torch.arange(FRAMES_PX, dtype=torch.float32))
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                latent = vae.encode(video.transpose(0, 1)[None].to(device)).latent_dist.mode()
            latents.append(latent.float().cpu())
            indices.append(index)
        unfinished = path.with_suffix(".partial")
        save_file({"latents": torch.cat(latents), "sentences": torch.tensor(indices)}, unfinished)
        os.replace(unfinished, path)
        print(f"latents {shard + 1}/{clips_count // SHARD} shards, {(time.time() - since) / SHARD:.3f} s a clip", flush=True)


def load_clips(work: Path, scale: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised latents [CLIPS, 48, 21, 4, 4], sentence indices [CLIPS], the channels' mean and std [48] (or `scale`)."""
    shards = [load_file(path) for path in sorted(work.glob("latents-*.safetensors"))]
    if not shards:
        raise SystemExit(f"no latents in {work}: run the stage latents first")
    latents = torch.cat([shard["latents"] for shard in shards])
    mean, std = scale or (latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4)))
    latents = (latents - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
    return latents, torch.cat([shard["sentences"] for shard in shards]), mean, std


def embed(text_encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Prompt embeddings [B, TEXT_TOKENS, 64] with zeros after each prompt's end, as WanPipeline makes them."""
    return text_encoder(ids, mask).last_hidden_state * mask.unsqueeze(-1)


def muon_and_adamw(transformer: WanTransformer3DModel, text_encoder: UMT5EncoderModel) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the blocks, AdamW on everything else."""
    matrices = [p for p in transformer.blocks.parameters() if p.ndim == 2 and min(p.shape) > 1]
    ids = {id(p) for p in matrices}
    rest = [p for p in [*transformer.parameters(), *text_encoder.parameters()] if id(p) not in ids]
    muon = torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return [muon, adam]


def new_transformer(device: str) -> tuple[WanTransformer3DModel, UMT5EncoderModel, PreTrainedTokenizerFast]:
    torch.manual_seed(SEED)
    tokenizer = new_tokenizer()
    return WanTransformer3DModel(**TRANSFORMER_CONFIG).to(device), new_text_encoder(len(tokenizer)).to(device), tokenizer


def train_transformer(work: Path, device: str, steps: int) -> None:
    latents, sentences, _, _ = load_clips(work)
    transformer, text_encoder, tokenizer = new_transformer(device)
    mean_transformer, mean_text_encoder, _ = new_transformer(device)
    text = tokenizer(
        [*(words.prompt for words in tiny_grammar.TRAINING), ""],
        padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt",
    )  # fmt: skip

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        clean = latents[rows].to(device)
        prompts = sentences[rows].masked_fill(torch.rand(BATCH, generator=generator) < DROPPED_PROMPTS, -1)
        time_unit = torch.sigmoid(1.2 * torch.randn(BATCH, generator=generator))
        sigma = (TIME_SHIFT * time_unit / (1 + (TIME_SHIFT - 1) * time_unit)).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            embeds = embed(text_encoder, text.input_ids[prompts].to(device), text.attention_mask[prompts].to(device))
            velocity = transformer(noisy, sigma * 1000, embeds, return_dict=False)[0]
        return F.mse_loss(velocity.float(), noise - clean)

    modules = {"transformer": transformer, "text_encoder": text_encoder}
    means = {"transformer": mean_transformer, "text_encoder": mean_text_encoder}
    optimizers = muon_and_adamw(transformer, text_encoder)
    fit("transformer", work, modules, optimizers, steps, loss_at, warm_then_fall, ema=means)


def unpack(work: Path, device: str, amount: int) -> None:
    """Lays out the shipped weights as the finished stages video and transformer, for those that follow, unless these have run."""
    if (work / "video.pt").exists() or (work / "transformer.pt").exists():
        return
    vae = AutoencoderKLWan.from_pretrained(SHIPPED, subfolder="vae")
    text_encoder = UMT5EncoderModel.from_pretrained(SHIPPED, subfolder="text_encoder")
    transformer = WanTransformer3DModel.from_pretrained(SHIPPED, subfolder="transformer")
    means = {"transformer": transformer.state_dict(), "text_encoder": text_encoder.state_dict()}
    torch.save({"modules": {"vae": vae.state_dict()}}, work / "video.pt")
    torch.save({"ema": means}, work / "transformer.pt")


def start_at_tiny(
    work: Path, device: str, stage: str = "transformer", sentences: Sequence[tiny_grammar.Words] = tiny_grammar.TRAINING
) -> tuple[WanTransformer3DModel, WanTransformer3DModel, Tensor]:
    """The transformer of `stage`, or where that has not run of the stage transformer, one like it for the mean, and the embeddings
    [S + 1, TEXT_TOKENS, 64] of all `sentences` and of the empty prompt."""
    transformer, text_encoder, tokenizer = new_transformer(device)
    mean_transformer, _, _ = new_transformer(device)
    start = torch.load(work / "transformer.pt", weights_only=True, map_location="cpu")["ema"]
    if (work / f"{stage}.pt").exists():
        start |= torch.load(work / f"{stage}.pt", weights_only=True, map_location="cpu")["ema"]
    for module in (transformer, mean_transformer):
        module.load_state_dict(start["transformer"])
    text_encoder.load_state_dict(start["text_encoder"])
    text = tokenizer([*(words.prompt for words in sentences), ""], padding="max_length", max_length=TEXT_TOKENS,
                     return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        return transformer, mean_transformer, embed(text_encoder, text.input_ids.to(device), text.attention_mask.to(device))


def train_causal(work: Path, device: str, steps: int) -> None:
    latents, sentences, _, _ = load_clips(work)
    fit_causal("causal", work, device, steps, latents, sentences, start_at_tiny(work, device), CONTEXT_NOISE, warm_then_fall)


def train_unsaid(work: Path, device: str, steps: int) -> None:
    """From the stage causal, or the shipped tiny-causal where that has not run."""
    shipped = AutoencoderKLWan.load_config(SHIPPED, subfolder="vae")
    scale = torch.tensor(shipped["latents_mean"]), torch.tensor(shipped["latents_std"])
    latents, sentences, _, _ = load_clips(work, scale)
    started = start_at_tiny(work, device, "causal", tiny_grammar.UNSAID_TRAINING)
    if not (work / "causal.pt").exists():
        causal = WanTransformer3DModel.from_pretrained(SHIPPED.with_name("weights-causal"))
        for module in started[:2]:
            module.load_state_dict(causal.state_dict())
    fit_causal("unsaid", work, device, steps, latents, sentences, started, 0.0, gently, ema_decay=0.99)


def fit_causal(
    stage: str, work: Path, device: str, steps: int, latents: Tensor, sentences: Tensor,
    started: tuple[WanTransformer3DModel, WanTransformer3DModel, Tensor], context_noise: float,
    learning_rate_at: Callable[[float], float], ema_decay: float = 0.995,
) -> None:  # fmt: skip
    """Flow matching on chunks, each of a level of its own, from the transformers and embeddings of `started`.

    context_noise: the most noise on the clean past.
    """
    transformer, mean_transformer, embeds = started
    frames_lat, tokens = latents.shape[2], latents.shape[3] * latents.shape[4]
    forced = TeacherForced(frames_lat, tokens, CHUNK_LAT)
    for block in transformer.blocks:
        block.attn1.set_processor(forced)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (CAUSAL_BATCH,), generator=generator)
        clean = latents[rows].to(device)
        prompts = sentences[rows].masked_fill(torch.rand(CAUSAL_BATCH, generator=generator) < DROPPED_PROMPTS, -1)
        time_unit = torch.sigmoid(1.2 * torch.randn(CAUSAL_BATCH, frames_lat // CHUNK_LAT, generator=generator))
        sigma = CAUSAL_TIME_SHIFT * time_unit / (1 + (CAUSAL_TIME_SHIFT - 1) * time_unit)
        sigma = sigma.repeat_interleave(CHUNK_LAT, dim=1).to(device)  # [B, T]
        spoilt = context_noise * torch.rand(CAUSAL_BATCH, frames_lat // CHUNK_LAT, generator=generator)
        spoilt = spoilt.repeat_interleave(CHUNK_LAT, dim=1).to(device)
        noise, other = (torch.randn(clean.shape, generator=generator).to(device) for _ in range(2))
        noisy = torch.lerp(clean, noise, sigma[:, None, :, None, None])
        past = clean + spoilt[:, None, :, None, None] * other
        times = torch.cat([torch.zeros_like(sigma), sigma], dim=1).repeat_interleave(tokens, dim=1) * 1000
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            velocity = transformer(torch.cat([past, noisy], dim=2), times, embeds[prompts], return_dict=False)[0]
        return F.mse_loss(velocity[:, :, frames_lat:].float(), noise - clean)

    optimizers, means = muon_and_adamw(transformer, nn.Module()), {"transformer": mean_transformer}
    fit(stage, work, {"transformer": transformer}, optimizers, steps, loss_at, learning_rate_at, ema=means, ema_decay=ema_decay)


def train_pictures(work: Path, device: str, steps: int, stage: str, before: str, whole: float, seed: int) -> None:
    """The stages pictures and parts. before: the stage to start from, or transformer where that has not run. whole: see `begun`."""
    latents, sentences, _, _ = load_clips(work)
    transformer, mean_transformer, embeds = start_at_tiny(work, device, before)
    frames_lat, tokens = latents.shape[2], latents.shape[3] * latents.shape[4]

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        kept, known = begun(frames_lat, BATCH, whole, generator)
        clean = latents[rows][:, :, kept].to(device)
        prompts = sentences[rows].masked_fill(torch.rand(BATCH, generator=generator) < DROPPED_PROMPTS, -1)
        time_unit = torch.sigmoid(1.2 * torch.randn(BATCH, generator=generator))
        sigma = (TIME_SHIFT * time_unit / (1 + (TIME_SHIFT - 1) * time_unit)).to(device)
        unknown = torch.arange(len(kept)) >= known[:, None]  # [B, K]
        sigma = sigma[:, None] * unknown.to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        noisy = torch.lerp(clean, noise, sigma[:, None, :, None, None])
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            times = sigma.repeat_interleave(tokens, dim=1) * 1000
            velocity = transformer(noisy, times, embeds[prompts], return_dict=False)[0]
        errors = (velocity.float() - (noise - clean)).square().mean(dim=(1, 3, 4))  # [B, K]
        return errors[unknown].mean()

    optimizers = muon_and_adamw(transformer, nn.Module())
    means = {"transformer": mean_transformer}
    fit(stage, work, {"transformer": transformer}, optimizers, steps, loss_at, gently, ema=means, seed=seed)


def export(work: Path, folder: Path) -> None:
    """Writes the diffusers pipeline folder that the package ships, in fp16 safetensors."""
    _, _, mean, std = load_clips(work)
    vae = AutoencoderKLWan(**{**VAE_CONFIG, "latents_mean": mean.tolist(), "latents_std": std.tolist()})
    load_stage(vae, work, "decoder", "video")
    transformer, text_encoder, tokenizer = new_transformer("cpu")
    saved = torch.load(work / "transformer.pt", weights_only=True, map_location="cpu")["ema"]
    transformer.load_state_dict(saved["transformer"])
    text_encoder.load_state_dict(saved["text_encoder"])
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)
    WanPipeline(tokenizer, text_encoder.half(), vae.half(), scheduler, transformer.half()).save_pretrained(folder)
    print(f"export {folder}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 1e6:.1f} MB", flush=True)


def export_transformer(stage: str, work: Path, folder: Path) -> None:
    """Writes the transformer of `stage` alone, in fp16 safetensors."""
    transformer, _, _ = new_transformer("cpu")
    transformer.load_state_dict(torch.load(work / f"{stage}.pt", weights_only=True, map_location="cpu")["ema"]["transformer"])
    transformer.half().save_pretrained(folder)
    print(f"export-{stage} {folder}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 1e6:.1f} MB", flush=True)


STAGES: dict[str, tuple[Callable[..., None], int]] = {
    "images": (train_images, 2000),
    "video": (train_video, 2600),
    "latents": (encode_clips, CLIPS),
    "decoder": (train_decoder, 4000),
    "transformer": (train_transformer, 4400),
    "unpack": (unpack, 0),
    "causal": (train_causal, 1600),
    "unsaid-latents": (partial(encode_clips, sentences=tiny_grammar.UNSAID_TRAINING), UNSAID_CLIPS),
    "unsaid": (train_unsaid, 400),
    "pictures": (partial(train_pictures, stage="pictures", before="transformer", whole=1.0, seed=SEED), 900),
    "parts": (partial(train_pictures, stage="parts", before="pictures", whole=0.5, seed=SEED + 1), 1600),
}
TRANSFORMERS = ("causal", "unsaid", "pictures", "parts")  # stages whose transformer can be exported alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and encoded clips")
    parser.add_argument("--stages", default="images,video,latents,decoder,transformer,export")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("tiny"), help="folder that an export writes")
    args = parser.parse_args()
    stages = args.stages.split(",")
    exports = {"export": export} | {f"export-{stage}": partial(export_transformer, stage) for stage in TRANSFORMERS}
    if unknown := set(stages) - {*STAGES, *exports}:
        parser.error(f"no stage {', '.join(sorted(unknown))}; the stages are {', '.join([*STAGES, *exports])}")
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if stage in exports:
            exports[stage](args.work, args.output)
        else:
            run, amount = STAGES[stage]
            run(args.work, args.device, amount)


if __name__ == "__main__":
    main()
