"""`longgen bench --gpus 2`: what two ranks count in a step is what the plan says, within 5%."""

from __future__ import annotations

import json
from pathlib import Path

from tests import warm

PRESETS = ("longdiff", "gen-l-video", "rolling-sink")


def test_what_ranks_count_is_what_the_plan_says(tmp_path: Path) -> None:
    command = ["bench", "--gpus", "2", "--backbone", "tiny", "--frames", "85", "--json", "--presets", ",".join(PRESETS)]
    done = warm.run(tmp_path, command, warm.LAUNCHER, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["preset"]: row for row in json.loads(done.stdout)["presets"]}
    assert "kv-cache" in rows.pop("rolling-sink")["error"]
    for name, row in rows.items():
        assert row["how"] == ("clips" if name == "gen-l-video" else "heads")
        assert abs(max(row["operations"]) / row["planned_operations"] - 1) < 0.05, name
        assert abs(max(row["sent"]) / row["planned_sent"] - 1) < 0.05, name
    assert max(rows["longdiff"]["operations"]) < 1.05 * rows["longdiff"]["ideal"]
