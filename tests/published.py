"""Each family from a folder as it is published: written, planned, loaded with an account of bytes, and run by the command line.

    python -m tests.published                  # every model, one after the other: about 10 GB of disk, 6 GB of memory, 15 minutes
    python -m tests.published ltx-2b hunyuanvideo --layers 2

The folders (tests/models/published.py) have the published configs but for the number of layers, the published files, dtypes and
vocabularies, and random weights. A load has to read every byte once and to make no copy beside the model's own weights.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from longgen.backbones.registry import SPECS
from longgen.planner import GREY
from tests.models import published
from tests.models.layouts import LAYOUTS

PROMPT = "a small cyan triangle orbiting on a sand background"
SIZES = {"ltx-2b": ("96x64", 17), "hunyuanvideo": ("64x64", 5), "cogvideox-5b-i2v": ("720x480", 5)}  # others: 64x64, 5 frames
LINES = r"(load|sample|decode) |note: |seed \d+$"  # of stderr: the command's own
SLACK = 600_000_000  # bytes of a load beside the weights: libraries, tokenizers, the largest weight on its way
ACCOUNT = """
import json, sys, threading, time
from longgen.backbones.find import find
from longgen.backbones.registry import adapter_of
from longgen.backbones.settings import ModelSettings
from longgen.pipelines import loading

def value(file, key):
    return next(int(line.split()[1]) for line in open(f"/proc/self/{file}") if line.startswith(key))

spec = find(sys.argv[1])
adapter_of(spec)  # imports the libraries
before, peaks, stop = value("status", "RssAnon"), [0], threading.Event()

def watch():
    while not stop.wait(0.02):
        peaks.append(value("status", "RssAnon"))

threading.Thread(target=watch, daemon=True).start()
read, start = value("io", "read_bytes"), time.monotonic()
pipe = loading.load(spec, ModelSettings("cpu", "bf16")).pipe
seconds = time.monotonic() - start
stop.set()
weights = {weight.data_ptr(): weight.nbytes for part in pipe.components.values() if hasattr(part, "parameters")
           for weight in part.parameters()}
print(json.dumps({"seconds": round(seconds, 1), "read": value("io", "read_bytes") - read, "weights": sum(weights.values()),
                  "peak": 1000 * max(peaks) - 1000 * before}))
"""


def run(name: str, folder: Path, layers: int) -> str:
    """A row of the table. Raises AssertionError."""
    published.write(name, folder, layers)
    files = list(folder.rglob("*.safetensors"))
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # so that a load reads from the disk
        os.close(descriptor)
    size = sum(path.stat().st_size for path in files)
    account = json.loads(_longgen([sys.executable, "-c", ACCOUNT, str(folder)])[0])
    assert account["read"] < 1.02 * size, f"{name}: {account['read']} bytes were read of {size}"
    assert account["peak"] < account["weights"] + SLACK, f"{name}: {account['peak']} bytes for {account['weights']} of weights"
    pixels, frames = SIZES.get(name, ("64x64", 5))
    command = [sys.executable, "-m", "longgen.cli"]
    shown = json.loads(_longgen([*command, "backbones", "show", str(folder), "--json"])[0])
    assert shown["family"] == SPECS[name].family
    pictures = ["--image", str(GREY)] if SPECS[name].picture_needed else []
    pictures += ["--last-image", str(GREY)] if SPECS[name].last_picture_needed else []
    _longgen([*command, "plan", "--backbone", str(folder), "--preset", "freenoise", "--frames", "321", *pictures])
    start, video = time.monotonic(), folder / "out.mp4"
    options = ["--frames", str(frames), "--steps", "2", "--size", pixels, "--dtype", "bf16", "--seed", "0", "-o", str(video)]
    _, err = _longgen([*command, "generate", "--prompt", PROMPT, "--backbone", str(folder), *options, *pictures])
    strange = [line for line in err.splitlines() if not re.match(LINES, line)]
    assert not strange, f"{name}: {strange}"
    assert video.stat().st_size > 0
    gigabytes = [f"{value / 1e9:.2f}" for value in (size, account["read"], account["weights"], account["peak"])]
    return f"| {name} | {' | '.join(gigabytes)} | {account['seconds']} | {time.monotonic() - start:.0f} |"


def _longgen(command: list[str]) -> tuple[str, str]:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"{' '.join(command[-12:])}: {done.stderr[-3000:]}"
    return done.stdout, done.stderr


def main(arguments: Any = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="BACKBONE", help=", ".join(LAYOUTS))
    parser.add_argument("--layers", type=int, default=1, help="of each transformer and text encoder")
    parser.add_argument("--work", type=Path, help="where the folders are made, one at a time; by default the system's place")
    given = parser.parse_args(arguments)
    print(
        "| backbone | files, GB | read | weights in memory | peak of the load | load, s | run, s |\n|---|---|---|---|---|---|---|"
    )
    for name in given.names or LAYOUTS:
        with tempfile.TemporaryDirectory(dir=given.work) as folder:
            print(run(name, Path(folder) / name, given.layers), flush=True)


if __name__ == "__main__":
    main()
