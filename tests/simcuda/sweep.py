"""Every preset on every small model, offload and dtype, on the simulated device.

    python -m tests.simcuda.sweep [--family wan ltx] [--preset tsa] [--offload none] [--dtype bf16] [--check sample decode]
                                  [--done FILE] [--lines] [--compile]

Prints a row a case and exits with 1 where one failed. --done: a file of finished cases, which are not run again. --lines: where
copies and waits of the last step came from. --compile: instead, whether graphs of torch.compile grow with presets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from longgen.errors import UsageError
from tests.simcuda import cases, simulated
from tests.simcuda.log import LAUNCH, Log

PRESETS = sorted(path.stem for path in Path("presets").glob("*.toml"))
MOST_GRAPHS = 10  # of stock layers, of planned ones before and behind attention, of two kinds of blocks, and of clips
OFFLOADS, DTYPES = ("none", "model", "group"), ("bf16", "fp16", "fp32")


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    done: dict[str, str] = {}
    if options.done is not None and options.done.is_file():
        done = dict(json.loads(line) for line in options.done.read_text().splitlines())
    failed = 0
    if options.compile:
        return _compile(options.family, options.preset)
    with tempfile.TemporaryDirectory() as folder:
        for family in options.family:
            spec = cases.spec_of(family, Path(folder))
            for dtype in options.dtype:
                on_host = cases.loaded(spec, "cpu", dtype) if "values" in options.check else None
                for offload in options.offload:
                    names = {name: f"{family} {offload} {dtype} {name}" for name in options.preset}
                    open_names = [name for name, case in names.items() if done.get(case) not in ("ok", "refused")]
                    if not open_names:
                        continue
                    with simulated() as log:
                        backbone = cases.loaded(spec, "cuda", dtype, offload)
                        for name in open_names:
                            outcome = _run(backbone, on_host, name, options, log, names[name])
                            failed += outcome.status == "failed"
                            if options.done is not None:
                                with options.done.open("a") as file:
                                    file.write(json.dumps([names[name], outcome.status]) + "\n")
    print(f"{failed} failed")
    return 1 if failed else 0


def _compile(families: list[str], presets: list[str]) -> int:
    """Prints the graphs of each family; 1 where they grow with presets."""
    grown = 0
    with tempfile.TemporaryDirectory() as folder:
        for family in families:
            counted = cases.graphs(cases.spec_of(family, Path(folder)), presets)
            grown += max(counted.values()) > MOST_GRAPHS
            print(f"{family:16} graphs {counted}", flush=True)
    return 1 if grown else 0


def _run(backbone: Any, on_host: Any, name: str, options: Any, log: Log, case: str) -> cases.Outcome:
    began = time.monotonic()
    try:
        outcome = cases.check(backbone, on_host, cases.planned(backbone.spec, name), options.check, log)
    except UsageError as error:
        outcome = cases.Outcome("refused", error.given)
    except Exception as error:
        outcome = cases.Outcome("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if options.trace:
            traceback.print_exc()
        outcome.message += "".join(f"\n    {fault}" for fault in log.faults[:3])
    counted = ", ".join(f"{kind} {count}" for kind, count in outcome.steady.items())
    difference = "" if outcome.difference is None else f"; {outcome.difference:.0e} from the CPU's"
    print(f"{case:40} {outcome.status:8} {time.monotonic() - began:5.1f} s  {counted}{difference}{outcome.message}", flush=True)
    if options.lines:
        for event, count in outcome.last.most_common():
            if event.kind != LAUNCH:
                print(f"    {count:5} {event.kind:10} {event.operator:24} {event.line}")
    return outcome


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simcuda.sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=cases.FAMILIES, default=cases.FAMILIES)
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--offload", nargs="+", choices=OFFLOADS, default=OFFLOADS)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES[:2])
    parser.add_argument("--check", nargs="+", choices=cases.CHECKS, default=cases.CHECKS)
    parser.add_argument("--done", type=Path)
    parser.add_argument("--compile", action="store_true", help="instead, count the graphs of --compile after each preset")
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--trace", action="store_true", help="tracebacks of failures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
