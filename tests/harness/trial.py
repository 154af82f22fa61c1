"""One trial: the real command line in a fork of this process, in which torch is imported and the model is loaded once."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from longgen.planner import GREY

PROMPT = "a large red circle bouncing on a navy background"
TINY = ["generate", "--prompt", PROMPT, "--backbone", "tiny", "--frames", "17", "--steps", "2", "--device", "cpu"]
CAUSAL = [
    "generate", "--prompt", PROMPT, "--backbone", "tiny-causal", "--preset", "self-forcing", "--frames", "21", "--device", "cpu",
]  # fmt: skip
CHAIN = [  # clips from a picture
    "generate", "--prompt", PROMPT, "--image", str(GREY), "--backbone", "tiny", "--preset", "chain",
    "--set", "chain.frames=3", "--set", "chain.overlap=1", "--frames", "25", "--steps", "2", "--device", "cpu",
]  # fmt: skip
LATER = [*CAUSAL, "--continue", "EARLIER/a.mp4", "--join"]  # EARLIER: the folder of the undisturbed "causal"
KINDS = {"tiny": TINY, "causal": CAUSAL, "chain": CHAIN, "later": LATER}
LIMIT_S = 120


@dataclass(frozen=True)
class Outcome:
    """code: of the process, -9 after SIGKILL."""

    code: int
    said: str

    @property
    def sentence(self) -> bool:
        """Whether an error is somebody's sentence."""
        return "Traceback" not in self.said and "defect" not in self.said


@cache
def warm() -> None:
    """Loads what every trial needs; forks of this process have it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    from longgen.backbones import settings
    from longgen.backbones.registry import SPECS
    from longgen.pipelines import loading

    load, loaded = loading.load, dict[Any, Any]()

    def once(spec: Any, model_settings: Any, *_: Any) -> Any:
        if (spec.name, model_settings) not in loaded:
            loaded[spec.name, model_settings] = load(spec, model_settings)
        return loaded[spec.name, model_settings]

    for name in ("tiny", "tiny-causal"):
        once(SPECS[name], settings.ModelSettings("cpu", "fp32"))
    loading.load = once  # the same model, loaded before
    from imageio_ffmpeg import get_ffmpeg_exe

    get_ffmpeg_exe()  # remembers where ffmpeg is
    import longgen.cli
    import longgen.run  # noqa: F401
    from longgen.sampling import fifo, rollout  # noqa: F401


def start(folder: Path, arguments: Sequence[str], before: Callable[[], None] = lambda: None) -> tuple[int, Path]:
    """The process of `longgen ARGUMENTS` in `folder`, and where its words go. before: called in it first."""
    warm()
    said = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.said")
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process, said
    code = 70
    try:
        os.chdir(folder)
        words = said.open("w", buffering=1, encoding="utf-8", errors="replace")
        os.dup2(words.fileno(), 1)
        os.dup2(words.fileno(), 2)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)
        from longgen.cli import app

        out = io.StringIO()
        before()
        with redirect_stderr(words), redirect_stdout(out):
            try:
                app([*arguments], standalone_mode=True)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        words.write(out.getvalue())
        words.flush()
    except BaseException:
        traceback.print_exc(file=words)
        words.flush()
    finally:
        os._exit(code)


def ended(process: int, said: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Waits for the end of `process`."""
    deadline = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            said.open("a").write("Traceback: it did not end")
            break
        time.sleep(0.002)
    words = said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""
    said.unlink(missing_ok=True)
    return Outcome(os.waitstatus_to_exitcode(status), words)


def longgen(folder: Path, arguments: Sequence[str], before: Callable[[], None] = lambda: None) -> Outcome:
    return ended(*start(folder, arguments, before))


def content(folder: Path) -> dict[str, bytes]:
    """Every file in `folder`, by its place there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def latents(run: Path) -> bytes | None:
    """The latents that the folder of a finished run holds."""
    import torch
    from safetensors.torch import load_file

    if (run / "latents.safetensors").is_file():
        return load_file(run / "latents.safetensors")["latents"].numpy().tobytes()
    if not (run / "latents").is_dir():
        return None
    files = sorted((run / "latents").glob("*.safetensors"))
    return torch.cat([load_file(path)["latents"] for path in files], dim=2).numpy().tobytes() if files else None


class Reference:
    """The undisturbed video of `kind` with a seed: its bytes, its latents, the files of its folder."""

    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        earlier = str(reference("causal", 1, folder).folder) if kind == "later" else ""
        self.arguments = [*(word.replace("EARLIER", earlier) for word in KINDS[kind]), "--seed", str(seed)]
        self.folder = folder / f"whole-{kind}-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "a.mp4").is_file():
            done = longgen(self.folder, [*self.arguments, "-o", "a.mp4"])
            assert done.code == 0, done.said
        self.files = content(self.folder)
        self.video, self.latents = self.files["a.mp4"], latents(self.folder / "a.run")

    def put(self, folder: Path) -> None:
        """Writes the finished run to `folder`."""
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    def is_at(self, folder: Path) -> bool:
        """Whether the video and the latents in `folder` are these."""
        video = folder / "a.mp4"
        return video.is_file() and video.read_bytes() == self.video and latents(folder / "a.run") == self.latents


@cache
def reference(kind: str, seed: int, folder: Path) -> Reference:
    """Made once, for all parts that work in `folder`."""
    return Reference(kind, seed, folder)


def fresh(folder: Path, number: int) -> Path:
    made = folder / f"{number:05}"
    made.mkdir(parents=True)
    return made
