"""Golden runs: generations of fixed seeds whose latents and frames must come out equal, bit for bit, whatever the code looks like.

    python -m tests.golden --write FILE.json [--only NAME ...]
    python -m tests.golden --check FILE.json [--only NAME ...]

NAME is a run, as tiny/freespec, or a group, as tiny. Only the command line, presets, `--set` and files on the disk are used, so
that modules and functions may move. Of every run two SHA-256 are kept: of the latents in its run folder (of a rollout: its chunks
one after the other in time), and of the raw RGB frames that ffmpeg decodes its MP4 to. A run must also differ from the one of its
group that lacks what it is there for, `direct` if no other is named. The exit code is 1 where anything is wrong.

Hashes depend on the kernels: `--check` warns where the processor or a library is another than when they were written.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
for variable in [name for name in os.environ if name.startswith("LONGGEN_")]:
    del os.environ[variable]

import imageio_ffmpeg  # noqa: E402 - libraries read the environment when they are imported
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

PROMPT = "a large red circle bouncing on a navy background"
SMALL = "a small cyan triangle orbiting on a sand background"  # words that the small pipelines' tokenizers know
FOLDERS = ("wan", "wan-experts", "wan-ti2v", "ltx", "cogvideox", "cogvideox-2b", "hunyuan")
LEAST = 1e-4  # by which the latents of two runs must differ somewhere
STACKS = {  # presets of techniques that no shipped preset has alone
    "rebase": ("window", "sink", "rebase"),
    "glcd": ("glcd",),
    "anchor": ("glcd", "anchor"),
    "glc-noise": ("glcd", "glc-noise"),
    "vmcr": ("glcd", "vmcr"),
}
SHOTS = """{blend}
[[shot]]
prompt = "a large red circle bouncing on a navy background"

[[shot]]
at = "3s"
prompt = "a large green square bouncing on a navy background"
"""


class Run(NamedTuple):
    """What the command line gets beside its group's arguments. base: the run of the group that it must differ from."""

    arguments: str
    base: str = "direct"


class Group(NamedTuple):
    """Runs that share arguments; the first is `direct`."""

    arguments: str
    prompt: str
    runs: dict[str, Run]


def named(*presets: str) -> dict[str, Run]:
    return {name: Run(f"--preset {name}") for name in presets}


def small(name: str, frames: int, runs: dict[str, Run]) -> Group:
    """A group on the folder `name`, with what every family has: no technique, no guidance, a window."""
    shared = f"--backbone ./{name} --frames {frames} --steps 3 --size 64x32"
    every = {
        "direct": Run("--preset direct"),
        "unguided": Run("--preset direct --guidance-scale 1"),
        "window": Run("--preset sliding-window --set window.frames=3"),
    }
    return Group(shared, SMALL, every | runs)


FIFO = "--preset fifo --set fifo.frames=4 --set fifo.partitions=2 --steps 8"
GROUPS = {
    "tiny": Group("--backbone tiny --frames 121 --steps 3", PROMPT, {
        **named("direct", "sliding-window", "vrpr", "tsa", "keyframes", "freenoise", "freelongpp", "freepca", "freespec", "ntk",
                "yarn", "flex-positions", "ans", "gen-l-video"),
        "riflex": Run("--preset riflex --set riflex.gate=false"),
        "longdiff": Run("--preset longdiff", "keyframes"),
        "freelong": Run("--preset freelong", "freenoise"),
        "freeloc": Run("--preset freeloc --set vrpr.layers=[0,1,2] --set tsa.layers=[2,3]", "vrpr"),
        "sink-window": Run("--preset sink-window", "sliding-window"),
        "rebase": Run("--preset rebase.toml", "sink-window"),
        "clip-batch": Run("--preset gen-l-video --clip-batch 2"),
        "glcd": Run("--preset glcd.toml"),
        "anchor": Run("--preset anchor.toml", "glcd"),
        "glc-noise": Run("--preset glc-noise.toml", "glcd"),
        "vmcr": Run("--preset vmcr.toml", "glcd"),
        "glc-diffusion": Run("--preset glc-diffusion", "vmcr"),
        "direct-8": Run("--preset direct --steps 8"),
        "fifo": Run(FIFO, "direct-8"),
        "schedule-pass": Run("--preset sliding-window --schedule cut.toml", "sliding-window"),
        "schedule-blend": Run("--preset sliding-window --schedule blend.toml", "schedule-pass"),
        "schedule-clips": Run("--preset gen-l-video --schedule cut.toml", "gen-l-video"),
        "schedule-fifo": Run(f"{FIFO} --schedule cut.toml", "fifo"),
        "unguided": Run("--preset direct --guidance-scale 1"),
        "flow-shift": Run("--preset direct --flow-shift 8"),
        "bf16": Run("--preset direct --dtype bf16"),
        "first-block": Run("--preset direct --cache first-block:0.5"),
        "mag": Run("--preset direct --cache mag:0.5"),
    }),
    "causal": Group("--backbone tiny-causal --frames 121", PROMPT, {
        **named("direct", "ans", "infinity-rope", "longlive"),
        "self-forcing": Run("--preset self-forcing --set window.frames=9"),
        "flex-off": Run("--preset flex --set flex.layers=[]"),
        "flex": Run("--preset flex", "flex-off"),
        "flex-longlive": Run("--preset flex-longlive", "longlive"),
        "rebase-off": Run("--preset deep-forcing --set rebase.layers=[]"),
        "deep-forcing": Run("--preset deep-forcing", "rebase-off"),
        "keep": Run("--preset longlive --schedule cut.toml --set rollout.switch=keep", "longlive"),
        "flush": Run("--preset longlive --schedule cut.toml --set rollout.switch=flush", "keep"),
        "recache": Run("--preset longlive --schedule cut.toml --set rollout.switch=recache", "flush"),
    }),
    "wan": small("wan", 25, {
        "long": Run("--preset direct --frames 97"),
        "gen-l-video": Run("--preset gen-l-video --frames 97", "long"),
        "flow-shift": Run("--preset direct --flow-shift 3"),
        "lora": Run("--preset direct --lora style.safetensors:0.5"),
    }),
    "wan-experts": small("wan-experts", 25, {"lora": Run("--preset direct --lora 2=style.safetensors")}),
    "wan-ti2v": small("wan-ti2v", 25, {}),
    "ltx": small("ltx", 137, {
        "yarn": Run("--preset yarn"),
        "direct-8": Run("--preset direct --steps 8"),
        "fifo": Run(FIFO, "direct-8"),
    }),
    "cogvideox": small("cogvideox", 25, {"vrpr": Run("--preset vrpr")}),
    "cogvideox-2b": small("cogvideox-2b", 25, {"gen-l-video": Run("--preset gen-l-video")}),
    "hunyuan": small("hunyuan", 161, {"ntk": Run("--preset ntk")}),
}  # fmt: skip
NAMES = [f"{group}/{run}" for group, runs in GROUPS.items() for run in runs.runs]


def prepare(place: Path) -> dict[str, str]:
    """Writes the presets, the schedules, the models and the LoRA to `place`; returns the SHA-256 of each model's weights."""
    for name, techniques in STACKS.items():
        rows = "".join(f'[[technique]]\nname = "{technique}"\n' for technique in techniques)
        (place / f"{name}.toml").write_text(f'schema = 1\nname = "{name}"\n{rows}', encoding="utf-8")
    for name, blend in {"cut": "", "blend": 'blend = "1s"'}.items():
        (place / f"{name}.toml").write_text(SHOTS.format(blend=blend), encoding="utf-8")
    weights = {}
    for name in FOLDERS:
        importlib.import_module(f"tests.models.{name.split('-')[0]}").build(name, place / name)
        digest = hashlib.sha256()
        for path in sorted((place / name).rglob("*.safetensors")):
            for key, tensor in sorted(load_file(path).items()):
                digest.update(f"{path.parent.name} {key} {hashed(tensor)}\n".encode())
        weights[name] = digest.hexdigest()
    lora, generator = {}, torch.Generator().manual_seed(5)
    for path in sorted((place / "wan" / "transformer").glob("*.safetensors")):
        for key, weight in sorted(load_file(path).items()):
            if key.endswith("attn1.to_q.weight"):
                layer = f"transformer.{key.removesuffix('.weight')}"
                lora[f"{layer}.lora_A.weight"] = torch.randn(4, weight.shape[1], generator=generator)
                lora[f"{layer}.lora_B.weight"] = torch.randn(weight.shape[0], 4, generator=generator)
    save_file(lora, place / "style.safetensors")
    return weights


def hashed(tensor: Tensor) -> str:
    """SHA-256 over type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {[*tensor.shape]} ".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def latents_of(folder: Path) -> Tensor:
    """[1, C, T, h, w] of a run folder: its one file, or the chunks of a stream."""
    found = []
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.append(file.get_tensor("latents"))
    return torch.cat(found, dim=2)


def frames_of(video: Path) -> str:
    """SHA-256 over the picture size and the raw RGB of every frame."""
    reader = imageio_ffmpeg.read_frames(video, pix_fmt="rgb24")
    digest, count = hashlib.sha256(str(next(reader)["size"]).encode()), 0
    for frame in reader:
        digest.update(frame)
        count += 1
    if not count:
        raise RuntimeError(f"{video} has no frames")
    return digest.hexdigest()


def made(name: str, place: Path) -> tuple[dict[str, Any], Tensor]:
    """Generates the run `name`: its entry and its latents. Its files are then removed. Raises RuntimeError where it fails."""
    from longgen.cli import app

    group = GROUPS[name.split("/")[0]]
    given, shared = group.runs[name.split("/")[1]].arguments.split(), group.arguments.split()
    for option in {word for word in given if word.startswith("--")} & {*shared}:  # the run's counts, and none may be given twice
        at = shared.index(option)
        del shared[at : at + 2]
    own = [] if "--schedule" in given else ["--prompt", group.prompt]
    video = place / f"{name.replace('/', '-')}.mp4"
    done = CliRunner().invoke(
        app, ["generate", *shared, *given, *own, "--seed", "3", "--device", "cpu", "--quiet", "-o", str(video)]
    )
    if done.exit_code:
        raise RuntimeError(f"exit {done.exit_code}, {done.exception!r}: {done.output.strip()}")
    latents = latents_of(video.with_suffix(".run"))
    entry = {"latents": hashed(latents), "shape": [*latents.shape], "dtype": str(latents.dtype), "frames": frames_of(video)}
    video.unlink()
    shutil.rmtree(video.with_suffix(".run"))
    if not torch.isfinite(latents).all() or latents.std() < 1e-3:
        raise RuntimeError("its latents are no picture")
    return entry, latents


def machine() -> dict[str, str]:
    """What hashes may depend on beside the code."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = dict(tuple(part.strip() for part in line.split(":", 1)) for line in reversed(lines) if ":" in line)
        model = " ".join(f"{key} {fields[key]}" for key in ("model name", "cpu family", "model") if key in fields) or model
    capability = torch.backends.cpu.get_cpu_capability()
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers", "imageio-ffmpeg")}
    return {"cpu": model, "capability": capability, **libraries, "ffmpeg": imageio_ffmpeg.get_ffmpeg_version()}


def run_all(names: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str], list[str]]:
    """Entries by name, the models' hashes, and what is wrong with the runs themselves."""
    entries, kept, wrong = {}, dict[str, Tensor](), []
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="longgen-golden-") as folder:
        place = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")  # no probe or calibration of the user's own
        models = prepare(place)
        os.chdir(place)
        try:
            for name in names:
                began = time.monotonic()
                try:
                    entries[name], kept[name] = made(name, place)
                except Exception as error:  # of any kind: the others are made all the same
                    wrong.append(f"{name}: {type(error).__name__}: {error}")
                    print(wrong[-1], flush=True)
                    continue
                group, run = name.split("/")
                base = f"{group}/{GROUPS[group].runs[run].base}"
                said = ""
                if base != name and base in kept and kept[base].shape == kept[name].shape:
                    apart = (kept[name].float() - kept[base].float()).abs().max().item()
                    said = f"{apart:9.2g} from {base}"
                    if not apart > LEAST:
                        wrong.append(f"{name}: its latents are those of {base}")
                print(f"{name:24} {time.monotonic() - began:5.1f} s  {said}", flush=True)
        finally:
            os.chdir(here)
    return entries, models, wrong


def compared(golden: dict[str, Any], entries: dict[str, dict[str, Any]], names: list[str], whole: bool) -> list[str]:
    """A line for each run whose hashes are not those of the file, or that only one side has."""
    wrong = []
    for name in names:
        if name not in golden["runs"]:
            wrong.append(f"{name}: not in the file")
        elif name in entries and entries[name] != golden["runs"][name]:
            other = [key for key, value in golden["runs"][name].items() if entries[name].get(key) != value]
            wrong.append(f"{name}: differs in {', '.join(other)}")
    return wrong + [f"{name}: in the file alone" for name in golden["runs"] if whole and name not in names]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE.json")
    what.add_argument("--check", type=Path, metavar="FILE.json")
    parser.add_argument("--only", action="append", choices=[*GROUPS, *NAMES], metavar="NAME", help="a run or a group; repeatable")
    asked = parser.parse_args()
    golden = json.loads(asked.check.read_text(encoding="utf-8")) if asked.check else None
    names = [name for name in NAMES if not asked.only or {name, name.split("/")[0]} & {*asked.only}]
    now = machine()
    for key in now if golden else ():
        if golden["machine"].get(key) != now[key]:
            print(f"warning: {key} was {golden['machine'].get(key)} and is {now[key]}: hashes may differ for that alone")
    began = time.monotonic()
    entries, models, wrong = run_all(names)
    if golden:
        for name, weights in models.items():
            if golden["models"].get(name) != weights:
                print(f"warning: the weights of the small model {name} are others: its runs cannot be compared")
        wrong += compared(golden, entries, names, whole=not asked.only)
    elif not wrong:
        content = {"machine": now, "models": models, "runs": entries}
        asked.write.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{len(entries)} runs in {time.monotonic() - began:.0f} s" + "".join(f"\nwrong: {line}" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
