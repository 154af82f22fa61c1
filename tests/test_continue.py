"""Going on from a video: runs in parts against runs in one piece, on files; other videos; copies that a run keeps; refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from longgen import disk, ffmpeg, past, pictures, planner, preset, run, rundir, shown
from longgen.backbones import tiny_grammar
from longgen.backbones.find import find
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.backbones.tiny import start
from longgen.checkpoint import Chunks, load_tensors
from longgen.conditions import Conditions, restore
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.metrics.score import score_video
from longgen.pipelines.loading import load
from longgen.plan import FADE_PX, Plan
from longgen.rundir import Job
from longgen.video import Writer, read_frames
from tests.sampling.test_rollout import ANS, FLEX, GREEN, REBASE, RED, SINK, WINDOW, Stack, cut

SIZE = (96, 64)
Make = Callable[..., Plan]


@pytest.fixture
def make(causal: Any, tmp_path: Path) -> Make:
    """make("b", 40, "a.run"): a video of 40 new frames that goes on from a run, in `tmp_path`; its plan."""

    def made(name: str, frames: int, source: str | None = None, stack: Stack = (), prompt: str = RED, seed: int = 7,
             join: bool = False, schedule: Any = None, resume: bool = False, **more: Any) -> Plan:  # fmt: skip
        conditions = Conditions(past=None if source is None else past.read(tmp_path / source), join=join)
        chosen = preset.from_tables({"name": "stack", "technique": [*stack]}, "stack")
        chosen = chosen.model_copy(update={"sample": preset.Sample(**{"frames": frames, "steps": 2} | more)})
        plan = planner.build(chosen, causal.spec, schedule, conditions=conditions)
        run.generate_one(causal, Job(plan, prompt, seed, tmp_path / f"{name}.mp4"), resume)
        return plan

    return made


def latents(plan: Plan, folder: Path) -> Tensor:
    return torch.cat([*shown.stored(plan, folder, Chunks(folder / rundir.CHUNKS, {}))], dim=2)


def frames(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.stack([*read_frames(path, size)])


def moving(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frames [F, h, w, 3] uint8 of a square that moves over a gradient."""
    (width, height), pixels = size, np.zeros((count, size[1], size[0], 3), np.uint8)
    pixels[..., 2] = np.linspace(40, 120, height).astype(np.uint8)[:, None]
    for index, frame in enumerate(pixels):
        left = (index * 2) % (width - 16)
        frame[8:24, left : left + 16, 0] = 220
    return pixels


def video(path: Path, count: int = 60, size: tuple[int, int] = SIZE, fps: float = 16) -> np.ndarray:
    pixels = moving(count, size)
    with Writer(path, size, fps, {}) as writer:
        writer.add(pixels)
    return pixels


# Runs of rollouts

PARTS: dict[str, Stack] = {  # in memory every setting: tests/sampling/test_rollout_given.py
    "ans, renoise, sink": (WINDOW, SINK, ANS | {"renoise": True}), "ans, flex": (WINDOW, SINK, FLEX, ANS),
    "chunk 4": (WINDOW, {"name": "rollout", "chunk": 4}), "frame by frame": ({"name": "rollout", "chunk": 1},),
    "chosen tokens": ({"name": "participative-compression", "frames": 8, "sink": 2, "top": 1},),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_a_run_in_parts_is_the_run_in_one_piece(make: Make, tmp_path: Path, name: str) -> None:
    """Three parts, whose lengths are no multiples of a chunk: the latents, and the decoded frames, bit for bit."""
    whole = make("whole", 65, stack=PARTS[name])
    make("a", 41, stack=PARTS[name])
    make("b", 12, "a.run", PARTS[name])
    last = make("c", 12, "b.mp4", PARTS[name], join=True)
    one = latents(whole, tmp_path / "whole.run")
    assert torch.equal(latents(last, tmp_path / "c.run"), one)
    assert (tmp_path / "b.mp4").stat().st_size
    assert len(frames(tmp_path / "b.mp4")) == 12
    pixels = frames(tmp_path / "c.mp4")
    assert len(pixels) == 24  # with the file that it goes on from, which holds 12
    record = rundir.stored_record(tmp_path / "c.mp4")
    assert (record["frames"], record["latent_frames"], record["status"]) == (24, 17, "done")
    make("all", 24, "a.run", PARTS[name], join=True)
    assert np.array_equal(frames(tmp_path / "all.mp4"), frames(tmp_path / "whole.mp4"))


def test_a_schedule_in_parts(make: Make, tmp_path: Path) -> None:
    """Red, and green from a hard cut on in the first part; the second goes on with green."""
    stack = (WINDOW, SINK, REBASE)
    whole = make("whole", 61, stack=stack, schedule=cut(1.5, prompts=(RED, GREEN), hard=2))
    make("a", 41, stack=stack, schedule=cut(1.5, prompts=(RED, GREEN), hard=2))
    half = make("b", 20, "a.run", stack, GREEN)
    one = latents(whole, tmp_path / "whole.run")
    assert torch.equal(latents(half, tmp_path / "b.run"), one)
    third = make("c", 20, "b.run", stack, RED)  # a switch, of a run whose own past had two prompts
    assert torch.equal(latents(third, tmp_path / "c.run")[:, :, :16], one)
    switched = make("d", 81, stack=stack, schedule=cut(1.5, 4.25, prompts=(RED, GREEN, RED), hard=2))
    assert torch.equal(latents(third, tmp_path / "c.run"), latents(switched, tmp_path / "d.run"))


def test_another_seed_is_another_generator(make: Make, tmp_path: Path) -> None:
    make("a", 33)
    same, other = (make(name, 36, "a.run", seed=seed) for name, seed in (("same", 7), ("other", 8)))
    one, two = latents(same, tmp_path / "same.run"), latents(other, tmp_path / "other.run")
    assert torch.equal(one[:, :, :9], two[:, :, :9])
    assert not torch.equal(one[:, :, 9:], two[:, :, 9:])
    assert run.draw_seed(same) == 7


def test_frames_that_the_last_chunk_holds_are_not_sampled(make: Make, tmp_path: Path) -> None:
    """Of 10 latent frames in 4 chunks two are left."""
    whole = make("whole", 61)
    make("a", 37)
    few = make("b", 8, "a.run")
    rest = make("c", 16, "b.run")
    assert (few.rounds, rest.rounds) == (0, 2)
    one = latents(whole, tmp_path / "whole.run")
    assert torch.equal(latents(few, tmp_path / "b.run"), one[:, :, :12])
    assert torch.equal(latents(rest, tmp_path / "c.run"), one)
    assert len(frames(tmp_path / "b.mp4")) == 8


class Stop(Exception):
    pass


def stopped(monkeypatch: pytest.MonkeyPatch, make: Make, after: int, *arguments: Any, **named: Any) -> None:
    """Makes a video, and stops after so many chunks."""
    from longgen import interrupted

    save, count = interrupted.save, 0

    def counted(*given: Any) -> None:
        nonlocal count
        save(*given)
        count += 1
        if count == after:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(interrupted, "save", counted)
        with pytest.raises(Stop):
            make(*arguments, **named)


@pytest.mark.parametrize("source", ["a.run", "ball.mp4"])
def test_stopped_inside_and_resumed_with_the_original_gone(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, causal: Any
) -> None:
    stack = (WINDOW, SINK, ANS)
    make("a", 41, stack=stack)
    video(tmp_path / "ball.mp4")
    whole = make("b", 60, source, stack, join=True)
    expected, pixels = latents(whole, tmp_path / "b.run"), (tmp_path / "b.mp4").read_bytes()
    stopped(monkeypatch, make, 2, "c", 60, source, stack, join=True)
    assert not (tmp_path / "c.mp4").exists()
    shutil.rmtree(tmp_path / "a.run")
    (tmp_path / "ball.mp4").unlink()
    settings = rundir.stored_record(tmp_path / "c.mp4")["settings"]
    kept = restore(settings["conditions"], tmp_path / "c.run", settings["inputs"])
    assert kept.past is not None
    assert (kept.past.name, kept.join) == (source, True)
    plan = planner.build(whole.preset, causal.spec, conditions=kept)
    run.generate_one(causal, Job(plan, RED, 7, tmp_path / "c.mp4"), resume=True)
    assert torch.equal(latents(plan, tmp_path / "c.run"), expected)
    assert (tmp_path / "c.mp4").read_bytes() == pixels


def test_a_stream_that_was_stopped_goes_on_from_what_is_there(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make("whole", 85)
    stopped(monkeypatch, make, 3, "a", 400)
    half = make("b", 52, "a.run")
    assert half.conditions.past is not None
    assert half.conditions.past.frames_px == 33
    assert any("stopped after 3 chunks" in note for note in half.notes)
    assert torch.equal(latents(half, tmp_path / "b.run"), latents(whole, tmp_path / "whole.run"))
    stopped(monkeypatch, make, 2, "c", 40, "a.run")
    assert past.read(tmp_path / "c.run").frames_px == 24
    video(tmp_path / "ball.mp4", 20)
    stopped(monkeypatch, make, 2, "d", 40, "ball.mp4", join=True)
    assert past.read(tmp_path / "d.run").frames_px == 20 + 24
    assert make("e", 20, "d.run", join=True).written_px == len(frames(tmp_path / "e.mp4")) == 64


# Videos from elsewhere


def test_the_newest_frames_of_a_video_are_encoded_once(make: Make, tmp_path: Path, causal: Any) -> None:
    video(tmp_path / "ball.mp4", 60)
    plan = make("b", 40, "ball.mp4")
    assert (plan.given_lat, plan.written_px) == (9, 40)
    expected = causal.encoded_frames(frames(tmp_path / "ball.mp4")[-33:], torch.Generator())
    given = load_tensors(tmp_path / "b.run" / rundir.INPUTS / past.GIVEN)[0]["latents"]
    assert torch.equal(given, expected)
    assert len(frames(tmp_path / "b.mp4")) == 40
    assert any("the last 33 frames of ball.mp4, of 60, are encoded; tiny-causal sees nothing before" in note for note in plan.notes)


def test_a_joined_video_begins_with_the_files_own_frames(make: Make, tmp_path: Path) -> None:
    video(tmp_path / "ball.mp4", 60)
    plan = make("b", 40, "ball.mp4", join=True)
    own, joined = frames(tmp_path / "ball.mp4").astype(int), frames(tmp_path / "b.mp4").astype(int)
    assert len(joined) == plan.written_px == 100
    assert np.abs(joined[: 60 - FADE_PX] - own[: 60 - FADE_PX]).mean() < 2  # as they are, but encoded twice
    white = np.full((33 + 40, *reversed(SIZE), 3), 255, np.uint8)  # in place of what the VAE makes of the last 33 and the new ones
    faded = np.concatenate([*shown.in_file(plan, lambda _: iter([white]), torch.empty(0))])
    assert np.array_equal(faded[:44], own[:44])
    assert (np.diff(faded[43:61].mean(axis=(1, 2, 3))) > 0).all()
    assert (faded[60:] == 255).all()
    later = make("c", 20, "b.run", join=True)
    assert later.written_px == len(frames(tmp_path / "c.mp4")) == 120
    assert np.abs(frames(tmp_path / "c.mp4")[:100].astype(int) - joined).mean() < 2


def test_the_join_is_not_visible(tmp_path: Path) -> None:
    """On the shipped model, of a rendered video and of a run: the change at the join is that beside it."""
    words, size = tiny_grammar.HELD_OUT[1], (64, 64)
    backbone = load(SPECS["tiny-causal"], ModelSettings("cpu", "fp32"))
    pixels = start.to_bytes(start.rendered(words, 49, 12))
    with Writer(tmp_path / "ball.mp4", size, 16, {}) as writer:
        writer.add(pixels)
    for source in ("ball.mp4", "video.run"):
        conditions = Conditions(past=past.read(tmp_path / source), join=True)
        plan = planner.build(preset.load("direct", (), preset.Sample(frames=32)), backbone.spec, conditions=conditions)
        output = tmp_path / ("video.mp4" if source == "ball.mp4" else "longer.mp4")
        run.generate_one(backbone, Job(plan, words.prompt, 7, output))
        seam = score_video(output, [plan.written_px - plan.new_px]).values["seam"]
        print(f"{source}: {seam}")
        assert seam is not None
        assert seam < 1.5


def test_a_joined_run_begins_with_the_same_frames_at_another_rate(make: Make, tmp_path: Path) -> None:
    """The rate is that of playing: what an earlier file shows is shown again, frame by frame."""
    video(tmp_path / "ball.mp4", 30)
    make("a", 8, "ball.mp4", join=True)
    make("b", 8, "a.run", join=True, fps=24)
    plan = make("c", 8, "b.run", join=True, fps=8)
    assert plan.written_px == 30 + 3 * 8
    first, last = frames(tmp_path / "a.mp4").astype(int), frames(tmp_path / "c.mp4").astype(int)
    assert len(last) == plan.written_px
    assert np.abs(last[: len(first)] - first).mean(axis=(1, 2, 3)).max() < 3  # encoded apart


def test_a_plan_says_what_a_join_does_to_the_file(causal: Any, tmp_path: Path) -> None:
    for name, count in (("one", 1), ("ball\nb", 60)):
        video(tmp_path / f"{name}.mp4", count)
        source = past.read(tmp_path / f"{name}.mp4")
        plan = planner.build(preset.load("direct"), causal.spec, conditions=Conditions(past=source, join=True))
        assert not any("\n" in note for note in plan.notes)
        said = "last frame fades" if count == 1 else "last 16 frames fade"
        assert f"in the joined file its {said} into what the VAE makes of them, so that the join does not show" in plan.notes
        alone = planner.build(preset.load("direct"), causal.spec, conditions=Conditions(past=source))
        assert not any("fade" in note for note in alone.notes)
        assert alone.lead_px == alone.fade_px == 0
        assert any(note.startswith("all of one.mp4 is encoded: 1 frame") for note in alone.notes) == (count == 1)


@pytest.mark.parametrize(("size", "fps", "count"), [((128, 128), 25, 50), ((40, 90), 8, 12), (SIZE, 16, 1), (SIZE, 16, 6)])
def test_another_size_rate_and_length(make: Make, tmp_path: Path, size: tuple[int, int], fps: float, count: int) -> None:
    video(tmp_path / "ball.mp4", count, size, fps)
    plan = make("b", 20, "ball.mp4", join=True)
    at_16 = int((count - 1) / fps * 16 + 1e-6) + 1
    assert plan.given_lat == (min(at_16, 33) - 1) // 4 + 1
    assert len(frames(tmp_path / "b.mp4")) == plan.written_px == at_16 + 20
    assert any("nearest in time" in note for note in plan.notes) == (fps != 16)
    assert any(f"is {size[0]}x{size[1]}: " in note for note in plan.notes) == (size != SIZE)


def test_a_variable_frame_rate(make: Make, tmp_path: Path) -> None:
    """Forty frames at 16 a second, of which the second half lasts twice as long."""
    video(tmp_path / "even.mp4", 40)
    timing = "setpts='if(lt(N,20),N,20+2*(N-20))/16/TB'"
    done = ffmpeg.run(["-v", "error", *ffmpeg.source(tmp_path / "even.mp4"), "-vf", timing, "-fps_mode", "vfr", "-c:v", "libx264",
                       "-enc_time_base", "1:160", ffmpeg.url(tmp_path / "ball.mp4")])  # fmt: skip
    assert done.returncode == 0, done.stderr
    read = past.read(tmp_path / "ball.mp4")
    assert read.times is not None
    indices = read.sampled(16)
    assert len(indices) == 20 + 2 * 19 + 1
    assert indices[-5:].tolist() in ([37, 38, 38, 39, 39], [37, 37, 38, 38, 39], [37, 38, 38, 38, 39])
    plan = make("b", 20, "ball.mp4", join=True)
    assert len(frames(tmp_path / "b.mp4")) == len(indices) + 20
    assert any("varying intervals" in note for note in plan.notes)


def test_a_video_of_longgen_without_its_run_is_a_video(make: Make, tmp_path: Path) -> None:
    make("a", 33)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert past.read(tmp_path / "b.mp4").latents is None
    assert past.read(tmp_path / "a.mp4").latents == 9
    video(tmp_path / "a.mp4", 10)
    changed = past.read(tmp_path / "a.mp4")
    assert changed.latents is None
    assert "is not the run that a.mp4 is of now" in changed.notes[0]


# Pictures, and models whose frames are denoised together


def test_a_run_that_began_with_a_picture_goes_on(make: Make, tmp_path: Path, causal: Any) -> None:
    Image.fromarray(moving(1)[0]).save(tmp_path / "ball.png")
    conditions = Conditions(image=pictures.read(tmp_path / "ball.png"))
    whole, half = (
        planner.build(preset.load("direct", (), preset.Sample(frames=frames, steps=2)), causal.spec, conditions=conditions)
        for frames in (81, 45)
    )
    assert (whole.given_lat, whole.chunks[:3], whole.rounds) == (1, ((0, 1), (1, 3), (4, 3)), 7)
    for name, plan in (("whole", whole), ("a", half)):
        run.generate_one(causal, Job(plan, RED, 7, tmp_path / f"{name}.mp4"))
    one = latents(whole, tmp_path / "whole.run")
    assert torch.equal(one[:, :, :1], causal.encoded_frames(moving(1), torch.Generator()))
    rest = make("b", 36, "a.run")
    assert rest.chunks == whole.chunks
    assert torch.equal(latents(rest, tmp_path / "b.run"), one)
    joined = make("c", 36, "a.mp4", join=True)
    assert joined.written_px == 81
    assert np.array_equal(frames(tmp_path / "c.mp4"), frames(tmp_path / "whole.mp4"))


@pytest.mark.parametrize("name", ["wan-i2v", "wan-ti2v", "ltx", "cogvideox-i2v", "hunyuan-i2v"])
def test_frames_that_are_denoised_together_go_on(model_folder: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """Of a video file its last frames, and of the run that this makes its last latents; the video is as long as the plan says."""
    backbone = load(find(str(model_folder(name))), ModelSettings("cpu", "fp32"))
    size, steps = (64, 32), max(2, backbone.spec.least_steps)
    video(tmp_path / "ball.mp4", 30, size, backbone.spec.fps)
    sample = preset.Sample(frames=2 * backbone.spec.stride_t, steps=steps, size=size)
    written = {}
    for output, source in (("a", "ball.mp4"), ("b", "a.run"), ("c", "b.run")):
        conditions = Conditions(past=past.read(tmp_path / source), join=output != "a")
        plan = planner.build(preset.load("direct", (), sample), backbone.spec, conditions=conditions)
        job = Job(plan, RED, 7, tmp_path / f"{output}.mp4")
        assert run.generate_one(backbone, job).frames == plan.written_px == len(frames(job.output, size))
        written[output] = plan
    tensors = {output: load_tensors(tmp_path / f"{output}.run" / rundir.LATENTS)[0]["latents"] for output in written}
    given = backbone.given(written["b"], torch.Generator().manual_seed(0))
    count = written["b"].given_lat
    assert 0 < count <= backbone.spec.clean_lat
    assert torch.equal(given.latents, tensors["a"][:, :, -count:])
    assert written["c"].written_px == 3 * written["a"].new_px
    new = written["c"].frames_lat - written["c"].given_lat
    assert torch.equal(past.taken(past.read(tmp_path / "c.run")).latents[:, :, -new:], tensors["c"][:, :, -new:])


def test_of_a_rollout_frames_that_are_denoised_together_take_what_its_video_shows(make: Make, tmp_path: Path, tiny: Any) -> None:
    """Not the rest of its last chunk: of 12 latent frames the video has 10."""
    made = make("a", 37)
    sample = preset.Sample(frames=20, steps=2, size=SIZE)
    plan = planner.build(preset.load("direct", (), sample), tiny.spec, conditions=Conditions(past=past.read(tmp_path / "a.run")))
    given, whole = tiny.given(plan, torch.Generator()), latents(made, tmp_path / "a.run")
    count = plan.given_lat
    assert torch.equal(given.latents, whole[:, :, 10 - count : 10])
    assert torch.equal(given.before, whole[:, :, : 10 - count])


def test_fewer_new_frames_than_the_last_chunk_holds_are_all_given(make: Make, tmp_path: Path) -> None:
    """Of 12 latent frames the video shows 10: four new frames are the eleventh, and nothing is sampled."""
    make("a", 37)
    plan = make("b", 4, "a.run", join=True)
    assert (plan.frames_lat, plan.given_lat, plan.rounds) == (11, 11, 0)
    assert len(frames(tmp_path / "b.mp4")) == 41


def test_a_chain_that_goes_on_writes_as_it_comes_what_its_latents_show(tiny: Any, tmp_path: Path) -> None:
    """The frames before those that its first clip is given are decoded in front of them, so that the VAE goes on."""
    chosen = preset.load("chain", ("chain.frames=5", "chain.overlap=2"), preset.Sample(frames=20, steps=2))
    for name, source in (("a", None), ("b", "a.run"), ("c", "b.run")):
        conditions = Conditions(past=None if source is None else past.read(tmp_path / source), join=source is not None)
        plan = planner.build(chosen, tiny.spec, conditions=conditions)
        run.generate_one(tiny, Job(plan, RED, 7, tmp_path / f"{name}.mp4"))
        folder = tmp_path / f"{name}.run"
        decoded = shown.in_file(plan, tiny.decode, shown.stored(plan, folder, Chunks(folder / rundir.CHUNKS, {})))
        run.write_video(Writer(tmp_path / "again.mp4", (64, 64), plan.fps, {}), decoded)
        written = frames(tmp_path / f"{name}.mp4", (64, 64))
        assert np.array_equal(written, frames(tmp_path / "again.mp4", (64, 64))), name
    assert len(written) == plan.written_px == 61


# Refusals


def test_what_is_no_video_gets_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video " * 50)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    video(tmp_path / "whole.mp4", 20)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:400])
    (tmp_path / "folder").mkdir()
    kinds: dict[str, tuple[type[LonggenError], str]] = {
        "gone.mp4": (MissingError, "gone.mp4 is not there"), "empty.mp4": (LonggenError, "it is empty"),
        "text.mp4": (LonggenError, "it holds text"), "picture.png": (LonggenError, "it is a picture"),
        "cut.mp4": (LonggenError, "could not be read as a video"), "folder": (UsageError, "it is a folder without run.json"),
    }  # fmt: skip
    for name, (kind, words) in kinds.items():
        with pytest.raises(kind, match=words) as caught:
            past.read(tmp_path / name)
        assert caught.value.given.startswith("--continue")
        assert caught.value.expected
        assert caught.value.hint
    assert caught.value.given.count("\n") == 0


def test_damaged_and_foreign_latents_are_refused_or_the_video_is_taken(make: Make, tmp_path: Path) -> None:
    make("a", 33)
    make("other", 33, seed=9)
    record = json.loads((tmp_path / "a.run" / "run.json").read_text())
    chunk = tmp_path / "a.run" / "latents" / "000001.safetensors"
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-4] + b"\0\0\0\1")
    with pytest.raises(LonggenError, match="checksum"):
        past.read(tmp_path / "a.run")
    taken = past.read(tmp_path / "a.mp4")
    assert taken.latents is None
    assert "checksum" in taken.notes[0]
    chunk.write_bytes(good)
    shutil.rmtree(tmp_path / "a.run" / "latents")
    shutil.copytree(tmp_path / "other.run" / "latents", tmp_path / "a.run" / "latents")
    with pytest.raises(LonggenError, match="another run's"):
        past.read(tmp_path / "a.run")
    shutil.rmtree(tmp_path / "a.run" / "latents")
    with pytest.raises(MissingError, match="holds no finished latents"):
        past.read(tmp_path / "a.run")
    record.pop("checksum")
    disk.save_record(tmp_path / "a.run" / "run.json", record | {"status": "running"})
    with pytest.raises(MissingError, match="its run is not finished") as caught:
        past.read(tmp_path / "a.run")
    assert "--resume" in caught.value.hint
    (tmp_path / "a.run" / "run.json").write_text("{}")
    with pytest.raises(LonggenError, match=r"run\.json"):
        past.read(tmp_path / "a.run")


def test_a_run_that_changes_after_it_was_read_is_refused(make: Make, tmp_path: Path, causal: Any) -> None:
    plan = make("a", 33)
    read = past.read(tmp_path / "a.run")
    make("a", 37)
    later = planner.build(plan.preset, causal.spec, conditions=Conditions(past=read))
    with pytest.raises(LonggenError, match="not as it was"):
        run.generate_one(causal, Job(later, RED, 7, tmp_path / "b.mp4"))


def test_the_video_may_not_take_the_place_of_its_past(make: Make, tmp_path: Path) -> None:
    make("a", 33)
    with pytest.raises(UsageError, match="is the video that --continue goes on from"):
        make("a", 36, "a.run")
