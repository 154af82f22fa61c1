"""What longgen does where something goes wrong, tried often: `python -m tests.harness`.

Each part is a module with `run(trials, seed, folder)`, which returns at least the counts of "trials" and of what went "wrong": exit
code 0 with a wrong, a missing or an overwritten result, or an error that is nobody's sentence.
"""

from __future__ import annotations

PARTS = {"stops": 240, "faults": 160, "pairs": 40, "corruptions": 300, "mutations": 500}  # trials of the whole
QUICK = {"stops": 3, "faults": 3, "pairs": 3, "corruptions": 5, "mutations": 20}  # of a sample
