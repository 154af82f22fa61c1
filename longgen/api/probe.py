"""`longgen probe` in Python: which layers of a backbone are sensitive to position and to context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longgen import disk, naming, notebook, start, units
from longgen import export as exporting
from longgen.api import choices
from longgen.api.choices import ShowProgress
from longgen.api.words import Dtype, FileName, Offload, log_of, public
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.conditions import Conditions
from longgen.errors import UsageError
from longgen.layers import selection
from longgen.layers.probe_file import Probe, ProbeSettings, ScoreName
from longgen.pictures import FITS
from longgen.preset import Preset
from longgen.probe import measure, report
from longgen.probe.export import exports
from longgen.probe.run import probe as run_probe
from longgen.progress import Log, OnProgress


@dataclass(frozen=True)
class ProbeResult:
    """A probe: its verdicts, and the report. `str()` is the text of `longgen probe`.

    probe: the scores and verdicts, see `longgen.layers.probe_file`. folder: of the report. stored: probe.json, where presets that
    need it find it. files: of the report; exported: those for papers.
    """

    probe: Probe
    folder: Path
    stored: Path
    files: tuple[Path, ...]
    exported: tuple[Path, ...] = ()

    @property
    def page(self) -> Path:
        """The report as an HTML page."""
        return self.folder / "report.html"

    @property
    def plots(self) -> tuple[Path, ...]:
        """The figures of the report, as PNG files."""
        return tuple(path for path in self.files if path.suffix == ".png")

    def as_dict(self) -> dict[str, Any]:
        """The content of probe.json."""
        return self.probe.as_dict()

    def __str__(self) -> str:
        return report.text(self.probe)

    def _repr_html_(self) -> str:
        settings = self.probe.settings
        title = f"{settings.mode} probe of {self.probe.backbone} at {settings.frames} frames"
        return notebook.shown(title, files=self.plots[:1], links=[self.page], notes=self.probe.warnings, text=str(self))


@public()
def probe(
    *,
    backbone: str | None = None,
    frames: int | None = None,
    duration: str | None = None,
    prompt: str | None = None,
    prompts: FileName | Sequence[str] | None = None,
    image: FileName | None = None,
    fit: Literal["crop", "pad"] = "crop",
    seeds: Sequence[int] = (0, 1),
    metric: ScoreName | None = None,
    threshold: float | None = None,
    top: int | None = None,
    steps: int | None = None,
    size: tuple[int, int] | str | None = None,
    quick: bool = False,
    heads: bool = False,
    again: bool = False,
    output: FileName | None = None,
    export: Sequence[str] | None = None,
    overwrite: bool = False,
    dtype: Dtype | None = None,
    device: str | None = None,
    offload: Offload = "none",
    lora: Sequence[str] | None = None,
    vae: FileName | None = None,
    text_encoder: FileName | None = None,
    log: Log | None = None,
    progress: ShowProgress = False,
) -> ProbeResult:
    """Finds the layers that are sensitive to position and to context: `longgen probe`, whose options these are.

    frames: pixel frames of every run (default: 4 times the native length); or duration, as "20s". prompt, or prompts, a list or a
    file of them: in place of two built-in ones. seeds: a run for each. metric: the score that decides: attention, latent (the
    default) or video. threshold, or top, a number of layers: where the split is (default: at the largest gap). quick: observes
    two ordinary generations, and changes no layer. heads: also what each attention head sees of the past; of causal backbones.
    again: measures what is stored already. output: the folder of the report (default: probe-BACKBONE-FRAMES here). export: also
    tables for papers ("csv", "latex", "markdown") and vector figures ("svg", "pdf"). The others are those of `longgen.generate`.

    Raises LonggenError and its kinds.
    """
    given, say = locals(), log_of(log)
    formats = exporting.parse(None if export is None else [*export])
    spec = choices.backbone(backbone, say)
    texts = None if prompt is None and prompts is None else choices.texts(prompt, prompts, say)
    choices.say_notes(choices.grammar_notes(spec, texts or ()), say)
    conditions = start.read(image, fit=fit)
    start.check_fit(fit != FITS[0], bool(conditions))
    how = choices.model_settings(spec, {name: given[name] for name in ModelSettings.model_fields if name in given})
    length = units.frames_asked(frames, duration, spec.fps)
    settings = measure.make_settings(spec, "quick" if quick else "full", length, steps, texts, tuple(seeds),
                                     choices.sample(given).size, how.dtype, how.lora, conditions, heads)  # fmt: skip
    with choices.reported(progress) as on_progress:
        made = reported(spec, how, settings, (metric, threshold, top), None if output is None else Path(output), again, overwrite,
                        conditions, say, on_progress, formats=formats)  # fmt: skip
    log_report(made, say)
    return made


def reported(
    spec: BackboneSpec,
    how: ModelSettings,
    settings: ProbeSettings,
    rule: tuple[ScoreName | None, float | None, int | None],
    output: Path | None,
    again: bool,
    overwrite: bool,
    conditions: Conditions,
    log: Log,
    on_progress: OnProgress,
    spread: Callable[[Path], None] | None = None,
    formats: Sequence[str] = (),
) -> ProbeResult:
    """The probe with `settings`, measured or stored, and its report in a folder. rule: metric, threshold and top. spread: see
    `longgen.probe.run.probe`. formats: of files for papers. Raises LonggenError and its kinds.
    """
    choices.say_notes(conditions.notes(settings.size), log)
    default = Path(f"probe-{naming.slug(spec.name)}-{settings.frames}")
    folder = output or report.free_folder(default, spec.name, settings, overwrite)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file, but a report is a folder", expected="a folder", hint="give another name")
    report.check_output(folder, spec.name, settings, overwrite, formats)
    result, stored = run_probe(spec, how, settings, *rule, again, on_progress, log, conditions, spread)
    with disk.held(folder / disk.LOCK, str(folder)):
        report.check_output(folder, spec.name, settings, overwrite, formats)
        files = report.write(result, folder)
        exported = exports(result).write(formats, folder / exporting.FOLDER) if formats else []
    return ProbeResult(result, folder, stored, tuple(files), tuple(exported))


def log_report(made: ProbeResult, log: Log) -> None:
    """Says where the files of the probe are."""
    log(f"report: {made.page}; stored for presets: {made.stored}")
    if made.exported:
        names = ", ".join(path.name for path in made.exported)
        log(f"export: {len(made.exported)} files in {made.folder / exporting.FOLDER}: {names}")


def quick(preset: Preset, spec: BackboneSpec, how: ModelSettings, conditions: Conditions, log: Log, report: OnProgress) -> str:
    """`--probe run`: a quick probe at the length of the preset's video, which starts from `conditions`; its file, or `run` where
    the preset needs none.
    """
    if not selection.uses_probe(preset):
        return "run"  # which layer selection refuses
    sample = preset.sample_on(spec)
    settings = measure.make_settings(spec, "quick", sample.frames or spec.native_px, None, None, (0, 1), sample.size, how.dtype,
                                     how.lora, conditions)  # fmt: skip
    return str(run_probe(spec, how, settings, None, None, None, False, report, log, conditions)[1])
