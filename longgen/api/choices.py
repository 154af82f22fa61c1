"""What several commands and functions choose alike: the backbone, how it is loaded, the sampling, and the notes on prompts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from longgen import bars, progress, prompts, schedule
from longgen.api.words import FileName
from longgen.backbones import defaults, tiny_grammar
from longgen.backbones.find import find
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.errors import UsageError, conflict
from longgen.preset import Sample
from longgen.progress import Log, OnProgress, Progress
from longgen.schedule import PromptSchedule
from longgen.textfile import on_one_line

ShowProgress = Callable[[Progress], None] | bool
ONE_SETTING = "which is the same for all prompts here: use the options for it, and --seeds for seeds"  # why columns are refused


def backbone(name: str | None, log: Log = progress.no_report) -> BackboneSpec:
    """The backbone called `name`, or the default on this machine, which a note tells."""
    spec = find(name or defaults.default_backbone())
    if name is None and spec.built_in:
        log("no GPU found: using the built-in model tiny (64x64); for a real one: --backbone wan2.1-1.3b, a hub id or a "
            "diffusers folder")  # fmt: skip
    return spec


def model_settings(spec: BackboneSpec, values: Mapping[str, Any]) -> ModelSettings:
    """How to load `spec`: fields of `ModelSettings`, with the defaults of this machine for device and dtype where they are None."""
    device = defaults.default_device() if values["device"] is None else values["device"]
    lora = tuple(values.get("lora") or ())
    dtype = values["dtype"] or defaults.default_dtype(spec, device)
    settings = ModelSettings(**{**values, "device": device, "dtype": dtype, "lora": lora})
    if settings.guidance_parallel and settings.gpus == 1:
        raise UsageError("--guidance-parallel needs two GPUs or more, and this is one", expected="--gpus 2 with it",
                         hint="add it, or leave --guidance-parallel out")  # fmt: skip
    return settings


def sample(values: Mapping[str, Any]) -> Sample:
    """The fields of `Sample` among `values`; a size may be a text as `832x480`. Raises UsageError."""
    fields = {name: values[name] for name in Sample.model_fields if values.get(name) is not None}
    if isinstance(size := fields.get("size"), str):
        fields["size"] = prompts.parse_size(size)
    return Sample(**fields)


def shots(given: PromptSchedule | FileName | None) -> PromptSchedule | None:
    """The schedule, or the one in that file. Raises UsageError."""
    return schedule.load(Path(given)) if isinstance(given, str | os.PathLike) else given


def say_notes(notes: Iterable[str], log: Log) -> None:
    """Each note once."""
    for note in dict.fromkeys(notes):
        log(f"note: {note}")


def grammar_notes(spec: BackboneSpec, texts: Iterable[str]) -> list[str]:
    """A note where a built-in model does not know a sentence."""
    unknown = [text for text in texts if spec.built_in and tiny_grammar.parse(text) is None]
    if not unknown:
        return []
    return [f"{spec.name} was trained on one form of sentence, which '{on_one_line(unknown[0], 200)}' does not have; expect "
            f"nonsense. The form:\n{tiny_grammar.describe()}"]  # fmt: skip


@contextmanager
def reported(shown: ShowProgress) -> Iterator[OnProgress]:
    """The function that progress is reported to. shown: True for what the command line shows on stderr, a function, or False."""
    if callable(shown):
        yield shown
        return
    with bars.reporter(not shown, _on_stderr) as report:
        yield report


def _on_stderr(line: str) -> None:
    """Writes a line of progress; a stderr that is closed or full is ignored."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def texts(prompt: str | None, given: FileName | Sequence[str] | None, log: Log) -> list[str]:
    """The different prompts of a command whose settings are the same for all: one, a list of them, or those of a file."""
    if prompt is not None and given is not None:
        raise conflict("--prompt", "--prompts", expected="--prompt TEXT, or --prompts FILE")
    if isinstance(given, str | os.PathLike):
        rows, notes = prompts.read(Path(given), ("prompt",), ONE_SETTING)
        say_notes(notes, log)
        found = [row.prompt for row in rows]
    else:
        found = [prompts.checked(text, "--prompt") for text in ([] if prompt is None else [prompt]) + [*(given or ())]]
    if not found:
        raise UsageError("no prompt is given", expected="--prompt TEXT, or --prompts FILE",
                         hint='for example --prompt "a red circle"')  # fmt: skip
    if repeated := [text for text in found if found.count(text) > 1]:
        say_notes([f"'{on_one_line(repeated[0], 60)}' is given {found.count(repeated[0])} times, and is used once"], log)
    return [*dict.fromkeys(found)]
