"""longgen decode: saved latents to a video."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from longgen.cli import messages
from longgen.cli.app import answer, app, logger, say
from longgen.cli.options import AllowCode, Device, OutputOptions, Tiling
from longgen.errors import LonggenError, UsageError


@app.command()
def decode(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="A run's folder, or the latents in it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A name in .mp4, .webm or .gif (default: beside the run)")
    ] = None,
    device: Device = None,
    vae_tiling: Tiling = False,
    *,
    allow_code: AllowCode = False,
    options: OutputOptions,
) -> None:
    """Turn saved latents into a video, without sampling again."""
    from longgen import bars, checkpoint, disk, naming, progress, resolve, run, rundir, shown, video
    from longgen.backbones.settings import ModelSettings
    from longgen.cli.lines import sentence
    from longgen.out_of_memory import translate_oom

    if latents.suffix == ".run":
        latents = latents / ("latents" if (latents / "latents").is_dir() else "latents.safetensors")
    chunks = checkpoint.Chunks(latents, {})
    tensors, stored = ({}, chunks.stored_settings()) if len(chunks) else checkpoint.load_tensors(latents)
    if "preset" not in stored or not (len(chunks) or "latents" in tensors):
        raise LonggenError(f"{latents} holds no latents of a run", expected="a run folder, or the latents.safetensors in it",
                           hint="check the path")  # fmt: skip
    done = stored.get("done", 0)
    if not isinstance(done, int) or done < 0:
        raise checkpoint.damaged(latents, f"it claims {done} finished steps")
    log = logger(options.quiet)
    if "done" in stored:
        log(f"note: {latents} is a checkpoint after step {done}; the video will be noisy")
    plan = resolve.from_settings(stored, latents, allow_code)
    whole = rundir.latent_shape(plan)
    if done > plan.rounds:
        raise checkpoint.damaged(latents, f"it claims {done} of {plan.rounds} finished rounds")
    if len(chunks):
        chunks.check((*whole[:2], None, *whole[3:]))
    else:
        checkpoint.check_latents(latents, tensors["latents"], whole)
    folder = latents.absolute().parent
    parts = len(plan.clips) or plan.rounds
    target = output or (naming.output_of(folder) if folder.suffix == ".run" else latents.with_suffix(".mp4"))
    if output is None and 0 < len(chunks) < parts:
        reason = f" ({chunks.damage})" if chunks.damage else ""
        name = "clips" if plan.clips else "chunks"
        raise UsageError(f"{latents} holds {len(chunks)} of {parts} {name}{reason}, and the name beside it is the whole video's",
                         expected="--output FILE for what there is",
                         hint=f"add -o {target.stem}-so-far{target.suffix}")  # fmt: skip
    target = naming.output_path(str(target), stored["prompt"], stored["seed"])
    video.check_kind(target, plan.fps)
    for note in video.notes_of(target):
        log(f"note: {note}")
    disk.check_new(target, options.overwrite)
    rundir.check_place(target)
    settings = {key: value for key, value in stored.items() if key not in ("done", "scheduler", "vae_tiling")}
    settings |= {"vae_tiling": True} if vae_tiling else {}

    with rundir.lock(target), bars.reporter(options.quiet, say) as report:
        disk.check_new(target, options.overwrite)  # again: another process may have made it
        loading = progress.Phase("load", 1, "cpu", report)
        from longgen.backbones.defaults import default_device, default_dtype
        from longgen.backbones.registry import adapter_of
        from longgen.pipelines.loading import decoder, sound_decoder

        where = device or default_device()
        model_settings = ModelSettings(where, default_dtype(plan.spec, where), vae_tiling=vae_tiling)
        with translate_oom("decoding", model_settings, "the latents are kept; or --device cpu", decoding=True):
            frames_of = decoder(plan.spec, where, vae_tiling, stored.get("vae"))
            sound_of = sound_decoder(plan.spec, where)
            loading.at(1)
            frames_lat = shown.stored(plan, folder, chunks if len(chunks) else tensors["latents"])
            decoding = progress.Phase("decode", plan.written_px, where, report)
            sound = shown.heard(plan, sound_of(shown.streams(plan, adapter_of(plan.spec).streams, tensors, latents)))
            writer = video.Writer(target, plan.size, plan.fps, settings, sound)
            frames_px = run.write_video(writer, shown.in_file(plan, frames_of, frames_lat), decoding)
        seconds = round(decoding.seconds, 3)
        if frames_px == plan.written_px and naming.run_folder(target).absolute() == folder:
            rundir.mark_decoded(target)
    if frames_px < plan.written_px:
        log(f"note: {chunks.damage or 'the stream was stopped before its end'}; these are {frames_px} frames of {plan.written_px}")
    result = {"name": target.stem, "output": str(target), "frames": frames_px, "seconds": {"decode": seconds}}
    told = sentence(str(target), frames_px, plan.fps, plan.size, f"decoded in {progress.clock_text(loading.seconds)}")
    on_terminal = not (options.quiet or options.as_json) and messages.is_terminal(sys.stdout)
    answer(told if on_terminal else str(target), result, options.as_json, wrote=True)
    if not on_terminal:
        log(told)
