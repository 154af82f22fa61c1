"""`longgen generate` in Python: one video, or one after the other on a model that stays loaded."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from longgen import arguments, launch, naming, ranks, resolve, run, rundir, start
from longgen.api import choices, probe
from longgen.api.choices import ShowProgress
from longgen.api.words import EARLIER, Dtype, FileName, Offload, log_of, public
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.errors import UsageError, conflict
from longgen.pictures import FITS
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.checks import check_plan
from longgen.pipelines.preset_lora import settings_of
from longgen.progress import Log, OnProgress
from longgen.prompts import checked
from longgen.resolve import PlanRequest
from longgen.run import Result
from longgen.run_settings import model_settings_in
from longgen.rundir import Job, JobRequest
from longgen.schedule import PromptSchedule


@dataclass(frozen=True)
class _Video:
    """The arguments of one video; see `generate`."""

    prompt: str | None
    output: FileName | None
    schedule: PromptSchedule | FileName | None
    negative_prompt: str | None
    image: FileName | None
    last_image: FileName | None
    continue_from: FileName | None
    join: bool
    fit: Literal["crop", "pad"]
    frames: int | None
    duration: str | None
    size: tuple[int, int] | str | None
    steps: int | None
    guidance_scale: float | None
    flow_shift: float | None
    seed: int | None
    fps: int | None
    preset: str | None
    overrides: Sequence[str] | None
    layers: str | None
    probe: str | None
    allow_code: bool
    resume: bool
    overwrite: bool


@public(**EARLIER)
def generate(
    prompt: str | None = None,
    output: FileName | None = None,
    *,
    schedule: PromptSchedule | FileName | None = None,
    negative_prompt: str | None = None,
    image: FileName | None = None,
    last_image: FileName | None = None,
    continue_from: FileName | None = None,
    join: bool = False,
    fit: Literal["crop", "pad"] = "crop",
    frames: int | None = None,
    duration: str | None = None,
    size: tuple[int, int] | str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    flow_shift: float | None = None,
    seed: int | None = None,
    fps: int | None = None,
    preset: str | None = None,
    overrides: Sequence[str] | None = None,
    layers: str | None = None,
    probe: str | None = None,
    allow_code: bool = False,
    backbone: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    offload: Offload = "none",
    lora: Sequence[str] | None = None,
    quantize: Literal["fp8", "int8"] | None = None,
    attention: str | None = None,
    cache: str | None = None,
    compile: bool = False,
    vae_tiling: bool = False,
    vae: FileName | None = None,
    text_encoder: FileName | None = None,
    clip_batch: int = 1,
    gpus: int = 1,
    guidance_parallel: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    log: Log | None = None,
    progress: ShowProgress = False,
) -> Result:
    """Makes one video: `longgen generate`, whose options these are.

    prompt: what it shows; negative_prompt: what it should not. output: a name in .mp4, .webm or .gif, or a folder (default:
    PROMPT-SEED.mp4 here).
    schedule: prompts over time, in place of `prompt`: a TOML file, or what `longgen.schedule.load` returns.
    image, last_image: picture files, the first frame and the last. continue_from: a video or a run folder to go on from; `frames`
    then counts the new frames, and the file begins with the earlier ones if `join`. fit: how pictures come to the size.
    frames: pixel frames, rounded up to a length the model can generate; or duration, as "20s". size: (width, height) or "832x480".
    steps, guidance_scale, flow_shift: of denoising; None is the preset's value, or the model's. fps: of the file alone.
    seed: drawn, and logged, where None.
    preset: a name or a TOML file. overrides: parameters of it, as ["freespec.kappa=2"]. layers, probe: which layers a preset acts
    in that depends on a probe. allow_code: whether a preset may name Python classes as techniques, which runs their code.
    backbone: a name, a hub id, a folder or a file (default: wan2.1-1.3b with a GPU, else tiny).
    dtype: of the transformer (default: the model's own on a GPU, fp32 on a CPU). device: cpu, cuda or cuda:1 (default: the GPU if
    there is one). offload: what diffusers keeps in host memory; slower from none to sequential. lora: files, each with an optional
    scale, as ["style.safetensors:0.8"]. quantize: weights in 8 bits. attention: a backend of diffusers, such as "flash". cache: a
    step cache of diffusers, as "first-block:0.05". compile: the model's blocks, which delays the first step. vae_tiling: decodes in
    tiles, with less memory and faint seams. vae, text_encoder: a file and a folder in place of the model's own. clip_batch: clips
    per model call, where a preset samples clip by clip.
    gpus: with 2 the script runs on two ranks, as `torchrun --nproc-per-node 2` starts them, and rank 0 writes. guidance_parallel:
    the two calls of guidance run on two halves of the ranks.
    resume: go on with the stopped run of this output; without a prompt, with its stored settings. overwrite: start over, and
    replace existing files. Without these, a finished video with these settings is not made again, and any other is not replaced.
    log: gets each line that the command line would print (default: the logger `longgen`, notes as warnings).
    progress: a function that gets each `longgen.Progress`; True shows them on stderr.

    Raises LonggenError and its kinds.
    """
    given = locals()  # the parameters
    video, say = _video(given), log_of(log)
    values = {name: given[name] for name in ModelSettings.model_fields}
    _check_together(video)
    stored = None
    if resume and output is not None and prompt is None and schedule is None:
        _check_alone(given, generate, {*ModelSettings.model_fields} - {"device", "offload", "vae_tiling", "gpus",
                                                                       "guidance_parallel"} | {"backbone"})  # fmt: skip
        stored = run.stored_request(Path(output), allow_code)
        spec, values = stored.plan.spec, values | model_settings_in(rundir.stored_record(Path(output))["settings"])
    else:
        spec = choices.backbone(backbone, say)
    settings = choices.model_settings(spec, values)
    launch.check_device(settings.gpus, settings.device)
    team = ranks.join(settings.gpus, settings.device)
    with choices.reported(progress) as report:
        jobs, settings = team.decide(lambda: _jobs(video, spec, settings, stored, say, report))
        (result,) = run.generate_jobs(jobs, settings, resume, report, say, overwrite)
    assert isinstance(result, Result)  # a single job raises instead
    return result


@public()
def load(
    backbone: str | None = None,
    *,
    dtype: Dtype | None = None,
    device: str | None = None,
    offload: Offload = "none",
    lora: Sequence[str] | None = None,
    quantize: Literal["fp8", "int8"] | None = None,
    attention: str | None = None,
    cache: str | None = None,
    compile: bool = False,
    vae_tiling: bool = False,
    vae: FileName | None = None,
    text_encoder: FileName | None = None,
    clip_batch: int = 1,
    log: Log | None = None,
    progress: ShowProgress = False,
) -> Model:
    """Loads a model, which then makes any number of videos: see `Model`. The parameters are those of `generate`.

        with longgen.load("tiny") as model:
            for seed in range(3):
                model.generate("a red circle", f"circle-{seed}.mp4", preset="freespec", frames=161, seed=seed)

    log, progress: for loading, and for the videos that name no others. Raises LonggenError and its kinds.
    """
    given = locals()
    say = log_of(log)
    spec = choices.backbone(backbone, say)
    values = {name: given[name] for name in ModelSettings.model_fields if name in given}
    model = Model(spec, choices.model_settings(spec, values), log, progress)
    with choices.reported(progress) as report:
        model._load(model.settings, say, report)
    return model


class Model:
    """A loaded model, from `longgen.load`: each video is the one that `longgen.generate` makes, bit for bit.

    spec, settings: what it is, and how it is loaded. A preset that brings LoRAs of its own has the model loaded again, with a note.
    An error leaves the model as it was. One video at a time. `close`, or the end of a `with`, frees its memory.
    """

    def __init__(self, spec: BackboneSpec, settings: ModelSettings, log: Log | None = None, progress: ShowProgress = False) -> None:
        self.spec, self.settings = spec, settings
        self._log, self._progress = log, progress
        self._loaded: PipelineBackbone | None = None
        self._loaded_with: ModelSettings | None = None  # `settings`, and the LoRAs of a preset
        self._closed = False

    @public(**EARLIER)
    def generate(
        self,
        prompt: str | None = None,
        output: FileName | None = None,
        *,
        schedule: PromptSchedule | FileName | None = None,
        negative_prompt: str | None = None,
        image: FileName | None = None,
        last_image: FileName | None = None,
        continue_from: FileName | None = None,
        join: bool = False,
        fit: Literal["crop", "pad"] = "crop",
        frames: int | None = None,
        duration: str | None = None,
        size: tuple[int, int] | str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        flow_shift: float | None = None,
        seed: int | None = None,
        fps: int | None = None,
        preset: str | None = None,
        overrides: Sequence[str] | None = None,
        layers: str | None = None,
        probe: str | None = None,
        allow_code: bool = False,
        resume: bool = False,
        overwrite: bool = False,
        log: Log | None = None,
        progress: ShowProgress | None = None,
    ) -> Result:
        """Makes one video: `longgen.generate`, with its parameters, but for those that say how the model is loaded."""
        given = locals()
        if self._closed:
            raise UsageError("this model is closed", expected="a model that longgen.load returned", hint="load it again")
        video, say = _video(given), log_of(log or self._log)
        _check_together(video)
        stored = None
        if resume and output is not None and prompt is None and schedule is None:
            _check_alone(given, Model.generate, set())
            stored = run.stored_request(Path(output), allow_code)
            if stored.plan.spec.name != self.spec.name:
                raise UsageError(f"{output} was begun on {stored.plan.spec.name}, and this model is {self.spec.name}",
                                 expected="a run of this model", hint="longgen.generate loads the model of the run")  # fmt: skip
        with choices.reported(self._progress if progress is None else progress) as report:
            jobs, settings = _jobs(video, self.spec, self.settings, stored, say, report)
            if settings != self._loaded_with:
                say(f"note: loading {self.spec.name} again, with the LoRAs of {jobs[0].plan.preset.name} or without earlier ones")
                self._load(settings, say, report)
            (result,) = run.generate_jobs(jobs, settings, resume, report, say, overwrite, backbone=self._loaded)
        assert isinstance(result, Result)
        return result

    def _load(self, settings: ModelSettings, log: Log, report: OnProgress) -> None:
        """Loads the model with `settings`, in place of the one that is loaded."""
        self._free()
        self._loaded, _ = run.load(self.spec, settings, report)
        self._loaded_with = settings
        choices.say_notes(self._loaded.notes, log)
        if settings.compile:
            log("compiling: the first step takes seconds to minutes more")

    def _free(self) -> None:
        if self._loaded is None:
            return
        device, self._loaded, self._loaded_with = str(self._loaded.device), None, None
        gc.collect()
        if device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()

    def close(self) -> None:
        """Frees the memory of the model, which then makes no more videos; a second time it does nothing."""
        self._closed = True
        self._free()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        how = "closed" if self._closed else f"{self.settings.dtype} on {self.settings.device}"
        return f"<longgen.Model {self.spec.name}, {how}>"


def _video(given: dict[str, Any]) -> _Video:
    return _Video(**{field.name: given[field.name] for field in fields(_Video)})


def _check_together(video: _Video) -> None:
    if video.resume and video.overwrite:
        raise conflict("--resume", "--overwrite")
    if video.schedule is not None and video.prompt is not None:
        raise conflict("--schedule", "--prompt", hint="leave --prompt out")


def _check_alone(given: dict[str, Any], function: Any, more: set[str]) -> None:
    """Raises UsageError where a run is to go on with its stored settings, and others are given."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    settings = {field.name for field in fields(_Video)} - {"output", "resume", "allow_code"} | more
    if others := ", ".join(name for name in given if name in settings and given[name] != defaults[name]):
        raise UsageError(f"resume without prompt takes every setting from the stored run; {others} cannot be combined with it",
                         expected="output, allow_code, device, offload, vae_tiling, gpus and guidance_parallel",
                         hint=f"leave {others} out, or give all settings again")  # fmt: skip


def _jobs(
    video: _Video, spec: BackboneSpec, settings: ModelSettings, stored: JobRequest | None, log: Log, report: OnProgress
) -> tuple[list[Job], ModelSettings]:
    """The video as a job, checked, and how the model is loaded for it; logs its notes. Raises LonggenError and its kinds."""
    request = stored or _request(video, spec, settings, log, report)
    settings = settings_of(request.plan, settings)
    jobs = rundir.jobs_of([request], settings, video.resume, video.overwrite)
    choices.say_notes(check_plan(request.plan, settings), log)
    return jobs, settings


def _request(video: _Video, spec: BackboneSpec, settings: ModelSettings, log: Log, report: OnProgress) -> JobRequest:
    """The video as it is asked for, with its plan."""
    output = None if video.output is None else os.fspath(video.output)
    seed = None if video.seed is None else arguments.seed(video.seed)
    shots = choices.shots(video.schedule)
    text = video.prompt if shots is None else shots.shots[0].prompt
    if text is None:
        raise UsageError("no prompt is given", expected="prompt=TEXT, or schedule=FILE", hint='for example prompt="a red circle"')
    text = checked(text, "prompt")
    resumed = Path(output) if video.resume and output is not None and naming.is_file_name(output) else None
    conditions = start.read(video.image, video.last_image, video.continue_from, video.join, video.fit, resumed)
    sample = choices.sample({field.name: getattr(video, field.name) for field in fields(_Video)})
    if seed is None and resumed is not None:
        seed = rundir.stored_record(resumed)["settings"]["seed"]
    request = PlanRequest(video.preset, spec, (*(video.overrides or ()),), sample, video.duration, shots, video.layers, video.probe,
                          settings.lora, video.allow_code, conditions, settings.gpus, settings.guidance_parallel)  # fmt: skip
    if video.resume and seed is not None and (began := rundir.kept_preset(request, output, text, seed)) is not None:
        choices.say_notes([f"resume without preset goes on with {began}, with which the run began"], log)
        request = replace(request, preset=began)
    if video.probe == "run":
        if settings.gpus > 1:
            raise conflict("--probe run", f"--gpus {settings.gpus}", "a probe runs on one GPU",
                           hint="longgen probe first; its result is stored")  # fmt: skip
        request = replace(request, probe=probe.quick(request.load_preset(), spec, settings, conditions, log, report))
    plan = resolve.resolve(request)
    start.check_fit(video.fit != FITS[0], plan.fits)
    choices.say_notes(plan.notes, log)
    if seed is None and video.resume:
        raise UsageError("--resume without --seed needs the --output FILE.mp4 of the run", expected="--seed N or output=FILE.mp4",
                         hint="add one of them")  # fmt: skip
    choices.say_notes(choices.grammar_notes(spec, [shot.prompt for shot in shots.shots] if shots else [text]), log)
    return JobRequest(plan, text, run.draw_seed(plan) if seed is None else seed, output)
