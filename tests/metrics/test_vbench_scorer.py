"""Whole videos through VBench, with the real classes of small sizes and random weights in the files that a user would have."""

from __future__ import annotations

import math
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from longgen.errors import MissingError, UsageError
from longgen.metrics.vbench import DIMENSIONS, clip, dino, raft, weights
from longgen.metrics.vbench.clips import clip_list
from longgen.metrics.vbench.dynamic import fastest_px
from longgen.metrics.vbench.scorer import Scored, VBench
from longgen.video import Writer

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
FOLDERS = ("dino-vitb16", "clip-vit-base-patch32", "clip-vit-large-patch14")
MOTION = [name for name, row in DIMENSIONS.items() if "raft" in row.weights]  # these need torchvision
ALL = [name for name in DIMENSIONS if name not in ("imaging_quality", *MOTION)]  # pyiqa's network is not ours to bring


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dino, "CONFIG", ViTConfig(**SMALL, layer_norm_eps=1e-6))
        patch.setattr(clip, "B32", CLIPVisionConfig(**SMALL, projection_dim=24))
        patch.setattr(clip, "L14", CLIPVisionConfig(**SMALL, projection_dim=768, patch_size=56))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --vbench-weights wants."""
    path = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    kinds = (ViTModel, CLIPVisionModelWithProjection, CLIPVisionModelWithProjection)
    for kind, config, name in zip(kinds, (dino.CONFIG, clip.B32, clip.L14), FOLDERS, strict=True):
        model = kind(config)
        for tensor in model.parameters():
            tensor.data.normal_(0, 0.3)
        model.save_pretrained(path / name)
    (path / "raft-things.pth").touch()
    torch.save(torch.nn.Linear(768, 1).state_dict(), path / "sa_0_4_vit_l_14_linear.pth")
    return path


@pytest.fixture(scope="module")
def bench(folder: Path) -> VBench:
    return VBench("cpu", folder, ALL, batch=3)


def noise(frames: int, side: int = 128) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def test_values_and_curves_are_those_of_the_frames_taken_together(bench: VBench, folder: Path) -> None:
    video = noise(7)
    scored = bench.score(iter(video), 8)
    assert (scored.frames, scored.fps) == (7, 8)
    assert [*scored.values] == [*scored.curves] == [DIMENSIONS[name].key for name in ALL]
    assert all(curve.shape == (7,) for curve in scored.curves.values())
    x = torch.from_numpy(video).permute(0, 3, 1, 2).float()
    vit, b32, l14 = (folder / name / "model.safetensors" for name in FOLDERS)
    with torch.inference_mode():
        for key, features in (
            ("vbench.subject_consistency", dino.load(vit, "cpu").embed(x)),
            ("vbench.background_consistency", clip.load(b32, clip.B32, "cpu").embed(x)),
        ):
            cosines = (F.normalize(features) @ F.normalize(features).T).clamp(min=0)
            want = [(cosines[t - 1, t] + cosines[0, t]).item() / 2 for t in range(1, 7)]
            assert scored.curves[key][1:] == pytest.approx(want, abs=1e-5)
            assert scored.values[key] == pytest.approx(sum(want) / 6, abs=1e-5)
        features = clip.load(l14, clip.L14, "cpu").embed(x)
        head = torch.load(folder / "sa_0_4_vit_l_14_linear.pth", weights_only=True)
    want = (features / features.norm(dim=1, keepdim=True) @ head["weight"][0] + head["bias"]) / 10
    assert scored.curves["vbench.aesthetic_quality"] == pytest.approx(want.numpy(), abs=1e-6)
    assert scored.values["vbench.aesthetic_quality"] == pytest.approx(want.mean().item(), abs=1e-6)


def test_the_batch_does_not_matter(folder: Path) -> None:
    names, video = ["subject_consistency", "aesthetic_quality"], noise(5, 40)
    one, many = (VBench("cpu", folder, names, batch).score(video, 8) for batch in (1, 100))
    for key in one.values:
        assert one.curves[key] == pytest.approx(many.curves[key], abs=1e-5, nan_ok=True)


def test_a_still_video_is_consistent_and_its_file_says_the_rate(bench: VBench, tmp_path: Path) -> None:
    still = np.repeat(noise(1, 64), 5, axis=0)
    with Writer(tmp_path / "still.mp4", (64, 64), 16, {}) as writer:
        writer.add(still)
    scored = bench.score(tmp_path / "still.mp4")
    assert (scored.frames, scored.fps) == (5, 16)
    assert scored.values["vbench.subject_consistency"] == pytest.approx(1, abs=0.02)  # x264 is lossy
    assert bench.score(still, 16).values["vbench.subject_consistency"] == pytest.approx(1, abs=1e-6)


def test_motion_is_scored_by_raft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        network = raft.library().raft_large(weights=None)
    except MissingError as error:
        pytest.skip(error.given)
    monkeypatch.setattr(raft, "ITERATIONS", 2)
    torch.save(network.state_dict(), tmp_path / "raft_large_C_T_V1-22a6c225.pth")
    bench = VBench("cpu", tmp_path, MOTION)
    scored = bench.score(noise(5), 16)
    assert [*scored.values] == ["vbench.dynamic_degree", "motion_smoothness_raft"]
    assert scored.values["vbench.dynamic_degree"] in (0, 1)
    assert 0 < (scored.values["motion_smoothness_raft"] or 0) < 1
    first, third = torch.from_numpy(noise(5)[[0, 2]]).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        flow = network.eval()(*(2 * (frame[None] / 255) - 1 for frame in (first, third)), num_flow_updates=2)[-1][0]
    assert scored.curves["vbench.dynamic_degree"][2] == pytest.approx(fastest_px(flow), rel=1e-4)
    assert bench.score_clips(noise(3, 64), 8) == {"clips.dynamic_degree": None, "clips.motion_smoothness_raft": None}
    assert all(math.isfinite(value or 0) for value in bench.score(np.zeros((3, 128, 128, 3), np.uint8), 8).values.values())


def test_clips_are_scored_as_videos_of_their_own(bench: VBench) -> None:
    video = noise(11, 40)
    got = bench.score_clips(iter(video), 2.5)
    assert clip_list(11, 2.5) == [(0, 3), (4, 7), (7, 10)]
    singles = [bench.score(video[first : last + 1], 2).values for first, last in clip_list(11, 2.5)]
    for name in ("subject_consistency", "aesthetic_quality"):
        assert got[f"clips.{name}"] == pytest.approx(np.mean([single[f"vbench.{name}"] for single in singles]))
    short = bench.score_clips(iter(video[:3]), 2.5)
    assert short["clips.subject_consistency"] == pytest.approx(bench.score(video[:3], 2).values["vbench.subject_consistency"])


def test_memory_does_not_grow_with_the_video(folder: Path) -> None:
    alive: set[int] = set()
    most = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal most
        for number, frame in enumerate(noise(60, 24)):
            own = frame.copy()
            alive.add(number)
            weakref.finalize(own, alive.discard, number)
            most = max(most, len(alive))
            yield own

    VBench("cpu", folder, ["subject_consistency"], batch=4).score(frames(), 8)
    assert 0 < most <= 9  # a batch, the next, and the one in our hand


@pytest.mark.parametrize(
    ("video", "fps", "said"),
    [
        ([], 8, "without frames"),
        (noise(2, 32), 0, "at 0 frames a second"),
        (noise(2, 32), None, "at None frames a second"),
        (noise(2, 32) / 255, 8, "float64"),
        ([noise(1, 32)[0], noise(1, 40)[0]], 8, r"uint8 \[40, 40, 3\]"),
    ],
)
def test_what_is_no_video_is_refused(bench: VBench, video: list[np.ndarray], fps: float | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        bench.score(video, fps)


def test_unknown_dimensions_and_batches_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="did you mean subject_consistency"):
        VBench("cpu", folder, ["subject_consistancy"])
    with pytest.raises(UsageError, match="a batch of 0 frames"):
        VBench("cpu", folder, ALL, batch=0)
    with pytest.raises(MissingError, match=r"gone\.mp4 is not there"):
        VBench("cpu", folder, ["aesthetic_quality"]).score(folder / "gone.mp4")


@pytest.fixture
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "vbench"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_one_message_names_all_that_is_missing(no_caches: Path) -> None:
    rows = {name: row for name, row in weights.WEIGHTS.items() if not row.source.startswith("the package")}  # it may be installed
    with pytest.raises(MissingError) as caught:
        weights.find(rows, no_caches / "given")
    text = str(caught.value)
    for row in rows.values():
        assert all(file in text for file in row.files)
        assert row.source in text
    for place in ("given", "vbench", "the Hugging Face cache", "--vbench-weights DIR"):
        assert place in text
    assert "could not be asked" not in text  # not before the rest is here


def test_only_what_a_dimension_needs_is_asked_for(no_caches: Path, folder: Path) -> None:
    assert [*weights.find(["dino", "raft"], folder)] == ["dino", "raft"]
    with pytest.raises(MissingError, match="the hub could not be reached") as caught:
        VBench("cpu", no_caches, ["subject_consistency"])
    assert "facebook/dino-vitb16" in str(caught.value)
    assert "raft" not in str(caught.value)


def test_the_cache_of_vbench_is_looked_into_after_the_folder(no_caches: Path) -> None:
    cached = no_caches / "vbench" / "raft_model" / "models" / "raft-things.pth"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert weights.find(["raft"], no_caches) == {"raft": cached}
    (no_caches / "raft-things.pth").touch()
    assert weights.find(["raft"], no_caches) == {"raft": no_caches / "raft-things.pth"}
    (no_caches / "model.safetensors").touch()  # of which model, a folder says
    with pytest.raises(MissingError, match="dino"):
        weights.find(["dino"], no_caches)


def test_imports_are_light() -> None:
    modules = "longgen.metrics, longgen.metrics.vbench, longgen.metrics.vbench.results, longgen.metrics.vbench.export"
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'torchvision', 'cv2', 'pyiqa'}"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_scored_video_has_no_infinities(bench: VBench) -> None:
    scored: Scored = bench.score(np.zeros((3, 128, 128, 3), np.uint8), 8)
    assert all(value is None or math.isfinite(value) for value in scored.values.values())
