"""Exports videos in the layout of VBench's own program, which computes the official scores.

    FOLDER/PRESET/videos/{prompt}-{0,1,...}.mp4    a prompt that is not a safe file name is replaced by some of its words and a hash
    FOLDER/PRESET/prompts.json                     {file name: prompt}, upstream's --prompt_file
    FOLDER/README.md                               what to run

Names have no underscore: VBench-Long takes the part before the first one for the name of the video. Source: vbench/__init__.py
`build_full_info_json`, vbench/utils.py `get_prompt_from_filename`, vbench2_beta_long/utils.py `reorganize_clips_results`.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from longgen import disk
from longgen.errors import MissingError, UsageError

MOST_BYTES = 200  # of a name; file systems allow 255, and VBench-Long extends it
CUSTOM = "subject_consistency background_consistency motion_smoothness dynamic_degree aesthetic_quality imaging_quality"
README = f"""# Videos for VBench

Each folder here holds the videos of one preset, named by their prompts, and `prompts.json`, which says which prompt a file is of.
VBench needs a GPU and an environment of its own: Python 3.10 or 3.11, `pip install vbench`. Then, in each of the folders:

    vbench evaluate --videos_path videos --prompt_file prompts.json --mode custom_input --output_path results \\
      --dimension "{CUSTOM}"

Its scores are in `results/results_TIME_eval_results.json`. Of each prompt, its standard mode looks at the videos -0 to -4.
"""


def check(folder: Path, overwrite: bool) -> None:
    """Refuses a `folder` that is neither empty nor an earlier export. Raises UsageError, LonggenError."""
    readme = folder / "README.md"
    disk.check_new(readme, overwrite, "--export-vbench", readme.is_file() and readme.read_bytes() == README.encode())
    if folder.is_dir() and any(folder.iterdir()) and not readme.exists() and not overwrite:
        raise UsageError(f"--export-vbench {folder} holds other files", expected="a new folder, or one of an earlier export",
                         hint="give another name")  # fmt: skip


def export_videos(videos: Iterable[tuple[str, Path, str]], folder: Path, overwrite: bool = False) -> list[Path]:
    """Copies `videos`, each a preset's name, a file and its prompt, into `folder`; returns the targets in the same order.

    Videos of one preset and prompt are numbered in order. Raises MissingError, and UsageError if another file is at a target,
    before anything is copied.
    """
    videos = [*videos]
    missing = [path for _, path, _ in videos if not path.is_file()]
    if missing:
        raise MissingError(f"{missing[0]} is not there", expected="finished videos", hint="run longgen compare again")
    targets: list[Path] = []
    prompts: dict[str, dict[str, str]] = {}
    for preset, _, prompt in videos:
        mapped = prompts.setdefault(_name(preset), {})
        number = sum(known == prompt for known in mapped.values())
        name = f"{_name(prompt)}-{number}.mp4"
        if name.casefold() in {known.casefold() for known in mapped}:  # some file systems ignore case
            name = f"{_hashed(prompt)}-{number}.mp4"
        mapped[name] = prompt
        targets.append(folder / _name(preset) / "videos" / name)
    pairs = [(path, target) for (_, path, _), target in zip(videos, targets, strict=True)]
    for path, target in pairs:
        same = target.is_file() and filecmp.cmp(path, target, shallow=False)
        disk.check_new(target, overwrite, "--export-vbench", same)
    disk.make_folder(folder)
    disk.save_text(folder / "README.md", README)
    for path, target in pairs:
        disk.make_folder(target.parent)
        disk.replace_file(target, partial(shutil.copyfile, path))
    for preset, mapped in prompts.items():
        disk.save_text(folder / preset / "prompts.json", json.dumps(mapped, indent=4))
    return targets


def _name(text: str) -> str:
    """`text` if it is a valid file name on every system that upstream reads back, else some of its words and a hash."""
    plain = re.fullmatch(r"[^\W_][^\x00-\x1f\x7f<>:\"/\\|?*_]*", text) and not re.search(r"\.mp4|-Scene", text)
    return text if plain and len(text.encode()) <= MOST_BYTES else _hashed(text)


def _hashed(text: str) -> str:
    words = "-".join(re.findall(r"[A-Za-z0-9]+", text))[:60].strip("-")
    return f"{words or 'prompt'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
