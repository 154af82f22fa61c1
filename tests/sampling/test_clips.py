"""Co-denoised clips on every family, against a plain loop over clips around the same transformer.

Legend: B batch, T latent frames, L frames of a clip, n tokens per latent frame.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longgen import frames, planner, preset
from longgen.backbones.find import find
from longgen.backbones.settings import ModelSettings
from longgen.catalog import technique
from longgen.errors import UsageError
from longgen.loops import State, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.loading import load
from longgen.plan import Plan
from tests.backbones import family
from tests.models import small

L, T, STEPS = 4, 11, 3  # no multiple of the stride, and a dilated clip is padded
GENL = {"name": "gen-l-video", "frames": L, "stride": 2, "weights": "pyramid"}
GLCD = {"name": "glcd", "frames": L, "gamma0": 0.3}
STACKS = {"gen-l-video": GENL, "glcd": GLCD}


@pytest.fixture(scope="module")
def backbone(model_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    """backbone("ltx"): loaded once."""
    known: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in known:
            known[name] = load(find(str(model_folder(name))), ModelSettings("cpu", "fp32"))
        return known[name]

    return get


def in_batches(model: Any, count: int) -> Any:
    """`model` with `count` clips in a call."""
    other = copy.copy(model)
    other.model_settings = model.model_settings.replace(clip_batch=count)
    return other


def made(model: Any, *stack: dict[str, Any], frames_lat: int = T, steps: int = STEPS) -> Plan:
    sample = {"frames": frames.pixel_frames(frames_lat, model.spec.stride_t), "steps": steps, "size": list(family.SIZE)}
    chosen = preset.from_tables({"name": "a", "sample": sample, "technique": list(stack)}, "a")
    return planner.build(chosen, model.spec, conditions=planner.stand_in(model.spec))


def sampled(model: Any, plan: Plan, on_step: Any = None, resume: State | None = None, seed: int = family.SEED) -> Tensor:
    """The latents of `plan`, as `longgen.run` samples them."""
    generator = torch.Generator().manual_seed(seed)
    given = model.given(plan, generator)
    noise = model.noise(plan, generator)
    if plan.noise is not None:
        noise = plan.noise.mix(noise, plan.geometry, generator)
    return sample(Denoiser(model, plan, family.PROMPT, given), noise, generator, on_step or (lambda state: None), resume)


@contextmanager
def watched(model: Any) -> Iterator[tuple[list[torch.Size], list[torch.Size]]]:
    """Within it, the shapes of what the transformers are called with, and of what their self-attention is."""
    seen: list[torch.Size] = []
    attended: list[torch.Size] = []
    before = [(transformer, transformer.forward) for transformer in model.transformers]

    def watching(forward: Any) -> Any:
        def watch(**arguments: Any) -> Any:
            seen.append(arguments["hidden_states"].shape)
            return forward(**arguments)

        return watch

    def look(layer: Any, args: Any, arguments: dict[str, Any]) -> None:
        attended.append(arguments.get("hidden_states", *args[:1]).shape)

    hooks = [
        layer.register_forward_pre_hook(look, with_kwargs=True)
        for transformer in model.transformers
        for layer in model.layers(transformer)
    ]
    for transformer, forward in before:
        transformer.forward = watching(forward)
    try:
        yield seen, attended
    finally:
        for transformer, forward in before:
            transformer.forward = forward
        for hook in hooks:
            hook.remove()


# The slow reference: clips one after the other, every argument cut by hand, the mean in float64


def clips_of(stack: dict[str, Any], t: float, shift: int, frames_lat: int, length: int) -> list[tuple[list[int], list[float]]]:
    """Clips and the weights of their frames, one frame after the other."""
    if stack["name"] == "gen-l-video":
        stride, starts = stack["stride"], []
        while not starts or starts[-1] + length < frames_lat:
            starts.append(min(stride * len(starts), frames_lat - length))
        rise = [min(j + 1, length - j) for j in range(length)] if stack.get("weights") == "pyramid" else [1] * length
        clips = [([start + j for j in range(length)], list(rise)) for start in starts]
        return [(clip, [w / _held(clips, i) for i, w in zip(clip, ws, strict=True)]) for clip, ws in clips]
    stride, dilation = length // 2, math.ceil(frames_lat / length)
    gamma = stack["gamma0"] * math.exp(0.0005 * t)
    dilated = []
    for start in range(dilation):
        at = [start + dilation * j for j in range(length)]
        dilated.append(([min(i, frames_lat - 1) for i in at], [float(i < frames_lat) for i in at]))
    starts = sorted({max(0, min(shift + k * stride, frames_lat - length)) for k in range(-1, frames_lat)})
    local = [([start + j for j in range(length)], [1.0] * length) for start in starts]
    return [
        (clip, [part * w / _held(clips, i) for i, w in zip(clip, ws, strict=True)])
        for part, clips in ((gamma, dilated), (1 - gamma, local))
        for clip, ws in clips
    ]


def _held(clips: list[tuple[list[int], list[float]]], frame: int) -> float:
    return sum(w for clip, ws in clips for i, w in zip(clip, ws, strict=True) if i == frame)


def cut(name: str, arguments: dict[str, Any], clip: list[int], frames_lat: int) -> dict[str, Any]:
    """The arguments of a call for `clip` alone."""
    own, x = dict(arguments), arguments["hidden_states"]
    if name.startswith("ltx"):  # [B, T n, C]
        by_frame = x.reshape(len(x), frames_lat, -1, x.shape[2])
        own["hidden_states"] = torch.cat([by_frame[:, i] for i in clip], dim=1)
        if name == "ltx":
            return own | {"num_frames": len(clip)}
        return own | {"video_coords": arguments["video_coords"][:, :, : own["hidden_states"].shape[1]]}
    if name.startswith("cogvideox"):  # [B, T, C, h, w], or two for each of the T
        own["hidden_states"] = x.unflatten(1, (frames_lat, -1))[:, clip].flatten(1, 2)
        if name != "cogvideox-2b":
            tokens = len(arguments["image_rotary_emb"][0]) // frames_lat * len(clip)
            own["image_rotary_emb"] = tuple(table[:tokens].clone() for table in arguments["image_rotary_emb"])
        return own
    own["hidden_states"] = torch.stack([x[:, :, i] for i in clip], dim=2)  # [B, C, T, h, w]
    if arguments["timestep"].ndim == 2:  # of tokens or frames
        own["timestep"] = arguments["timestep"][:, : arguments["timestep"].shape[1] // frames_lat * len(clip)]
    return own


@contextmanager
def first_as_others(model: Any) -> Iterator[None]:
    """HunyuanVideo-I2V modulates the first frame of what it gets as a clean one, which that of a later clip is not."""
    hook = model.pipe.transformer.time_text_embed.register_forward_hook(lambda module, given, made: (made[0], made[0]))
    try:
        yield
    finally:
        hook.remove()


def by_clips(model: Any, name: str, stack: dict[str, Any], steps: int = STEPS) -> Tensor:
    """The stock pipeline for T frames on transformers that are shown one clip at a time."""
    plain = made(model, steps=steps)
    generator = torch.Generator().manual_seed(family.SEED)
    given = model.given(plain, generator)
    noise = model.noise(plain, generator)
    shifts = torch.randint(L // 2 if stack["name"] == "glcd" else 1, (steps,), generator=generator).tolist()
    times: list[float] = []

    def looping(forward: Any) -> Any:
        def loop(**arguments: Any) -> Any:
            t = float(arguments["timestep"].flatten()[0])
            times.extend([t] * (t not in times))
            x = arguments["hidden_states"]
            axis = 1 if name.startswith(("ltx", "cogvideox")) else 2
            tokens = x.shape[axis] // T  # rows of a frame on that axis
            total = model.zeros(arguments).double()
            for clip, weights in clips_of(stack, t, shifts[len(times) - 1], T, L):
                with first_as_others(model) if name == "hunyuan-i2v" and clip[0] else nullcontext():
                    output = forward(**cut(name, arguments, clip, T))[0].double()
                for j, (frame, weight) in enumerate(zip(clip, weights, strict=True)):
                    own = output.narrow(axis, j * tokens, tokens)
                    total.narrow(axis, frame * tokens, tokens).add_(own, alpha=weight)
            return (total.to(x.dtype),)

        return loop

    before = [(transformer, transformer.forward) for transformer in model.transformers]
    for transformer, forward in before:
        transformer.forward = looping(forward)
    try:
        final = sample(Denoiser(model, plain, family.PROMPT, given), noise, generator)
    finally:
        for transformer, forward in before:
            transformer.forward = forward
    assert len(times) == steps
    return final


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(
    "name", [name for name in small.ALL if name in small.SILENT and "hunyuan15" not in name]
)  # its text: 1,985 tokens
def test_clips_are_as_a_plain_loop_makes_them(backbone: Callable[[str], Any], name: str, stack: str) -> None:
    """One clip a call and three; and the transformer never sees more than the clips of a call."""
    model = backbone(name)
    expected, tokens = by_clips(model, name, STACKS[stack]), math.prod(made(model).grid[1:])
    assert (expected - sampled(model, made(model))).abs().max() > 1e-2  # clips are another video
    results = []
    for count in (1, 3):
        with watched(model) as (seen, attended):
            results.append(sampled(in_batches(model, count), made(model, STACKS[stack])))
        guided = 2 if small.family_of(name).batches_guidance else 1
        assert {shape[1] for shape in attended} == {L * tokens}
        assert max(shape[0] for shape in attended) == count * guided
        assert max(shape[0] for shape in seen) == count * guided
    print(f"{stack} on {name}: {[f'{(one - expected).abs().max():.1e}' for one in results]}")
    assert all((one - expected).abs().max() < 1e-5 for one in results)
    assert (results[0] - results[1]).abs().max() < 1e-5


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", [name for name in small.ALL if name in small.SILENT])
def test_a_video_of_one_clip_is_the_stock_pipeline_bit_for_bit(backbone: Callable[[str], Any], name: str, stack: str) -> None:
    model = backbone(name)
    second = {"guidance_scale_2": model.spec.guidance_scale_2} if model.spec.experts == 2 else {}
    for frames_lat in (L, L - 1):  # as long as a clip, and shorter
        one = made(model, STACKS[stack], frames_lat=frames_lat)
        assert one.call_geometry.frames_lat == frames_lat
        assert one.calls == 1
        assert any("changes nothing" in note for note in one.notes)
        stock = family.stock_call(model.pipe, one, output_type="latent", max_sequence_length=model.spec.text_tokens, **second,
                                  **family.pictures_of(one))  # fmt: skip
        assert torch.equal(sampled(model, one), model.unpacked(stock, one))


@pytest.mark.parametrize("stack", STACKS)
def test_what_the_model_sees_does_not_grow_with_the_video(backbone: Callable[[str], Any], stack: str) -> None:
    model, most = backbone("wan"), []
    for frames_lat in (2 * L, 4 * L):
        long = made(model, STACKS[stack], frames_lat=frames_lat, steps=2)
        with watched(model) as (seen, attended):
            sampled(in_batches(model, 2), long)
        most.append((max(shape[:3].numel() for shape in seen), max(shape[:2].numel() for shape in attended)))
    channels, tokens = model.spec.latent_channels, math.prod(long.grid[1:])
    assert most == [(2 * channels * L, 2 * L * tokens)] * 2


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", ["wan", "cogvideox", "ltx"])  # UniPC, DPM with noise at every step, Euler
def test_resuming_in_the_middle_gives_the_same_bits(backbone: Callable[[str], Any], name: str, stack: str) -> None:
    model = backbone(name)
    one = made(model, STACKS[stack], steps=4)
    states: list[State] = []
    whole = sampled(model, one, lambda state: states.append(copy.deepcopy(state)))
    for state in states:
        with watched(model) as (seen, _):
            assert torch.equal(sampled(model, one, resume=state), whole), f"resumed after step {state.done}"
        assert bool(seen) == (state.done < 4)


@pytest.mark.parametrize("name", STACKS)
def test_an_error_leaves_nothing_behind(backbone: Callable[[str], Any], name: str) -> None:
    model = backbone("wan")
    plain, forward = sampled(model, made(model)), model.pipe.transformer.forward

    def stop(state: State) -> None:
        raise family.StoppedError

    with pytest.raises(family.StoppedError):
        sampled(model, made(model, STACKS[name], {"name": "anchor"}), stop)
    assert model.step_state.clips is None
    assert model.pipe.transformer.forward == forward
    assert torch.equal(sampled(model, made(model)), plain)


@pytest.mark.parametrize("name", [name for name in small.PLAIN if name in small.SILENT])
def test_clips_in_bf16(model_folder: Callable[[str], Path], backbone: Callable[[str], Any], name: str) -> None:
    half = family.loaded(model_folder(name), "bf16")
    one = made(half, GLCD, steps=2)
    latents = sampled(half, one)
    assert latents.dtype == sampled(half, made(half, steps=2)).dtype
    change = (latents.float() - sampled(backbone(name), one)).abs().mean()
    print(f"{name}: bf16 changes the latents by {change:.1e} in the mean")
    assert change < 0.05


# Step caches


def block_calls(model: Any, one: Plan) -> tuple[Tensor, int, int]:
    """The latents of `one`, and calls of the first and of the last layer."""
    calls: Counter[int] = Counter()
    layers = [model.layers(transformer)[place] for transformer in model.transformers for place in (0, -1)]
    hooks = [layer.register_forward_hook(lambda *_, place=index % 2: calls.update([place])) for index, layer in enumerate(layers)]
    latents = sampled(model, one)
    for hook in hooks:
        hook.remove()
    return latents, calls[0], calls[1]


@pytest.mark.parametrize("name", ["wan", "cogvideox", "hunyuan"])
def test_every_batch_of_clips_has_its_own_cache(
    backbone: Callable[[str], Any], model_folder: Callable[[str], Path], name: str
) -> None:
    """Clips side by side do not know of each other, nor does a cache: it skips for each clip what it skips for the clip alone."""
    cached = load(find(str(model_folder(name))), ModelSettings("cpu", "fp32", cache="first-block:0.9"))
    never = load(find(str(model_folder(name))), ModelSettings("cpu", "fp32", cache="first-block:0.000001"))
    one = made(cached, GENL | {"stride": L}, frames_lat=3 * L, steps=8)
    branches = small.calls_per_step(name)
    plain = sampled(backbone(name), one)
    latents, first, last = block_calls(never, one)
    assert first == last == 3 * 8 * branches
    assert torch.equal(latents, plain)
    latents, first, last = block_calls(cached, one)
    print(f"{name}: {first} calls of the first block, {last} of the last, changed by {(latents - plain).abs().max():.1e}")
    assert first == 3 * 8 * branches
    assert 3 * branches <= last < first
    assert torch.equal(latents, block_calls(cached, one)[0])  # each run begins anew


def test_clips_cached_apart_are_as_each_alone(model_folder: Callable[[str], Path]) -> None:
    cached = load(find(str(model_folder("wan"))), ModelSettings("cpu", "fp32", cache="first-block:0.9"))
    one = made(cached, GENL | {"stride": L}, frames_lat=2 * L, steps=8)
    noise = torch.randn(cached.latent_shape(one), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator()
    together = sample(Denoiser(cached, one, family.PROMPT), noise, generator)
    alone = made(cached, frames_lat=L, steps=8)
    for clip in (slice(0, L), slice(L, 2 * L)):
        single = sample(Denoiser(cached, alone, family.PROMPT), noise[:, :, clip], generator)
        assert (together[:, :, clip] - single).abs().max() < 1e-5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_clips_that_move_take_nothing_from_the_cache(model_folder: Callable[[str], Path], count: int) -> None:
    """Their number changes too, and with it the shape of the last batch."""
    cached = load(find(str(model_folder("wan"))), ModelSettings("cpu", "fp32", cache="first-block:0.99", clip_batch=count))
    plain = load(find(str(model_folder("wan"))), ModelSettings("cpu", "fp32", clip_batch=count))
    generator = torch.Generator().manual_seed(family.SEED)
    moving = made(cached, GLCD, frames_lat=10, steps=6)
    cached.noise(moving, generator)
    shifts = torch.randint(L // 2, (6,), generator=generator).tolist()
    moved = [before != now for before, now in zip([None, *shifts], shifts, strict=False)]
    assert 1 < sum(moved) < 6
    by_step = [2 * math.ceil(len(clips_of(GLCD, 0.0, shift, 10, L)) / count) for shift in shifts]
    assert len(set(by_step)) > 1 or count > 1
    latents, first, last = block_calls(cached, moving)
    print(f"{count} clips a call, shifts {shifts}: {first} calls of the first block, {last} of the last")
    assert first == sum(by_step)
    assert sum(calls for calls, move in zip(by_step, moved, strict=True) if move) <= last < first
    assert (latents - sampled(plain, moving)).abs().max() > 1e-3
    _, first, last = block_calls(cached, made(cached, GLCD | {"shift": False}, frames_lat=10, steps=6))
    assert last < first / 2


# With other techniques


def test_frame_plans_are_made_for_clips(backbone: Callable[[str], Any]) -> None:
    model = backbone("wan")
    genl = {"name": "gen-l-video", "frames": 9}
    window = {"name": "window", "frames": 3}
    plain, windowed, wide = (
        made(model, genl, *more, frames_lat=20) for more in ((), (window,), ({"name": "window", "frames": 9},))
    )
    assert windowed.branches()["main"][0].frames_lat == 9
    results = [sampled(model, one) for one in (plain, windowed, wide)]
    assert (results[0] - results[1]).abs().max() > 1e-3
    assert torch.equal(results[0], results[2])  # a window as long as the clip
    assert (results[1] - sampled(in_batches(model, 3), windowed)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "stack", [[{"name": "window", "frames": 3}], [{"name": "freelong", "window": 3}]], ids=["window", "freelong"]
)
@pytest.mark.parametrize("name", ["wan", "hunyuan"])  # the schedule of LTX goes by the length, CogVideoX draws noise by shape
def test_a_stack_on_clips_side_by_side_is_the_stack_on_each(
    backbone: Callable[[str], Any], name: str, stack: list[dict[str, Any]]
) -> None:
    model = in_batches(backbone(name), 2)
    clips, single = made(model, GENL | {"stride": L}, *stack, frames_lat=2 * L), made(model, *stack, frames_lat=L)
    assert (sampled(model, clips) - sampled(model, made(model, GENL | {"stride": L}, frames_lat=2 * L))).abs().max() > 1e-3
    noise = torch.randn(model.latent_shape(clips), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator()
    together = sample(Denoiser(model, clips, family.PROMPT), noise, generator)
    for clip in (slice(0, L), slice(L, 2 * L)):
        alone = sample(Denoiser(model, single, family.PROMPT), noise[:, :, clip], generator)
        assert (together[:, :, clip] - alone).abs().max() < 1e-5


def test_freenoise_gives_the_noise_of_the_whole_video(backbone: Callable[[str], Any]) -> None:
    model = backbone("wan")
    genl = {"name": "gen-l-video", "frames": 5}
    stacked = made(model, genl, {"name": "freenoise", "window": 5, "stride": 2}, frames_lat=25)
    assert not stacked.table.any()  # a clip is one window
    assert not any("freenoise changes nothing" in note for note in stacked.notes)
    generator = torch.Generator().manual_seed(family.SEED)
    independent = model.noise(stacked, generator)
    assert stacked.noise is not None
    noise = stacked.noise.mix(independent, stacked.geometry, generator)
    assert noise.shape == model.latent_shape(stacked)
    expected = sample(Denoiser(model, stacked, family.PROMPT), noise, generator)
    assert torch.equal(sampled(model, stacked), expected)
    assert (expected - sampled(model, made(model, genl, frames_lat=25))).abs().max() > 1e-2


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("key", ["layers", "steps"])
def test_layers_and_steps_do_not_concern_the_order_of_sampling(backbone: Callable[[str], Any], name: str, key: str) -> None:
    given = {"layers": [0], "steps": [0.0, 0.5]}[key]
    with pytest.raises(
        UsageError, match=rf"{name}\.{key} cannot be set: a technique of the slot sampling applies to all"
    ) as caught:
        made(backbone("wan"), {"name": name, key: given})
    assert caught.value.hint == f"leave {name}.{key} out"


def test_two_orders_of_sampling_are_refused(backbone: Callable[[str], Any]) -> None:
    with pytest.raises(UsageError, match="both decide the order of sampling"):
        made(backbone("wan"), GENL, GLCD)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("wrong", [0, -1, 1.5, "all"])
def test_a_clip_has_whole_frames(name: str, wrong: Any) -> None:
    with pytest.raises(UsageError, match=rf"{name}.frames = {wrong!r}"):
        preset.from_tables({"name": "a", "technique": [{"name": name, "frames": wrong}]}, "a")
    assert technique(name)(frames=1).frames_per_call(9, 21) == 1
