"""A sample of `python -m tests.harness`, whose whole takes minutes."""

from __future__ import annotations

import re
from pathlib import Path

from tests import warm
from tests.harness import QUICK

CODE = "import sys; from tests.harness.__main__ import main; sys.exit(main())"


def test_a_sample_of_each_part_finds_nothing_wrong() -> None:
    """In a process of its own, whose forks carry nothing of this one's."""
    done = warm.run(Path(__file__).parent.parent, ["--quick"], CODE)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {
        part: (int(trials), int(wrong)) for part, trials, wrong in re.findall(r"(\w+) +trials (\d+)  wrong (\d+)", done.stdout)
    }
    assert {"stops", "faults", "pairs", "corruptions"} <= found.keys()
    assert all(trials >= min(QUICK[part], 3) and wrong == 0 for part, (trials, wrong) in found.items()), done.stdout
