"""VBench scores in a comparison: computed here, or read from results of VBench's own program; and the export of videos to it.

DIR/scores/NAME.vbench.json   cached scores
DIR/vbench-export.json        {path in the folder of --export-vbench: name of a cell}, which maps results back to cells
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longgen import disk
from longgen.compare.record import Cell, Comparison
from longgen.compare.scores import DECODING, cached, file_hash, hash_of, rounded
from longgen.device import chain, lacks_memory
from longgen.errors import OutOfMemoryError, UsageError
from longgen.metrics import in_order, vbench
from longgen.metrics.vbench import DIMENSIONS, PREFIX, musiq, raft
from longgen.metrics.vbench.export import CUSTOM, export_videos
from longgen.metrics.vbench.results import read_results, write_results
from longgen.metrics.vbench.scorer import VBench
from longgen.metrics.vbench.weights import find
from longgen.progress import OnProgress, Phase

EXPORT_FILE = "vbench-export.json"
LIBRARIES = ("torch", "transformers", "torchvision", "pyiqa")  # that the scores depend on


class VBenchScores:
    """The VBench scores of a comparison of the metrics `names`; checks at once that all requirements are met.

    weights: the folder of --vbench-weights. results: of --vbench-json: a .json file is read, anything else is a folder that both
    of VBench's result files are written to. names: the metrics shown then; those of a file are not computed.
    Raises MissingError, UsageError, LonggenError.
    """

    def __init__(self, names: Sequence[str], weights: Path | None, results: Sequence[Path], device: str) -> None:
        files = {path: read_results(path) for path in results if path.suffix.lower() == ".json"}
        self._given = {path: file.videos for path, file in files.items()}
        self._keys = [*dict.fromkeys(key for file in files.values() for key in file.overall)]
        self._folders = [path for path in results if path not in files]
        self.names = in_order([*names, *self._keys])
        if self._folders and not any(name.startswith(PREFIX) for name in self.names):
            raise UsageError(f"--vbench-json {self._folders[0]} is for VBench scores, but none are selected",
                             expected="a folder to write them to, with --metrics vbench; or a file NAME.json to read",
                             hint="add --metrics vbench, or correct the path")  # fmt: skip
        for path in self._folders:
            disk.check_writable(path / "results.json")
        self._dimensions = [name for name, row in DIMENSIONS.items() if row.key in names and row.key not in self._keys]
        needed = [file for name in self._dimensions for file in DIMENSIONS[name].weights]
        if "raft" in needed:
            raft.library()
        if "musiq" in needed:
            musiq.library()
        self._weights, self._folder, self._device = find(needed, weights), weights, device
        self._networks: VBench | None = None  # loaded when the video model is gone

    def join(self, cells: Sequence[Cell], folder: Path, report: OnProgress) -> tuple[list[Cell], list[str]]:
        """`cells` with their VBench scores, and warnings. folder: of the comparison."""
        given, warnings = self._match_results(cells, folder)
        done = [cell for cell in cells if cell.status == "done"] if self._dimensions or self._keys else []
        phase = Phase("vbench", len(done), self._device, report) if self._dimensions else None
        scored: dict[str, Cell] = {}
        for number, cell in enumerate(done, start=1):
            table = cell.model_dump()
            if phase is not None:
                scores = self._compute(folder / str(cell.video), folder / "scores" / f"{cell.name}.vbench.json")
                table["metrics"] |= scores["metrics"]
                table["curves"] |= scores["curves"]
                phase.at(number)
            table["metrics"] |= {key: given.get(cell.name, {}).get(key) for key in self._keys}
            scored[cell.name] = Cell.model_validate(table)
        self._networks = None
        return [scored.get(cell.name, cell) for cell in cells], warnings

    def write(self, cells: Sequence[Cell], folder: Path) -> None:
        """VBench's two result files for `cells`, in each folder of --vbench-json."""
        videos = {folder / cell.video: cell for cell in cells if cell.status == "done" and cell.video}
        for path in self._folders:
            write_results(
                path, {video: cell.metrics for video, cell in videos.items()},
                {video: _prompt(cell) for video, cell in videos.items()}, {video: cell.frames for video, cell in videos.items()},
            )  # fmt: skip

    def _compute(self, video: Path, cache_file: Path) -> dict[str, Any]:
        """`metrics` and `curves` of `video`."""
        stats = {name: (path.name, path.stat()) for name, path in self._weights.items()}
        code = Path(str(vbench.__file__)).parent.glob("*.py")
        key = {
            "video": file_hash(video),
            "code": hash_of(
                [*sorted(code), *DECODING], [importlib.metadata.version(name) for name in LIBRARIES if find_spec(name)]
            ),
            "dimensions": self._dimensions,
            "weights": {name: [file, stat.st_size, stat.st_mtime_ns] for name, (file, stat) in stats.items()},
        }

        def compute() -> dict[str, Any]:
            try:
                self._networks = self._networks or VBench(self._device, self._folder, self._dimensions)
                score = self._networks.score(video)
            except Exception as error:
                if not any(map(lacks_memory, chain(error))):
                    raise
                reason = " ".join(str(error).split())[:200]
                raise OutOfMemoryError(f"out of memory while VBench scored {video.name}: {reason}",
                                       expected="memory for its networks and pictures of this size",
                                       hint="leave out the dimensions that need RAFT (dynamic_degree and motion_smoothness_raft); "
                                          "the videos are kept") from error  # fmt: skip
            curves = {row.key: score.curves[row.key] for name in self._dimensions
                      if "raft" not in (row := DIMENSIONS[name]).weights and name != "feature_repetition"}  # fmt: skip
            return {"metrics": score.values, "curves": rounded(curves)}  # curves of RAFT have gaps: no line would show

        return cached(cache_file, key, compute)

    def _match_results(self, cells: Sequence[Cell], folder: Path) -> tuple[dict[str, dict[str, float]], list[str]]:
        """The results of the files that were given, by names of cells; warnings about videos that are not in `cells`.

        A video is identified by its path, by its path in --export-vbench, or by its file name if that is unique.
        """
        cell_of = {str(folder / cell.video): cell.name for cell in cells if cell.video}
        names = {*cell_of.values()}
        with contextlib.suppress(OSError, ValueError):  # there may be no earlier export
            exports = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
            cell_of |= {path: name for path, name in exports.items() if name in names}
        results: dict[str, dict[str, float]] = {}
        warnings = []
        for file, videos in self._given.items():
            unknown = 0
            for path, values in videos.items():
                exported = "/".join((file.absolute().parent.parent / path).parts[-3:])  # PRESET/videos/NAME, of PRESET/results/FILE
                same_name = {name for other, name in cell_of.items() if Path(other).name == Path(path).name}
                name = cell_of.get(path) or cell_of.get(exported) or (same_name.pop() if len(same_name) == 1 else None)
                unknown += name is None
                if name is not None:
                    results[name] = results.get(name, {}) | values
            if unknown:
                warnings.append(f"{file}: {unknown} of its {len(videos)} videos are unknown or ambiguous here")
        return results, warnings


def export_for_vbench(comparison: Comparison, folder: Path, export: Path, overwrite: bool = False) -> list[str]:
    """Copies the videos of `comparison`, which is in `folder`, to `export` for VBench's own program; returns the commands to run.

    A video without a prompt uses the name of its row. Raises MissingError, and UsageError if another file is in the way.
    """
    done = [cell for cell in comparison.cells if cell.status == "done" and cell.video]
    targets = export_videos([(cell.preset, folder / str(cell.video), _prompt(cell)) for cell in done], export, overwrite)
    names = {target.relative_to(export).as_posix(): cell.name for target, cell in zip(targets, done, strict=True)}
    disk.save_json(folder / EXPORT_FILE, names)
    return [
        shlex.join(["vbench", "evaluate", "--videos_path", str(root / "videos"), "--prompt_file", str(root / "prompts.json"),
                    "--mode", "custom_input", "--output_path", str(root / "results"), "--dimension", CUSTOM])
        for root in dict.fromkeys(target.parent.parent for target in targets)
    ]  # fmt: skip


def _prompt(cell: Cell) -> str:
    return cell.preset if cell.prompt is None else cell.prompt
