"""Generation from plan to file: one video, or a batch of jobs on one loaded model.

`ball.mp4` appears when it is complete, and grows as `ball.partial.mp4` until then. Beside it stands the folder `ball.run/`, see
`longgen.rundir`; `resume` continues from what is there, and the latents come out equal, byte for byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longgen import disk, ffmpeg, notebook, past, ranks, run_record, rundir, timings
from longgen.backbones.settings import ModelSettings
from longgen.describe import plan_dict
from longgen.device import device_name, memory_bytes
from longgen.errors import LonggenError, MissingError
from longgen.out_of_memory import translate_oom
from longgen.plan import Plan
from longgen.progress import UNCOUNTED, Phase, Progress, Videos, clock_text, no_report, working
from longgen.resolve import from_settings, missing_inputs
from longgen.run_settings import SCHEMA, stored_settings, version_warning
from longgen.rundir import Job, JobRequest, run_folder
from longgen.textfile import on_one_line

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from longgen.backbones.spec import BackboneSpec
    from longgen.checkpoint import Chunks
    from longgen.loops import State
    from longgen.pipelines.base import PipelineBackbone
    from longgen.pipelines.given import Given
    from longgen.preview import Preview
    from longgen.video import Sound, Writer


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished video: `path`, `settings`, and in a notebook the video itself.

    output: the path as a string; run: the folder beside it, with run.json. seconds: by phase; a phase that an earlier run did is 0.
    skipped: the video was there already, with these settings.
    """

    name: str
    output: str
    run: str
    prompt: str
    preset: str
    backbone: str
    seed: int
    frames: int
    fps: int
    seconds: dict[str, float]
    peak_memory_bytes: int
    notes: tuple[str, ...] = ()
    skipped: bool = False

    @property
    def path(self) -> Path:
        """The video."""
        return Path(self.output)

    @property
    def settings(self) -> dict[str, Any]:
        """All that makes this video again, as it holds it. Raises LonggenError where the file is gone, or damaged."""
        from longgen.video import read_settings

        return read_settings(self.path)

    def _repr_html_(self) -> str:
        facts = f"{self.preset} on {self.backbone}, {self.frames} frames at {self.fps} fps, seed {self.seed}"
        taken = "was there already" if self.skipped else f"made in {clock_text(sum(self.seconds.values()))}"
        return notebook.video(self.path, self.prompt, f"{facts}; {taken}", self.notes)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A video of a batch that could not be made; of its error the facts and the exit code that it alone would have."""

    name: str
    output: str
    prompt: str
    seed: int
    error: str
    expected: str = ""
    hint: str = ""
    exit_code: int = LonggenError.exit_code


class RunRecord:
    """run.json: what a run was made with, where and how long (`seconds` by phase), written anew at each of its stages.

    writes: whether this process is the one of several ranks that does.
    """

    def __init__(
        self, output: Path, plan: Plan, run_settings: dict[str, Any], device: str, load_s: float, writes: bool = True
    ) -> None:
        self.path, self.device = run_folder(output) / rundir.RECORD, device
        self.writes = writes
        self.seconds = {"load": round(load_s, 3), "sample": 0.0, "decode": 0.0}
        described = plan_dict(plan)
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
            "status": "running",
            "settings": run_settings,
            "frames": plan.written_px,
            "latent_frames": plan.frames_lat,
            **({"given_latent_frames": plan.given_lat} if plan.given_lat else {}),
            **({} if plan.chunk_lat is None else {"texts": _texts(plan, run_settings["prompt"])}),
            **{name: described[name] for name in ("techniques", "branches", "cost_ratio", "notes")},
            "device": device_name(device),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "seconds": {},
            "peak_memory_bytes": 0,
        }

    def write(self, status: str, **more: Any) -> None:
        self.content.update(status=status, seconds=self.seconds, peak_memory_bytes=memory_bytes(self.device), **more)
        if self.writes:
            disk.save_record(self.path, run_record.stored(self.content))


def _texts(plan: Plan, prompt: str) -> dict[str, Any]:
    """Of a rollout: `Plan.chunk_texts`, with the first latent frame of each change and of each cut, for a run that goes on from
    this one.
    """
    prompts, shares = plan.chunk_texts(prompt)
    changes = [(start, row) for index, ((start, _), row) in enumerate(zip(plan.chunks, shares.tolist(), strict=True))
               if index == 0 or row != shares[index - 1].tolist()]  # fmt: skip
    cuts = {"cuts": list(plan.cut_starts)} if plan.cut_starts else {}
    return {"prompts": list(prompts), "rows": [[start, row] for start, row in changes]} | cuts


def generate_one(
    backbone: PipelineBackbone,
    job: Job,
    resume: bool = False,
    report: Callable[[Progress], None] = no_report,
    log: Callable[[str], None] = no_report,
    load_s: float = 0.0,
    preview: Callable[[PipelineBackbone, Job], Preview] | None = None,
) -> Result:
    """Samples, saves and decodes one video. With `resume`, continues from what its run folder holds, else starts over.

    Whether what is there may be replaced has been decided, by `longgen.rundir.already_finished`; a finished video stays whole
    until the new one is. load_s: the seconds of loading the model, for the record.
    """
    import torch

    from longgen import checkpoint, shown
    from longgen.loops import magcache
    from longgen.video import Writer

    plan, output, folder, device = job.plan, job.output, run_folder(job.output), str(backbone.device)
    run_settings = stored_settings(plan, job.prompt, job.seed, backbone.model_settings)
    team = ranks.join(backbone.model_settings.gpus, device)
    record = RunRecord(output, plan, run_settings, device, load_s, team.writes)
    with contextlib.ExitStack() as held:
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
        latents, state = team.decide(functools.partial(_begin, held, backbone, job, record, resume, log))
        chunks = checkpoint.Chunks(folder / rundir.CHUNKS, run_settings) if team.writes else None
        decoded, sampled_whole = False, latents is None and state is None
        if latents is None:
            skipping = magcache.skipping(backbone, plan, lambda: Phase("calibrate", plan.steps, device, report).at)
            remains = "the checkpoint is kept: --resume goes on, with another --offload too"
            with translate_oom("sampling", backbone.model_settings, remains, plan), skipping:
                expected_s = timings.sampling_s(plan, backbone.model_settings)
                phase = Phase("sample", plan.rounds, device, report, state.done if state else 0, expected_s=expected_s)
                strips = preview(backbone, job) if preview is not None and team.writes else None
                tensors, decoded = _sample(backbone, job, chunks, state, phase, _first_step(record, phase, load_s, log), strips)
                latents = tensors.get("latents")
                record.seconds["sample"] = round(phase.seconds, 3)
                if tensors and chunks is not None:
                    checkpoint.save_tensors(folder / rundir.LATENTS, tensors, run_settings)
        if chunks is None:  # another rank decodes
            return _result(job, record.seconds, memory_bytes(device))
        (folder / rundir.STEP).unlink(missing_ok=True)
        record.write("sampled")
        if not decoded:
            remains = f"the latents are kept: longgen decode {folder}"
            with translate_oom("decoding", backbone.model_settings, remains, plan, decoding=True):
                phase = Phase("decode", plan.written_px, device, report)
                frames = shown.in_file(plan, backbone.decode, shown.stored(plan, folder, chunks if latents is None else latents))
                writer = Writer(output, plan.size, plan.fps, run_settings, _sound(backbone, plan, folder))
                write_video(writer, frames, phase)
                record.seconds["decode"] = round(phase.seconds, 3)
        record.content.pop(rundir.REPLACES, None)
        record.write("done", video=disk.file_hash(output))
        rundir.clean_up(output)
        if sampled_whole and preview is None:
            timings.keep(plan, backbone.model_settings, record.seconds, record.content["peak_memory_bytes"], log)
    return _result(job, record.seconds, memory_bytes(device))


def _first_step(record: RunRecord, phase: Phase, load_s: float, log: Callable[[str], None]) -> Callable[[], None]:
    """Says once, after the first step, how long it was waited for: loading, the prompt and the step itself."""

    def done() -> None:
        if "first_step_s" not in record.content:
            record.content["first_step_s"] = round(load_s + phase.seconds, 3)
            log(f"first step done after {clock_text(load_s + phase.seconds)}, {clock_text(load_s)} of it loading")

    return done


def _begin(
    held: contextlib.ExitStack, backbone: PipelineBackbone, job: Job, record: RunRecord, resume: bool, log: Callable[[str], None]
) -> tuple[Tensor | None, State | None]:
    """Locks the run folder of `job` until `held` ends, and readies it. Returns the latents that are there, or else the state that
    sampling goes on from.
    """
    from longgen import checkpoint, interrupted

    plan, output, folder = job.plan, job.output, run_folder(job.output)
    held.enter_context(rundir.lock(output))
    rundir.check_place(output)
    rundir.check_not_past(plan, output)
    ffmpeg.program()  # or it would be missed only when all is sampled
    if not resume:
        rundir.start_anew(output)
        record.content[rundir.REPLACES] = os.path.lexists(output)
    plan.conditions.keep(folder)
    if plan.schedule is not None:
        plan.schedule.keep(folder)
    latents, state = None, None
    if resume:
        if rundir.may_replace(output):
            record.content[rundir.REPLACES] = True
        run_settings = record.content["settings"]
        latents, state, stored = interrupted.read(backbone, plan, checkpoint.Chunks(folder / rundir.CHUNKS, run_settings))
        if stored is not None and (warning := version_warning(stored, run_settings)):
            log(f"note: {warning}")
            record.content["notes"] = [*record.content["notes"], warning]
    record.write("running")
    return latents, state


def _sample(
    backbone: PipelineBackbone, job: Job, chunks: Chunks | None, state: State | None, phase: Phase, first_step: Callable[[], None],
    preview: Preview | None = None,
) -> tuple[dict[str, Tensor], bool]:  # fmt: skip
    """The latents of `job` by name (none where they are in chunks on disk), and whether the video was decoded as they came.

    chunks: where they go; None on ranks that write nothing.
    """
    import torch

    from longgen import interrupted, loops, shown
    from longgen.loops.denoiser import Denoiser
    from longgen.video import Writer

    plan, in_parts = job.plan, job.plan.in_parts

    def on_step(now: State) -> None:
        if chunks is not None:
            interrupted.save(now, chunks, plan)
        first_step()
        phase.at(now.done)
        if preview is not None:
            preview.on_step(now)

    generator = torch.Generator().manual_seed(job.seed)
    given = _given(backbone, job, generator, state, chunks)
    denoiser = Denoiser(backbone, plan, job.prompt, given)
    frames = loops.stream(denoiser, denoiser.initial_noise(generator), generator, on_step, state)
    on_host: list[Tensor] = []
    if not in_parts:  # else they are in the chunks
        frames = _copied(frames, on_host)
    decoded = chunks is not None and loops.streams(plan, backbone.model_settings.offload)
    if decoded and chunks is not None:  # sampling reports the progress of both
        if given is not None and given.before is not None and given.before.shape[2]:  # splitting none would give one without frames
            frames = itertools.chain(given.before.split(1, dim=2), frames)
        writer = Writer(job.output, plan.size, plan.fps, chunks.settings)
        pixels = shown.in_file(plan, backbone.decode, frames)
        write_video(writer, pixels if preview is None else preview.passing(pixels))
    else:
        for _ in frames:
            pass
    return {} if in_parts else {"latents": torch.cat(on_host, dim=2), **denoiser.streams}, decoded


def _sound(backbone: PipelineBackbone, plan: Plan, folder: Path) -> Sound | None:
    """The sound of the finished run in `folder`; None of a silent model."""
    from longgen import checkpoint, shown

    if not backbone.streams:
        return None
    path = folder / rundir.LATENTS
    return shown.heard(plan, backbone.sound(shown.streams(plan, backbone.streams, checkpoint.load_tensors(path)[0], path)))


def _given(
    backbone: PipelineBackbone, job: Job, generator: torch.Generator, state: State | None, chunks: Chunks | None
) -> Given | None:
    """What the video starts from, read and encoded on rank 0; a rollout keeps what it encoded in the run folder."""
    from longgen import checkpoint, shown
    from longgen.pipelines.given import Given

    plan, inputs, in_chunks = job.plan, run_folder(job.output) / rundir.INPUTS, job.plan.chunk_lat is not None
    team = ranks.join(backbone.model_settings.gpus, str(backbone.device))

    def read() -> tuple[Given | None, Tensor]:
        assert chunks is not None
        if state is not None and in_chunks and (inputs / past.GIVEN).is_file():
            return Given(shown.given_latents(plan, inputs)), generator.get_state()
        given = backbone.given(plan, generator)
        encoded = plan.conditions.past is None or plan.conditions.past.latents is None
        if in_chunks and encoded and given is not None and given.latents is not None:
            disk.make_folder(inputs)
            checkpoint.save_tensors(inputs / past.GIVEN, {"latents": given.latents}, chunks.settings)
        if given is not None and given.latents is not None and team.size > 1:  # or it would come to the card of rank 0
            given = dataclasses.replace(given, latents=given.latents.cpu())
        return given, generator.get_state()

    given, drawn = team.decide(read)
    generator.set_state(drawn)
    if given is not None and given.latents is not None and team.size > 1:
        given = dataclasses.replace(given, latents=given.latents.to(backbone.device))
    return given


def _copied(frames: Iterator[Tensor], on_host: list[Tensor]) -> Iterator[Tensor]:
    """`frames`, each copied to `on_host` as it passes."""
    for frame in frames:
        on_host.append(frame.cpu())
        yield frame


def generate_jobs(
    jobs: list[Job],
    model_settings: ModelSettings,
    resume: bool = False,
    report: Callable[[Progress], None] = no_report,
    log: Callable[[str], None] = no_report,
    overwrite: bool = False,
    each: Callable[[Result | Failure], None] = no_report,
    preview: Callable[[PipelineBackbone, Job], Preview] | None = None,
    backbone: PipelineBackbone | None = None,
) -> list[Result | Failure]:
    """Makes every job's video on one loaded model, which is that of the first one's plan. Finished ones are skipped.

    With `resume` it continues from what is left; only `overwrite` replaces what is there. Of several jobs, one that fails becomes
    a Failure and the rest goes on; a single one raises its error, and so does the first where nothing is loaded yet. On several
    ranks (`model_settings.gpus`) the error of one in the midst of a video ends them all. each: called with every result as soon as
    it is there. preview: makes the preview of a job. backbone: the model, where it is loaded already.
    """
    team = ranks.join(model_settings.gpus, model_settings.device)
    model_settings = model_settings.replace(device=team.device(model_settings.device))
    if not team.writes:
        report = log = no_report
    results: list[Result | Failure] = []
    report_one, videos = report, None
    if len(jobs) > 1:
        from longgen import cost

        videos = Videos([cost.ratio(job.plan) for job in jobs], model_settings.device, report)
        report_one = videos.of_one
    for number, job in enumerate(jobs, start=1):
        if len(jobs) > 1:
            log(f"[{number}/{len(jobs)}] {on_one_line(job.prompt, 200)}")
        try:
            with contextlib.ExitStack() as held:
                if team.decide(functools.partial(_is_finished, held, job, model_settings, resume, overwrite)):
                    results.append(skipped(job))
                    each(results[-1])
                    log(f"{job.output} is finished, with these settings: there is nothing to do (--overwrite makes it again)")
                    if videos is not None:
                        videos.settled(made=False)
                    continue
                load_s = 0.0
                if backbone is None:
                    backbone, load_s = load(job.plan.spec, model_settings, report, job.plan)
                    for note in backbone.notes:
                        log(f"note: {note}")
                    if model_settings.compile:
                        log("compiling: the first step takes seconds to minutes more")
                job = _announced(job, backbone, log)
                results.append(generate_one(backbone, job, resume, report_one, log, load_s, preview))
                each(results[-1])
        except LonggenError as error:
            if len(jobs) == 1 or backbone is None or (team.size > 1 and not error.everywhere):
                raise
            log(f"failed: {error}")
            results.append(Failure(job.output.stem, str(job.output), job.prompt, job.seed, error.given, error.expected, error.hint,
                                   error.exit_code))  # fmt: skip
            each(results[-1])
        if videos is not None:
            videos.settled()
    return results


def skipped(job: Job) -> Result:
    """The result of a job whose video is there already."""
    return dataclasses.replace(_result(job, {"load": 0.0, "sample": 0.0, "decode": 0.0}, 0), skipped=True)


def make(
    backbone: PipelineBackbone,
    job: Job,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Progress], None] = no_report,
    log: Callable[[str], None] = no_report,
) -> Result:
    """The video of one of several jobs, on a loaded model; skipped where it is finished. Raises LonggenError."""
    with contextlib.ExitStack() as held:
        if _is_finished(held, job, backbone.model_settings, resume, overwrite):
            return skipped(job)
        return generate_one(backbone, _announced(job, backbone, log), resume, report, log)


def _is_finished(held: contextlib.ExitStack, job: Job, model_settings: ModelSettings, resume: bool, overwrite: bool) -> bool:
    """Whether the video of `job` is there already, or else may be made; its run folder is locked until `held` ends."""
    held.enter_context(rundir.lock(job.output))
    run_settings = stored_settings(job.plan, job.prompt, job.seed, model_settings)
    finished = rundir.already_finished(job.output, run_settings, job.plan.written_px, resume, overwrite)
    if finished:
        rundir.clean_up(job.output)
    return finished


def _announced(job: Job, backbone: PipelineBackbone, log: Callable[[str], None]) -> Job:
    """`job` with notes on words of its prompt that the text encoder cuts off; logs these, its seed and the file that grows."""
    from longgen import loops
    from longgen.pipelines.token_limit import cut_notes, tokenizer_of
    from longgen.video import notes_of, partial_of

    plan = job.plan
    cut = cut_notes(plan, [job.prompt], tokenizer_of(backbone))
    for note in cut:
        log(f"note: {note}")
    for note in notes_of(job.output):
        log(f"note: {note}")
    log(f"seed {job.seed}")
    if loops.streams(plan, backbone.model_settings.offload):
        log(f"growing, and playable meanwhile: {partial_of(job.output)}")
    return job._replace(plan=dataclasses.replace(plan, notes=plan.notes + cut))


def load(
    spec: BackboneSpec, model_settings: ModelSettings, report: Callable[[Progress], None] = no_report, plan: Plan | None = None
) -> tuple[PipelineBackbone, float]:
    """The model of `spec`, and the seconds it took. plan: what it will run, for the hint where memory runs out.

    Raises OutOfMemoryError, and what `longgen.pipelines.loading.load` does.
    """
    start = time.monotonic()
    with working("prepare", report):  # the libraries take seconds
        from longgen.pipelines import loading
    with translate_oom("loading the model", model_settings, "or a smaller --backbone", plan):
        backbone = loading.load(spec, model_settings, report)
    return backbone, time.monotonic() - start


def write_video(writer: Writer, frames: Iterator[np.ndarray], phase: Phase | None = None) -> int:
    """Writes decoded `frames`, [F, height, width, 3] uint8 at a time, as they come; returns their number."""
    done, ending = 0, None
    with writer:
        for frames_px in frames:
            writer.add(frames_px)
            done += len(frames_px)
            if phase is not None:
                phase.at(done)
        if phase is not None:  # the encoder has frames left, and the file gets its index
            ending = Phase("write", 1, phase.device, phase.report, unit=UNCOUNTED)
    if ending is not None:
        ending.at(1)
    return done


def draw_seed(plan: Plan | None = None) -> int:
    """A seed that nobody asked for: where `plan` goes on from a rollout that run's own, whose generator goes on, else any."""
    past = None if plan is None or not plan.spec.causal else plan.conditions.past
    return secrets.randbelow(2**31) if past is None or past.seed is None else past.seed


def stored_request(output: Path, allow_code: bool = False) -> JobRequest:
    """The video that the stopped run of `output` makes, from its own record: `generate --resume` with nothing else.

    Raises LonggenError and its kinds where there is no such run, or what it starts from is gone.
    """
    stored = rundir.stored_record(output)["settings"]
    plan = from_settings(stored, run_folder(output) / rundir.RECORD, allow_code)
    if missing := missing_inputs(plan):
        raise MissingError(f"--resume: {missing[0]}, a copy of what the run starts from, is not there",
                           expected="the run's folder as longgen wrote it",
                           hint="give the whole command again, with its --image")  # fmt: skip
    return JobRequest(plan, stored["prompt"], stored["seed"], str(output))


def _result(job: Job, seconds: dict[str, float], peak_bytes: int) -> Result:
    plan, output = job.plan, job.output
    return Result(
        output.stem, str(output), str(run_folder(output)), job.prompt, plan.preset.name, plan.spec.name, job.seed, plan.written_px,
        plan.fps, seconds, peak_bytes, plan.notes,
    )  # fmt: skip
