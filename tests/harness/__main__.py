"""`python -m tests.harness [--part NAME] [--trials N | --quick] [--seed N] [--folder DIR]`: a table.

The exit code is 1 where something is wrong.

What a part found is kept in DIR/NAME.json, and is not tried again by the same command.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.harness import PARTS, QUICK


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.harness")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; repeatable")
    parser.add_argument("--trials", type=int, help="of each part (default: its own)")
    parser.add_argument("--quick", action="store_true", help="so few trials that it takes seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where trials leave their files, and results are kept (default: none is kept)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="longgen-harness-") as scratch:
        folder = asked.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        wrong = 0
        for part in asked.part or PARTS:
            trials = asked.trials or (QUICK if asked.quick else PARTS)[part]
            kept = folder / f"{part}-{trials}-{asked.seed}.json"
            if not kept.is_file():
                if importlib.util.find_spec(f"tests.harness.{part}") is None:
                    print(f"{part:12} is not here", flush=True)
                    continue
                began = time.monotonic()
                own = folder / part
                shutil.rmtree(own, ignore_errors=True)  # of one that was stopped
                own.mkdir()
                counts = importlib.import_module(f"tests.harness.{part}").run(trials, asked.seed, own)
                kept.write_text(json.dumps(counts | {"seconds": round(time.monotonic() - began)}))
            counts = json.loads(kept.read_text())
            wrong += counts["wrong"]
            print(f"{part:12} " + "  ".join(f"{name} {count}" for name, count in counts.items()), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
