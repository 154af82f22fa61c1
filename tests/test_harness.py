"""A sample of `python -m tests.harness`, whose whole takes minutes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.harness import QUICK


def test_a_sample_of_each_part_finds_nothing_wrong() -> None:
    """In a process of its own, whose forks carry nothing of this one's."""
    command = [sys.executable, "-m", "tests.harness", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {
        part: (int(trials), int(wrong)) for part, trials, wrong in re.findall(r"(\w+) +trials (\d+)  wrong (\d+)", done.stdout)
    }
    assert {"stops", "faults", "pairs", "corruptions"} <= found.keys()
    assert all(trials >= min(QUICK[part], 3) and wrong == 0 for part, (trials, wrong) in found.items()), done.stdout
