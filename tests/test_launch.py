"""Several ranks that make one video: real processes over gloo, started by `longgen generate --gpus 2` and by SLURM's variables."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import longgen
from longgen import launch, ranks, slurm
from longgen.errors import LonggenError, OutOfMemoryError, UsageError
from longgen.progress import Progress
from tests.warm import CLI, LAUNCHER, Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PROMPT = "a large red circle bouncing on a navy background"
SAMPLE: dict[str, Any] = {"frames": 97, "steps": 6}
GENERATE = ["--backbone", "tiny", "-p", PROMPT, "--seed", "1", "--frames", "97", "--steps", "6", "--preset", "freespec"]
WITHIN_S = 30  # in which all processes have ended after one died


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The latents of the video that one process makes without a break."""
    video = tmp_path_factory.mktemp("whole") / "ball.mp4"
    longgen.generate(PROMPT, video, preset="freespec", **SAMPLE, backbone="tiny", seed=1)
    return latents(video)


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Processes that end with the test."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()


def latents(video: Path) -> bytes:
    return video.with_suffix(".run").joinpath("latents.safetensors").read_bytes()


def environment(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LONGGEN_")} | variables


def begin(folder: Path, *arguments: str, code: str = CLI, **variables: str) -> Process:
    return Process(folder, ("generate", *arguments), code, environment(**variables))


def processes_of(parent: int) -> dict[int, int]:
    """The processes that `parent` started, by their ranks."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    names = {int(pid): Path(f"/proc/{pid}/comm").read_text().split() for pid in children}
    return {int(name[1]): pid for pid, name in names.items() if name[0] == "rank"}


def wait_for_steps(process: Process, video: Path) -> dict[int, int]:
    """Waits until a step more is on disk; returns the ranks' processes."""
    step = video.with_suffix(".run") / "checkpoint.safetensors"
    before = step.stat().st_mtime_ns if step.is_file() else 0
    while process.poll() is None and not (step.is_file() and step.stat().st_mtime_ns > before):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    return processes_of(process.pid)


def ended(process: Process, pids: dict[int, int]) -> tuple[int, str]:
    """The exit code and the lines of stderr but those of progress, of a process whose ranks have ended in time."""
    begun = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begun < WITHIN_S
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    lines = [line for line in said.splitlines() if not re.match(r"(load|sample|decode) |seed 1$", line)]
    return process.returncode, "\n".join(lines)


def addresses(pids: dict[int, int]) -> set[str]:
    """The addresses at which the processes listen, in the hexadecimal digits of the system."""
    inodes = {os.readlink(link)[8:-1] for pid in pids.values() for link in Path(f"/proc/{pid}/fd").iterdir()
              if link.is_symlink() and os.readlink(link).startswith("socket:")}  # fmt: skip
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_a_killed_rank_and_ctrl_c_leave_a_checkpoint_that_one_process_goes_on_from(
    tmp_path: Path, whole: bytes, started: list[Process]
) -> None:
    video = tmp_path / "ball.mp4"
    started.append(first := begin(tmp_path, *GENERATE, "-o", "ball.mp4", "--gpus", "2", code=LAUNCHER))
    pids = wait_for_steps(first, video)
    assert addresses(pids | {2: first.pid}) <= {"0100007F"}
    os.kill(pids[1], signal.SIGKILL)
    code, said = ended(first, pids)
    assert code == 1
    assert said.count("longgen:") == 1
    assert "longgen: rank 1 of 2 died (killed by SIGKILL)\n" in said
    assert "--resume" in said
    started.append(second := begin(tmp_path, "-o", "ball.mp4", "--resume", "--gpus", "2", "--json", code=LAUNCHER))
    pids = wait_for_steps(second, video)
    second.send_signal(signal.SIGINT)
    stdout = second.stdout.readline() if second.stdout else ""
    code, said = ended(second, pids)
    lines = [line for line in said.splitlines() if not line.startswith("first step done")]
    assert (code, len(lines), "stopped by Ctrl-C" in lines[0]) == (130, 1, True)
    assert (json.loads(stdout)["status"], json.loads(stdout)["exit_code"]) == ("stopped", 130)
    longgen.generate(PROMPT, video, preset="freespec", **SAMPLE, backbone="tiny", seed=1, resume=True)
    assert latents(video) == whole


class _StopError(Exception):
    pass


def _stop_at_step(now: Progress) -> None:
    if (now.phase, now.done) == ("sample", 3):
        raise _StopError


def test_two_ranks_go_on_from_one_skip_what_is_finished_and_print_each_video_once(tmp_path: Path, whole: bytes) -> None:
    """Started from nothing, as users start them."""
    with pytest.raises(_StopError):
        longgen.generate(PROMPT, tmp_path / "a.mp4", preset="freespec", **SAMPLE, backbone="tiny", seed=1,
                         progress=_stop_at_step)  # fmt: skip
    longgen.generate(PROMPT, tmp_path / "b.mp4", frames=9, steps=1, backbone="tiny", seed=2)
    rows = [{"prompt": PROMPT, "output": "a.mp4"},
            {"prompt": PROMPT, "output": "b.mp4", "preset": "direct", "seed": 2, "frames": 9, "steps": 1},
            {"prompt": "a corgi", "output": "c.mp4", "preset": "direct", "seed": 3, "frames": 9, "steps": 1}]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    others = [*GENERATE[:2], *GENERATE[4:]]
    command = [sys.executable, "-m", "longgen.cli", "generate", *others, "--prompts", "rows.jsonl", "--resume", "--gpus", "2",
               "--log-file", "run.log"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=200)
    said = done.stderr
    assert done.returncode == 0, said
    assert done.stdout.split() == ["a.mp4", "b.mp4", "c.mp4"]
    assert said.count("b.mp4 is finished") == said.count("[3/3]") == said.count("sample 3/6") == 1
    log = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert log.count("done: a.mp4") == log.count("[1/3]") == 1
    notes = [line.partition(" WARNING ")[2] for line in log.splitlines() if " WARNING " in line]
    assert notes
    assert len(notes) == len({*notes})  # of the ranks alone, not of the process that starts them too
    assert latents(tmp_path / "a.mp4") == whole


def test_the_ranks_of_srun_say_once_what_is_wrong_with_one_of_them(tmp_path: Path) -> None:
    task = {"SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    commands = {0: ["--steps", "1"], 1: ["--steps", "2"]}
    numbers = ({"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in commands)
    tasks = [begin(tmp_path, *GENERATE[:6], "--frames", "9", *own, "-o", "x.mp4", **task, **number)
             for own, number in zip(commands.values(), numbers, strict=True)]  # fmt: skip
    said = [process.communicate(timeout=100)[1] for process in tasks]
    assert said[1].startswith("longgen: rank 1 of 2: the command differs from that of rank 0: generate ")
    assert tasks[1].returncode == 2
    assert tasks[0].returncode == 1
    assert said[0].startswith("longgen: rank 0 of 2 cannot reach another rank")
    assert not (tmp_path / "x.run").exists()


def free_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--gpus", "2", "--preset", "nonsense"], {}, "no preset is called 'nonsense'"),
        (["--gpus", "2", "--device", "cuda:1"], {}, "--gpus 2 cannot be combined with --device cuda:1"),
        (["--gpus", "2", "--device", "cuda"], {}, "--gpus 2, and this machine has "),
        (["--guidance-parallel"], {}, "--guidance-parallel needs two GPUs"),
        (["--gpus", "3"], {"RANK": "0", "WORLD_SIZE": "2"}, "--gpus 3, and 2 ranks were started"),
        (["--gpus", "2"], {"RANK": "2", "WORLD_SIZE": "2"}, "RANK, WORLD_SIZE, LOCAL_RANK are 2, 2, None"),
    ],
)
def test_what_cannot_be_started_is_refused_before_it(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], message: str
) -> None:
    process = begin(tmp_path, "--backbone", "tiny", "-p", PROMPT, "-o", "x.mp4", *arguments, **variables)
    stdout, said = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (2, "")
    assert said.startswith(f"longgen: {message}")
    assert said.count("longgen: ") == 1
    assert os.listdir(tmp_path) == []


def test_a_script_that_runs_alone_is_told_how_to_start_ranks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gpus = 2, and this process was started alone(?s:.*)torchrun --nproc-per-node 2"):
        longgen.generate(PROMPT, tmp_path / "x.mp4", backbone="tiny", gpus=2)


def test_the_error_that_is_said_is_the_first_of_a_rank_of_its_own(tmp_path: Path) -> None:
    def report(given: str, code: int, **more: bool) -> dict[str, object]:
        return {"given": given, "expected": "", "hint": "", "exit_code": code, "everywhere": False, "stopped": False, "lost": False,
                "video": None} | more  # fmt: skip

    lost, memory = report("rank 0 cannot reach another", 1, lost=True), report("out of memory", OutOfMemoryError.exit_code)
    error = launch._ended(2, {0: 1, 1: 4}, {0: lost, 1: memory}).error
    assert (str(error), error.exit_code) == ("rank 1 of 2: out of memory", 4)  # type: ignore[attr-defined]
    assert str(launch._ended(2, {1: 2}, {1: report("no prompt", 2, everywhere=True)}).error) == "no prompt"
    killed = launch._ended(2, {0: 1, 1: -11}, {0: lost}).error
    assert isinstance(killed, LonggenError)
    assert killed.given == "rank 1 of 2 died (killed by SIGSEGV)"


def test_the_variables_of_srun_become_those_of_torchrun() -> None:
    step = {"SLURM_JOB_ID": "70123", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
            "SLURM_NODELIST": "gpu[03-05,7]-ib,cpu1"}  # fmt: skip
    assert slurm.variables(step) == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu03-ib",
                                     "MASTER_PORT": "30123"}  # fmt: skip
    assert slurm.variables(step | {"CUDA_VISIBLE_DEVICES": "2"})["LOCAL_RANK"] == "0"
    script = {name: value for name, value in step.items() if name != "SLURM_STEP_ID"}
    assert slurm.variables(script) == slurm.variables(step | {"SLURM_NTASKS": "1"}) == slurm.variables({}) == {}
    assert [slurm.first_host(text) for text in ("a1", "a1,a2", "a[1,3]", "r[1-2]n[07-09]", "")] == ["a1", "a1", "a1", "r1n07", ""]


def test_of_one_process_nothing_is_agreed_and_a_card_keeps_its_name() -> None:
    assert ranks.ALONE.decide(lambda: 3) == ranks.agree(3) == 3
    assert (ranks.ALONE.device("cuda"), ranks.Ranks(3, 4, 1).device("cuda")) == ("cuda", "cuda:1")
