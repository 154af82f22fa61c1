"""What SLURM tells a task of `srun`, as the variables that torch.distributed reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

FIRST_PORT, PORTS = 20_000, 20_000  # the port follows from the number of the job, so that all tasks know it


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of a task of `srun` with several; {} elsewhere.

    A batch script itself, which has the numbers of a task too, is none: it has a job and no step.
    """
    size = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    task = [environment.get(name, "") for name in ("SLURM_PROCID", "SLURM_LOCALID")]
    in_script = "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
    if in_script or not all(number.isdecimal() for number in (size, *task)) or int(size) < 2:
        return {}
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST", "")
    one_card = "," not in environment.get("CUDA_VISIBLE_DEVICES", ",")  # of srun --gpus-per-task=1, whose number is 0 for each
    job = environment.get("SLURM_JOB_ID", "0")
    port = FIRST_PORT + int(job) % PORTS if job.isdecimal() else FIRST_PORT
    return {
        "RANK": task[0],
        "WORLD_SIZE": size,
        "LOCAL_RANK": "0" if one_card else task[1],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(nodes) or "127.0.0.1",
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port),
    }


def first_host(nodes: str) -> str:
    """The first name in a list as SLURM writes it: `gpu[03-05,7],cpu1` begins with gpu03."""
    first = re.match(r"[^,\[]*(?:\[[^\]]*\][^,\[]*)*", nodes.strip())
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group()) if first else ""
