"""`longgen bench --gpus 2`: what two ranks count in a step is what the plan says, within 5%."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PRESETS = ("longdiff", "gen-l-video", "rolling-sink")


def test_what_ranks_count_is_what_the_plan_says() -> None:
    command = [sys.executable, "-m", "longgen.cli", "bench", "--gpus", "2", "--backbone", "tiny", "--frames", "101", "--json",
               "--presets", ",".join(PRESETS)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["preset"]: row for row in json.loads(done.stdout)["presets"]}
    assert "kv-cache" in rows.pop("rolling-sink")["error"]
    for name, row in rows.items():
        assert row["how"] == ("clips" if name == "gen-l-video" else "heads")
        assert abs(max(row["operations"]) / row["planned_operations"] - 1) < 0.05, name
        assert abs(max(row["sent"]) / row["planned_sent"] - 1) < 0.05, name
    assert max(rows["longdiff"]["operations"]) < 1.05 * rows["longdiff"]["ideal"]
