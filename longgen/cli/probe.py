"""longgen probe: which layers of a backbone are sensitive to position and to context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from longgen.cli.app import answer, app, reports_errors, say
from longgen.cli.inputs import backbone_asked, make_setup, parse_size, read_prompts, read_seeds, warn_of_grammar
from longgen.cli.options import Backbone, Device, Dtype, Frames, Json, Lora, Offload, Overwrite, Quiet, Seeds, Size
from longgen.errors import UsageError

if TYPE_CHECKING:
    from longgen.backbones.settings import ModelSettings
    from longgen.backbones.spec import BackboneSpec
    from longgen.layers.probe_file import Probe, ProbeSettings
    from longgen.preset import Preset


@app.command()
@reports_errors
def probe(
    backbone: Backbone = None,
    frames: Frames = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="In place of two prompts of longgen's own.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="One prompt a line in .txt; also .csv and .jsonl.")
    ] = None,
    seeds: Seeds = "0,1",
    metric: Annotated[
        Literal["attention", "latent", "video"] | None,
        typer.Option(
            "--metric",
            help="The score that decides: attention itself, or what changing it does to latents or video (default: latent).",
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, help="Layers with a score above are sensitive (default: the largest gap).")
    ] = None,
    top: Annotated[int | None, typer.Option("--top", min=0, metavar="K", help="The K layers with the highest scores are.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps of each run (default: 10 at most).")] = None,
    size: Size = None,
    quick: Annotated[bool, typer.Option("--quick", help="Watch two ordinary generations; change no layer.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what was measured before.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where the report goes (default: probe-BACKBONE-FRAMES here)."),
    ] = None,
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = "none",
    lora: Lora = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the layers that are sensitive to position and to context; presets such as freeloc use the answer.

    Takes many short generations; with --quick two long ones.
    """
    from longgen import disk, naming
    from longgen.probe import measure, report

    spec = backbone_asked(backbone, quiet)
    texts = (
        None
        if prompt is None and prompts is None
        else read_prompts(prompt, prompts, quiet, "the flags give it, and --seeds the seeds")
    )
    if texts is not None:
        warn_of_grammar(spec, texts, quiet)
    model_settings = make_setup(spec, dict(device=device, dtype=dtype, offload=offload, lora=tuple(lora or ())))
    settings = measure.make_settings(
        spec, "quick" if quick else "full", frames, steps, texts, read_seeds(seeds), None if size is None else parse_size(size),
        model_settings.dtype, model_settings.lora,
    )  # fmt: skip
    default = Path(f"probe-{naming.slug(spec.name)}-{settings.frames}")
    folder = output or report.free_folder(default, spec.name, settings, overwrite)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file, and a report is several", expected="a folder", hint="give another name")
    report.check_output(folder, spec.name, settings, overwrite)
    found, place = run_probe(spec, model_settings, settings, metric, threshold, top, again, quiet)
    with disk.held(folder / disk.LOCK, str(folder)):
        report.check_output(folder, spec.name, settings, overwrite)
        written = report.write(found, folder)
    answer(report.text(found), found.as_dict(), as_json, made=True)
    if not quiet:
        say(f"report: {next(path for path in written if path.suffix == '.html')}; kept for presets: {place}")


def probe_first(preset: Preset, spec: BackboneSpec, loading: dict[str, Any], quiet: bool) -> str:
    """`--probe run`: a quick probe of `spec` at the length of `preset`'s video; its file, or `run` where `preset` needs none."""
    from longgen.layers import selection
    from longgen.probe import measure

    if not selection.uses_probe(preset):
        return "run"  # which `chosen` refuses
    model_settings, frames = make_setup(spec, loading), preset.sample_on(spec).frames or spec.native_px
    settings = measure.make_settings(
        spec, "quick", frames, None, None, (0, 1), preset.sample_on(spec).size, model_settings.dtype, model_settings.lora
    )
    return str(run_probe(spec, model_settings, settings, None, None, None, again=False, quiet=quiet)[1])


def run_probe(
    spec: BackboneSpec,
    model_settings: ModelSettings,
    settings: ProbeSettings,
    metric: Literal["attention", "latent", "video"] | None,
    threshold: float | None,
    top: int | None,
    again: bool,
    quiet: bool,
) -> tuple[Probe, Path]:
    """`longgen.probe.run.probe` with its progress on stderr."""
    from longgen.probe.run import probe as run_it
    from longgen.progress import reporter

    def log(message: str) -> None:
        if not quiet:
            say(message)

    with reporter(quiet, say) as report:
        return run_it(spec, model_settings, settings, metric, threshold, top, again, report, log)
