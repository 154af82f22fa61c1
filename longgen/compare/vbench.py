"""VBench's numbers in a comparison: computed here, or read from the files of VBench's own program; and the videos laid out for it.

DIR/scores/NAME.vbench.json   what was computed, so that it is computed once
DIR/vbench-export.json        {place in the folder of --export-vbench: name of a cell}, so that a results file tells whose it is
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from longgen import disk
from longgen.compare.record import Cell, Comparison
from longgen.compare.scores import READING, file_hash, hash_of, once, rounded
from longgen.errors import OutOfMemoryError, UsageError
from longgen.metrics import in_order, vbench
from longgen.metrics.vbench import DIMENSIONS, PREFIX, VBench, export_videos, musiq, raft, read_results, write_results
from longgen.metrics.vbench.export import CUSTOM
from longgen.metrics.vbench.weights import find
from longgen.progress import Phase, Progress

PLACES = "vbench-export.json"
LIBRARIES = ("torch", "transformers", "torchvision", "pyiqa")  # what the numbers stand on


class Numbers:
    """What a comparison of the metrics `names` takes from VBench; what is missing for it is said at once.

    weights: the folder of --vbench-weights. results: of --vbench-json; of these a .json file is read, and anything else is a
    folder that both of upstream's files are written to. names: what the comparison shows then; what a file has is not computed.
    Raises MissingError, UsageError, LonggenError.
    """

    def __init__(self, names: Sequence[str], weights: Path | None, results: Sequence[Path], device: str) -> None:
        files = {path: read_results(path) for path in results if path.suffix.lower() == ".json"}
        self._given = {path: file.videos for path, file in files.items()}
        self._keys = [*dict.fromkeys(key for file in files.values() for key in file.overall)]
        self._folders = [path for path in results if path not in files]
        self.names = in_order([*names, *self._keys])
        if self._folders and not any(name.startswith(PREFIX) for name in self.names):
            raise UsageError(f"--vbench-json {self._folders[0]} is for numbers of VBench, and none is asked for",
                             expected="a folder to write them to, beside --metrics vbench; or a file NAME.json to read",
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
        self._bench: VBench | None = None  # its networks are loaded when the models that make videos are gone

    def joined(self, cells: Sequence[Cell], folder: Path, report: Callable[[Progress], None]) -> tuple[list[Cell], list[str]]:
        """`cells` with their numbers, and what is to be warned of. folder: of the comparison."""
        given, warnings = self._found(cells, folder)
        done = [cell for cell in cells if cell.status == "done"] if self._dimensions or self._keys else []
        made = dict[str, Cell]()
        phase = Phase("vbench", len(done), self._device, report) if self._dimensions else None
        for number, cell in enumerate(done, start=1):
            table = cell.model_dump()
            if phase is not None:
                found = self._computed(folder / str(cell.video), folder / "scores" / f"{cell.name}.vbench.json")
                table["metrics"] |= found["metrics"]
                table["curves"] |= found["curves"]
                phase.at(number)
            table["metrics"] |= {key: given.get(cell.name, {}).get(key) for key in self._keys}
            made[cell.name] = Cell.model_validate(table)
        self._bench = None
        return [made.get(cell.name, cell) for cell in cells], warnings

    def write(self, cells: Sequence[Cell], folder: Path) -> None:
        """Upstream's two files for `cells`, where they were asked for."""
        videos = {folder / cell.video: cell for cell in cells if cell.status == "done" and cell.video}
        for path in self._folders:
            write_results(
                path, {video: cell.metrics for video, cell in videos.items()},
                {video: _prompt(cell) for video, cell in videos.items()}, {video: cell.frames for video, cell in videos.items()},
            )  # fmt: skip

    def _computed(self, video: Path, kept: Path) -> dict[str, Any]:
        """`metrics` and `curves` of `video`, from the file `kept` or for it."""
        stats = {name: (path.name, path.stat()) for name, path in self._weights.items()}
        own = Path(str(vbench.__file__)).parent.glob("*.py")
        key = {
            "video": file_hash(video),
            "code": hash_of([*sorted(own), *READING], [importlib.metadata.version(name) for name in LIBRARIES if find_spec(name)]),
            "dimensions": self._dimensions,
            "weights": {name: [file, stat.st_size, stat.st_mtime_ns] for name, (file, stat) in stats.items()},
        }

        def make() -> dict[str, Any]:
            try:
                self._bench = self._bench or VBench(self._device, self._folder, self._dimensions)
                scored = self._bench.score(video)
            except torch.OutOfMemoryError as error:
                reason = " ".join(str(error).split())[:200]
                raise OutOfMemoryError(f"out of memory while VBench scored {video.name}: {reason}",
                                       expected="room for its networks beside a picture of this size",
                                       hint="leave out what needs RAFT (dynamic_degree and motion_smoothness_raft); the videos "
                                          "are kept") from error  # fmt: skip
            curves = {row.key: scored.curves[row.key] for name in self._dimensions
                      if "raft" not in (row := DIMENSIONS[name]).weights}  # fmt: skip
            return {"metrics": scored.values, "curves": rounded(curves)}  # RAFT's have a gap after each number: no line shows

        return once(kept, key, make)

    def _found(self, cells: Sequence[Cell], folder: Path) -> tuple[dict[str, dict[str, float]], list[str]]:
        """The numbers of the files that were given, by the names of cells; warnings of videos that are none of `cells`.

        A video is known by its path, by its place in --export-vbench, or by its name where no other has it.
        """
        places = {str(folder / cell.video): cell.name for cell in cells if cell.video}
        own = {*places.values()}
        places |= {place: name for place, name in _laid_out(folder).items() if name in own}
        found: dict[str, dict[str, float]] = {}
        warnings = []
        for file, videos in self._given.items():
            unknown = 0
            for path, values in videos.items():
                place = "/".join(
                    (file.absolute().parent.parent / path).parts[-3:]
                )  # PRESET/videos/NAME, beside PRESET/results/FILE
                named = {name for other, name in places.items() if Path(other).name == Path(path).name}
                name = places.get(path) or places.get(place) or (named.pop() if len(named) == 1 else None)
                unknown += name is None
                if name is not None:
                    found[name] = found.get(name, {}) | values
            if unknown:
                warnings.append(f"{file}: {unknown} of its {len(videos)} videos are none of these, or cannot be told from others")
        return found, warnings


def lay_out(comparison: Comparison, folder: Path, export: Path, overwrite: bool = False) -> list[str]:
    """Copies the videos of `comparison`, which lies in `folder`, to `export` for VBench's own program; returns what to run there.

    A video without a prompt has the name of its row for one. Raises MissingError, and UsageError
    where another video is in the place of one.
    """
    done = [cell for cell in comparison.cells if cell.status == "done" and cell.video]
    placed = export_videos([(cell.preset, folder / str(cell.video), _prompt(cell)) for cell in done], export, overwrite)
    places = {place.relative_to(export).as_posix(): cell.name for place, cell in zip(placed, done, strict=True)}
    disk.save_json(folder / PLACES, places)
    return [
        shlex.join(["vbench", "evaluate", "--videos_path", str(own / "videos"), "--prompt_file", str(own / "prompts.json"),
                    "--mode", "custom_input", "--output_path", str(own / "results"), "--dimension", CUSTOM])
        for own in dict.fromkeys(place.parent.parent for place in placed)
    ]  # fmt: skip


def _prompt(cell: Cell) -> str:
    return cell.preset if cell.prompt is None else cell.prompt


def _laid_out(folder: Path) -> Mapping[str, str]:
    """What an earlier `lay_out` placed where."""
    try:
        return json.loads((folder / PLACES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
