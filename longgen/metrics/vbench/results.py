"""Reads and writes VBench's result files. Source: vbench/__init__.py `evaluate` and `build_full_info_json`, mode `custom_input`.

    results_TIME_full_info.json     [{"prompt_en": prompt, "dimension": [name, ...], "video_list": [path]}, ...]
    results_TIME_eval_results.json  {name: [overall, [{"video_path": path, "video_results": value}, ...]], ...}

Overall scores range from 0 to 1; per video, imaging_quality ranges to 100 and dynamic_degree is a boolean. Overall consistency is
the mean over pairs of frames, so long videos weigh more; everything else is the mean over videos.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longgen.errors import LonggenError, MissingError
from longgen.metrics.vbench import PREFIX

BY_PAIRS = ("subject_consistency", "background_consistency")


@dataclass(frozen=True)
class Results:
    """overall: by key, None for null. videos: by path as in the file, then by key.

    A key is `vbench.NAME`; all values range from 0 to 1.
    """

    overall: dict[str, float | None]
    videos: dict[str, dict[str, float]]


def write_results(
    folder: Path, scores: Mapping[Path, Mapping[str, float | None]], prompts: Mapping[Path, str], frames: Mapping[Path, int]
) -> tuple[Path, Path]:
    """Writes both files for `scores`, the values of a Scored by video; keys without `vbench.` and values of None are omitted.

    `prompts` and `frames` of every video. Returns the files' paths, full_info first. A pair of the same second is replaced.
    """
    names = dict.fromkeys(key.removeprefix(PREFIX) for values in scores.values() for key in values if key.startswith(PREFIX))
    info = [{"prompt_en": prompts[video], "dimension": [*names], "video_list": [str(video)]} for video in scores]
    results: dict[str, Any] = {}
    for name in names:
        scored = {video: value for video, values in scores.items() if (value := values.get(PREFIX + name)) is not None}
        if scored:
            weight = {video: frames[video] - 1 if name in BY_PAIRS else 1 for video in scored}
            overall = sum(value * weight[video] for video, value in scored.items()) / sum(weight.values())
            results[name] = [overall, [_item(name, video, value, frames[video] - 1) for video, value in scored.items()]]
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d-%H-%M-%S")  # upstream uses colons, which not every file system allows
    files = folder / f"results_{stamp}_full_info.json", folder / f"results_{stamp}_eval_results.json"
    for file, content in zip(files, (info, results), strict=True):
        file.write_text(json.dumps(content, indent=4), encoding="utf-8")
    return files


def read_results(path: Path) -> Results:
    """The content of a results_TIME_eval_results.json. Raises MissingError if it is missing, LonggenError if it is not one."""
    overall: dict[str, float | None] = {}
    videos: dict[str, dict[str, float]] = {}
    try:
        for name, (mean, items, *_) in json.loads(path.read_text(encoding="utf-8")).items():
            overall[PREFIX + name] = None if mean is None else float(mean)
            for item in items:
                value = float(item["video_results"])
                videos.setdefault(item["video_path"], {})[PREFIX + name] = value / 100 if name == "imaging_quality" else value
    except FileNotFoundError:
        raise MissingError(f"{path} is not there", expected="a results_TIME_eval_results.json", hint="check the path") from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise LonggenError(f"{path} holds no results of VBench: {error}", hint="pass the other of its two files",
                           expected="a results_TIME_eval_results.json of VBench") from None  # fmt: skip
    return Results(overall, videos)


def _item(name: str, video: Path, value: float, pairs: int) -> dict[str, Any]:
    if name == "dynamic_degree":
        return {"video_path": str(video), "video_results": bool(value)}
    if name == "imaging_quality":
        return {"video_path": str(video), "video_results": 100 * value}
    if name == "background_consistency":
        return {"video_path": str(video), "video_results": value, "video_sim": value * pairs, "cnt_per_video": pairs}
    return {"video_path": str(video), "video_results": value}
