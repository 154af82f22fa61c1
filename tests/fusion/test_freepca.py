"""FreePCA against an explicit principal component analysis of every window, its branches, and its noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, UniPCMultistepScheduler
from pydantic import ValidationError
from torch import Tensor

from longgen import cost, planner, preset
from longgen.backbones.wan import WAN_1_3B
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, Pass, distances, full_attention
from longgen.fusion import freepca
from longgen.fusion.freepca import FreePca, covariance, mixing
from longgen.plan import Plan
from longgen.technique import Step

STEP = Step(0, (1000.0, 500.0))
CLIP = Geometry(81, 21, (1.0,))


def starts(frames_lat: int, window: int, stride: int) -> list[int]:
    regular = list(range(0, frames_lat - window + 1, stride))
    return regular if regular[-1] + window == frames_lat else [*regular, frames_lat - window]


def moving(batch: int, frames_lat: int, values: int, seed: int) -> Tensor:
    """Features [B, T, values] that change smoothly over time around a large mean, as attention outputs do."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(frames_lat, dtype=torch.float64)[:, None]
    waves = torch.cos(time * torch.linspace(0.1, 2.5, 12, dtype=torch.float64)) * torch.linspace(3, 0.2, 12, dtype=torch.float64)
    noise = 0.1 * torch.randn(batch, frames_lat, values, generator=generator, dtype=torch.float64)
    mixed = waves @ torch.randn(batch, 12, values, generator=generator, dtype=torch.float64)
    return 5 + mixed + noise


def explicit_pca(local: Tensor, global_: Tensor, components: int) -> Tensor:
    """The reference's steps on one window [W, values], in double precision: rows = values, columns = frames."""
    one, other = local.double().T, global_.double().T
    one_centred, other_centred = one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True)
    _, vectors = torch.linalg.eigh(other_centred.T @ other_centred / (len(local) - 1))
    one_projected, other_projected = one_centred @ vectors, other_centred @ vectors
    similarity = []
    for i in range(1, len(local)):  # the first is the null eigenvector: the constant
        similarity.append((torch.cosine_similarity(one_projected[:, i], other_projected[:, i], dim=0).item(), i))
    chosen = [i for _, i in sorted(similarity, reverse=True)[:components]]
    mixed = one_projected.clone()
    mixed[:, chosen] = other_projected[:, chosen]
    return (mixed @ vectors.T + other.mean(1, keepdim=True)).T


@dataclass
class Outputs:
    """What the executor gives a fusion: the global branch [B, N, C], and each window [B, W n, C] (`longgen.technique.Attend`)."""

    global_: Tensor
    windows: list[Tensor]

    def __call__(self, branch: str) -> Tensor:
        assert branch == "global"
        return self.global_.clone()

    def apart(self, branch: str, groups: int) -> Iterator[tuple[int, Tensor]]:
        assert (branch, groups) == ("local", len(self.windows))
        return ((index, window.clone()) for index, window in reversed([*enumerate(self.windows)]))

    def of(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        return Outputs(change(self.global_), [change(window) for window in self.windows])


def by_windows(outputs: Outputs, first: list[int], window: int, components: int, frames_lat: int) -> Tensor:
    """The definition on [B, N, C]: every window fused on its own, accumulated, divided by how many windows a frame is in."""
    batch, tokens, channels = outputs.global_.shape
    whole = outputs.global_.double().view(batch, frames_lat, -1)
    total, count = torch.zeros_like(whole), torch.zeros(frames_lat, 1, dtype=torch.float64)  # components < 0: nothing is fused
    for w, (start, local) in enumerate(zip(first, outputs.windows, strict=True)):
        inside = slice(start, start + window)
        for sample in range(batch):
            one, other = local.double().view(batch, window, -1)[sample], whole[sample, inside]
            total[sample, inside] += explicit_pca(one, other, min(w, components)) if w and components >= 0 else one
        count[inside] += 1
    return (total / count).view(batch, tokens, channels)


def case(technique: FreePca, clip: Geometry, per_frame: int, channels: int, seed: int = 0) -> Outputs:
    """Outputs of the global branch and of every window, each of its own."""
    settled = technique.settled(clip)
    assert settled.window is not None
    assert settled.stride is not None
    first = starts(clip.frames_lat, settled.window, settled.stride)
    whole, *others = (moving(2, clip.frames_lat, per_frame * channels, seed + index) for index in range(1 + len(first)))
    windows = [z[:, start : start + settled.window].reshape(2, -1, channels) for start, z in zip(first, others, strict=True)]
    return Outputs(whole.view(2, -1, channels), windows)


@pytest.mark.parametrize(
    ("frames_lat", "sets"),
    [
        (81, {}),
        (64, {"window": 16, "stride": 4}),
        (30, {"window": 8, "stride": 3}),
        (30, {"window": 8, "stride": 8, "components": 0}),
        (30, {"window": 8, "stride": 5, "components": 7}),
        (5, {"window": 2, "stride": 1, "components": 1}),
    ],
    ids=str,
)
def test_equals_explicit_pca(frames_lat: int, sets: dict[str, int]) -> None:
    clip = Geometry(frames_lat, 21 if frames_lat == 81 else 4, (1.0,))
    technique = FreePca(**sets)  # type: ignore[arg-type]
    settled = technique.settled(clip)
    assert settled.window is not None
    assert settled.stride is not None
    outputs = case(technique, clip, 6, 5)
    first = starts(frames_lat, settled.window, settled.stride)
    fused = settled.fuse(outputs, STEP, (frames_lat, 2, 3))
    error = (fused - by_windows(outputs, first, settled.window, technique.components, frames_lat)).abs().max()
    print(f"{frames_lat} frames {sets}: {error:.1e}")
    assert error < 1e-11


def test_single_precision_chooses_and_mixes_alike() -> None:
    technique = FreePca()
    singles = case(technique, CLIP, 6, 5).of(Tensor.float)
    fused = technique.settled(CLIP).fuse(singles, STEP, (81, 2, 3))
    exact = by_windows(singles, starts(81, 21, 5), 21, 3, 81)
    print(f"float32: {(fused - exact).abs().max():.1e} on values up to {exact.abs().max():.0f}")
    assert fused.dtype == torch.float32
    assert (fused - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("changes", [0.3, 1.0, 9.0], ids="eigenproblems wait with {} clips of windows".format)
@pytest.mark.parametrize(
    ("frames_lat", "sets"),
    [(81, {}), (30, {"window": 8, "stride": 8, "components": 0}), (30, {"window": 8, "stride": 5, "components": 7}),
     (5, {"window": 2, "stride": 1, "components": 1})],
    ids=str,
)  # fmt: skip
def test_windows_at_once_equal_explicit_pca(
    frames_lat: int, sets: dict[str, int], changes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator: eigenproblems of several windows at once, products in single precision."""
    monkeypatch.setattr(freepca, "CHANGES", changes)
    solved, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrices: solved.append(len(matrices)) or eigh(matrices))
    clip, technique = Geometry(frames_lat, 21 if frames_lat == 81 else 4, (1.0,)), FreePca(**sets)  # type: ignore[arg-type]
    settled = technique.settled(clip)
    assert settled.window is not None
    assert settled.stride is not None
    outputs = case(technique, clip, 6, 5).of(Tensor.float)
    first = starts(frames_lat, settled.window, settled.stride)
    exact = by_windows(outputs, first, settled.window, technique.components, frames_lat)
    solved.clear()
    fused = settled.fuse_at_once(outputs, outputs("global"), (frames_lat, 2, 3))
    assert (fused - exact).abs().max() < 1e-5 * exact.abs().max()
    assert sum(solved) == 2 * (len(first) - 1)  # of two samples
    assert max(solved) <= 2 * max(1, changes * frames_lat / settled.window)
    assert changes < 9 or len(solved) == 1


def test_covariances_in_single_precision_are_within_a_millionth_of_the_energy() -> None:
    one, other = (moving(2, 8, 4000, seed).float().view(2, 8, 20, 200) for seed in (1, 2))
    mean = other.mean(dim=1, dtype=torch.float32)
    products = mean.new_empty(1, len(one) * one.shape[2], 2 * one.shape[1], 2 * one.shape[1])
    freepca.products_of_frames(one, other, mean, out=products[0])
    (of_samples,) = freepca.covariances(products, len(one))
    centring = torch.block_diag(*[torch.eye(8, dtype=torch.float64) - 1 / 8] * 2)
    for sample in (0, 1):
        exact = covariance(one[sample].flatten(1), other[sample].flatten(1))
        assert (centring @ of_samples[sample] @ centring - exact).abs().max() < 1e-6 * exact.trace()
        matrices = freepca.mixing_at_once(of_samples[None], (3,))
        assert (matrices[0, sample] - mixing(exact, 3) + torch.eye(8)).abs().max() < 1e-4


def test_components_without_energy_come_last_at_once() -> None:
    time = torch.arange(8, dtype=torch.float64)
    one = torch.cos(math.pi * (time + 0.5) / 8)[:, None] * torch.ones(1, 5, dtype=torch.float64)
    matrices = freepca.mixing_at_once(covariance(one, 0.5 * one)[None, None], (1,))
    assert (matrices[0, 0] - mixing(covariance(one, 0.5 * one), 1) + torch.eye(8)).abs().max() < 1e-12
    still = torch.ones(8, 5, dtype=torch.float64)
    assert torch.isfinite(freepca.mixing_at_once(covariance(still, still)[None, None], (3,))).all()


def test_each_sample_chooses_its_own_components() -> None:
    technique, grid = FreePca(), (81, 2, 3)
    outputs = case(technique, CLIP, 6, 5)
    together = technique.settled(CLIP).fuse(outputs, STEP, grid)
    for sample in (0, 1):
        alone = technique.settled(CLIP).fuse(outputs.of(lambda z, at=sample: z[at : at + 1]), STEP, grid)  # type: ignore[misc]
        assert torch.allclose(together[sample], alone[0], rtol=0, atol=1e-12)


def test_the_mixing_matrix_is_a_projection_that_keeps_the_mean() -> None:
    one, other = moving(1, 21, 300, 1)[0], moving(1, 21, 300, 2)[0]
    for components in (0, 1, 3, 20):
        matrix = mixing(covariance(one, other), components)
        assert matrix.trace().item() == pytest.approx(components + 1)
        assert (matrix @ matrix - matrix).abs().max() < 1e-12
        assert (matrix @ torch.ones(21, dtype=torch.float64) - 1).abs().max() < 1e-12
    assert (matrix - torch.eye(21)).abs().max() < 1e-12  # all components are the global branch itself


def test_the_component_on_which_branches_agree_comes_first() -> None:
    """Two motions of different energy; the branches share the weaker one and have the stronger one with opposite signs."""
    time = torch.arange(8, dtype=torch.float64)
    strong, weak = torch.cos(math.pi * (time + 0.5) / 8), torch.cos(math.pi * 2 * (time + 0.5) / 8)
    a, b = torch.eye(2, dtype=torch.float64)
    one, other = (sign * 9 * strong[:, None] * a + weak[:, None] * b for sign in (-1, 1))
    shared = weak / weak.norm()
    expected = torch.outer(shared, shared) + 1 / 8
    assert (mixing(covariance(one, other), 1) - expected).abs().max() < 1e-12


def test_components_without_energy_come_last() -> None:
    """Static frames leave nothing to compare: no NaN, and the real component wins over empty ones with opposite sign."""
    time = torch.arange(8, dtype=torch.float64)
    one = torch.cos(math.pi * (time + 0.5) / 8)[:, None] * torch.ones(1, 5, dtype=torch.float64)
    matrix = mixing(covariance(one, 0.5 * one), 1)
    direction = one[:, 0] / one[:, 0].norm()
    assert (matrix - torch.outer(direction, direction) - 1 / 8).abs().max() < 1e-12
    still = torch.ones(8, 5, dtype=torch.float64)
    assert torch.isfinite(mixing(covariance(still, still), 3)).all()


def test_covariance_in_pieces_equals_covariance_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = moving(1, 8, 100, 1)[0].float(), moving(1, 8, 100, 2)[0].float()
    both = torch.cat([x.double() - x.double().mean(0) for x in (one, other)])
    monkeypatch.setattr(freepca, "COLUMNS", 7)
    assert torch.allclose(covariance(one, other), both @ both.T, rtol=1e-12, atol=1e-12)


def test_equal_branches_are_themselves_to_rounding() -> None:
    x = moving(2, 81, 30, 1).view(2, -1, 5)
    windows = [x[:, 6 * start : 6 * (start + 21)] for start in starts(81, 21, 5)]
    fused = FreePca().settled(CLIP).fuse(Outputs(x, windows), STEP, (81, 2, 3))
    # every window reads the same frames, so the mean over windows is the mean of equal values
    assert (fused - x).abs().max() < 1e-13 * x.abs().max()


@pytest.mark.parametrize(("frames_lat", "window", "stride"), [(81, None, None), (40, 9, 9), (31, 9, 4), (22, 21, 1)])
def test_the_local_branch_has_a_pass_for_every_window(frames_lat: int, window: int | None, stride: int | None) -> None:
    clip = Geometry(frames_lat, 21, (1.0,))
    technique = FreePca(window=window, stride=stride)
    branches = technique.branches(full_attention(frames_lat), clip, 0, 10)
    assert list(branches) == ["global", "local"]
    length = window or 21
    for one, start in zip(branches["local"].passes, starts(frames_lat, length, stride or 5), strict=True):
        block = np.zeros(frames_lat, dtype=bool)
        block[start : start + length] = True
        assert (one.visible == block[:, None] & block).all()
        assert (one.weight == block).all()


def test_after_the_split_the_mean_over_windows_of_local_attention() -> None:
    frame_plan = FramePlan((Pass(distances(30), np.ones((30, 30), dtype=bool), np.full(30, 0.25)),
                            Pass(distances(30) + 1, np.ones((30, 30), dtype=bool), np.full(30, 0.75))))  # fmt: skip
    technique = FreePca(window=8, stride=3, split=0.75)
    names = [list(technique.branches(frame_plan, Geometry(30, 8, (1.0,)), step, 50)) for step in range(50)]
    assert names == [["global", "local"]] * 37 + [["local"]] * 13
    local = technique.branches(frame_plan, Geometry(30, 8, (1.0,)), 49, 50)["local"]
    assert local.logit_scale == 1
    total = np.zeros((30, 30))  # weight that frame i gives to the windows in which it sees frame j
    for one in local.passes:
        total += one.weight[:, None] * one.visible
    expected, count = np.zeros((30, 30)), np.zeros((30, 1))
    for start in starts(30, 8, 3):
        expected[start : start + 8, start : start + 8] += 1
        count[start : start + 8] += 1
    assert np.abs(total - expected / count).max() < 1e-15
    assert sum(one.weight for one in local.passes) == pytest.approx(np.ones(30))
    assert {float(one.rel[0, 0]) for one in local.passes} == {0.0, 1.0}


SCHEDULES = {  # timesteps of 50 steps
    "the authors'": DDIMScheduler(steps_offset=1),
    "CogVideoX": CogVideoXDDIMScheduler(timestep_spacing="trailing"),
    "no shift": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0),
    "Wan 2.1": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "shift 8": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0),
}


@pytest.mark.parametrize(
    ("name", "until", "fused"),
    [("the authors'", 250.0, 37), ("CogVideoX", 250.0, 38), ("no shift", 250.0, 38), ("Wan 2.1", 250.0, 46), ("shift 8", 250.0, 49),
     ("the authors'", 500.0, 25), ("Wan 2.1", 1000.0, 0), ("Wan 2.1", 0.0, 50)],
)  # fmt: skip
def test_fusing_ends_by_the_timestep_that_the_model_is_told(name: str, until: float, fused: int) -> None:
    """A step above `until` is the definition; a later one is the mean over windows, and its global branch is not computed."""
    SCHEDULES[name].set_timesteps(50)
    timesteps = tuple(SCHEDULES[name].timesteps.tolist())
    clip, grid = Geometry(12, 4, (1.0,)), (12, 1, 2)
    technique = FreePca(until=until)
    assert set(map(tuple, (technique.branches(full_attention(12), clip, step, 50) for step in range(50)))) == {("global", "local")}
    outputs = case(technique, clip, 2, 3)
    first = starts(12, 4, 1)
    both, alone = by_windows(outputs, first, 4, 3, 12), by_windows(outputs, first, 4, -1, 12)
    assert (both - alone).abs().max() > 0.1
    local = Outputs(torch.full_like(outputs.global_, torch.nan), outputs.windows)
    for step in range(50):
        found = technique.settled(clip).fuse(outputs if step < fused else local, Step(step, timesteps), grid)
        assert (found - (both if step < fused else alone)).abs().max() < 1e-11, step


def test_a_cost_counts_the_global_branch_where_it_is_fused_without_a_shift() -> None:
    def attended(*sets: str) -> float:
        return cost.attention_ratio(planner.build(preset.load("freepca", sets, preset.Sample(frames=321)), WAN_1_3B))

    local, everywhere = attended("freepca.split=0"), attended("freepca.split=1")
    assert everywhere == pytest.approx(local + 1)
    assert attended() == pytest.approx(local + 0.75)
    assert attended("freepca.until=500") == pytest.approx(local + 0.5)
    assert attended("freepca.split=0.75") == pytest.approx(local + 37 / 50)


def test_two_ends_of_fusing_are_refused() -> None:
    with pytest.raises(UsageError, match=r"freepca.until = 300 and freepca.split = 0.5 both set when fusion ends"):
        preset.load("freepca", ["freepca.until=300", "freepca.split=0.5"])


@pytest.mark.parametrize(("split", "fused"), [(0.0, 0), (0.5, 5), (0.75, 7), (0.7, 7), (1.0, 10)])
def test_split(split: float, fused: int) -> None:
    steps = [len(FreePca(split=split).branches(full_attention(81), CLIP, step, 10)) > 1 for step in range(10)]
    assert steps == [True] * fused + [False] * (10 - fused)


def test_entropy_scales_the_global_branch_alone() -> None:
    sixteen = FreePca().branches(full_attention(64), Geometry(64, 16, (1.0,)), 0, 10)
    assert sixteen["global"].logit_scale == pytest.approx(1.2247, abs=1e-4)
    assert FreePca().branches(full_attention(81), CLIP, 0, 10)["global"].logit_scale == pytest.approx(1.201, abs=1e-3)
    assert sixteen["local"].logit_scale == 1
    assert FreePca(entropy=False).branches(full_attention(64), Geometry(64, 16, (1.0,)), 0, 10)["global"].is_stock


@pytest.mark.parametrize(("frames_lat", "window"), [(1, None), (21, None), (40, 40)])
def test_one_window_is_the_plan_itself(frames_lat: int, window: int | None) -> None:
    frame_plan = full_attention(frames_lat)
    branches = FreePca(window=window).branches(frame_plan, Geometry(frames_lat, 21, (1.0,)), 0, 10)
    assert list(branches.values()) == [frame_plan]


def test_operations_count_windows_but_the_first() -> None:
    settled = FreePca(window=8, stride=3).settled(Geometry(30, 8, (1.0,)))
    assert settled.flops((30, 2, 3), 5) == 8 * 10 * 64 * 30  # nine windows: 0, 3, .. 21, 22


@pytest.mark.parametrize(("frames_lat", "window"), [(32, None), (29, None), (17, 5), (81, 21)])
def test_noise_equals_the_sequential_reference(frames_lat: int, window: int | None) -> None:
    length = window or 8
    noise = torch.randn(2, 3, frames_lat, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixed = FreePca(window=window, stride=2).mix(
        noise, Geometry(frames_lat, min(8, length), (1.0,)), torch.Generator().manual_seed(1)
    )
    rest = torch.randn(2, 3, -frames_lat % length, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.cat([noise, rest], dim=2)
    for start in range(length, frames_lat, length):
        block, previous = expected[:, :, start : start + length], expected[:, :, start - length : start]
        expected[:, :, start : start + length] = previous.mean(2, keepdim=True) + block - block.mean(2, keepdim=True)
    assert (mixed - expected[:, :, :frames_lat]).abs().max() < 1e-14
    assert torch.equal(mixed[:, :, :length], noise[:, :, :length])


def test_noise_stays_standard_normal_to_the_last_short_block() -> None:
    noise = torch.randn(1, 16, 35, 60, 60, generator=torch.Generator().manual_seed(0))
    mixed = FreePca().mix(noise, Geometry(35, 8, (1.0,)), torch.Generator().manual_seed(1))
    frames = mixed[0].transpose(0, 1).flatten(1)
    print(f"worst frame: mean {frames.mean(1).abs().max():.4f}, variance off by {(frames.var(1) - 1).abs().max():.4f}")
    assert frames.mean(1).abs().max() < 0.02
    assert (frames.var(1) - 1).abs().max() < 0.03


@pytest.mark.parametrize(("frames_lat", "window"), [(1, None), (8, None), (8, 4), (12, 12)])
def test_noise_of_native_length_or_one_window_is_left_as_it_is(frames_lat: int, window: int | None) -> None:
    noise = torch.randn(1, 2, frames_lat, 2, 2)
    assert FreePca(window=window).mix(noise, Geometry(frames_lat, 8, (1.0,)), torch.Generator()) is noise


@pytest.mark.parametrize(
    ("sets", "given", "expected"),
    [
        ({"stride": 22}, r"freepca\.stride = 22 is more than the window of 21 latent frames", "1 to 21"),
        ({"components": 21}, r"freepca\.components = 21, but 21 latent frames have 20 components", "0 to 20"),
        ({"window": 3}, r"freepca\.components = 3, but 3 latent frames have 2 components", "0 to 2"),
    ],
)
def test_what_does_not_fit_the_window_is_refused(sets: dict[str, int], given: str, expected: str) -> None:
    with pytest.raises(UsageError, match=given) as caught:
        FreePca(**sets).branches(full_attention(81), CLIP, 0, 10)  # type: ignore[arg-type]
    assert caught.value.expected == expected
    assert "--set freepca." in caught.value.hint


@pytest.mark.parametrize(("key", "value"), [("components", -1), ("window", 1), ("stride", 0), ("split", 2), ("entropy", 1.2)])
def test_wrong_values_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        FreePca(**{key: value})  # type: ignore[arg-type]


def test_the_preset_and_its_overrides_parse() -> None:
    shipped = preset.load("freepca", ["freepca.window=13", "freepca.noise=false", "freepca.entropy=false"])
    assert shipped.techniques == (FreePca(window=13, noise=False, entropy=False),)


def test_a_plan_fills_in_what_fuse_needs(tiny_plan: Callable[..., Plan]) -> None:
    made = tiny_plan("freepca", frames=321, steps=4)
    fusions = [program.fusion for program in made.programs if program and program.fusion]
    assert fusions == [FreePca(window=21, stride=5)]
    assert cost.ratio(made) > 1
    assert not tiny_plan("freepca", frames=81, steps=4).table.any()


def test_without_double_precision_eigenproblems_are_the_cpu_s_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's GPUs have neither."""
    products = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = freepca.covariances(products, 3)
    monkeypatch.setattr("longgen.device_tables.double_on", lambda _: torch.float32)
    single = freepca.covariances(products, 3)
    assert single.dtype == exact.dtype == torch.float64
    assert single.device.type == "cpu"
    torch.testing.assert_close(single, products.unflatten(1, (3, -1)).sum(2).double(), rtol=0, atol=0)
