"""Upstream's two result files, there and back; videos laid out so that upstream reads their prompts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from longgen.errors import LonggenError, MissingError
from longgen.metrics.vbench.export import export_videos
from longgen.metrics.vbench.results import read_results, write_results

A, B = Path("clips/a cat-0.mp4"), Path("clips/a dog-0.mp4")
SCORES = {
    A: {"vbench.subject_consistency": 0.9, "vbench.background_consistency": 0.8, "vbench.dynamic_degree": 1.0,
        "vbench.imaging_quality": 0.5, "vbench.aesthetic_quality": 0.25, "motion_smoothness_raft": 0.99},
    B: {"vbench.subject_consistency": 0.6, "vbench.background_consistency": 0.5, "vbench.dynamic_degree": 0.0,
        "vbench.imaging_quality": 0.75, "vbench.aesthetic_quality": None, "motion_smoothness_raft": 0.98},
}  # fmt: skip
PROMPTS = {A: "a cat", B: "a dog"}
FRAMES = {A: 11, B: 21}


def test_the_files_are_upstreams(tmp_path: Path) -> None:
    info, results = write_results(tmp_path / "new", SCORES, PROMPTS, FRAMES)
    assert re.fullmatch(r"results_[\d-]+_full_info\.json", info.name)
    assert results.name == info.name.replace("full_info", "eval_results")
    names = ["subject_consistency", "background_consistency", "dynamic_degree", "imaging_quality", "aesthetic_quality"]
    assert json.loads(info.read_text()) == [
        {"prompt_en": "a cat", "dimension": names, "video_list": [str(A)]},
        {"prompt_en": "a dog", "dimension": names, "video_list": [str(B)]},
    ]
    written = json.loads(results.read_text())
    assert [*written] == names
    assert written["subject_consistency"][0] == pytest.approx((0.9 * 10 + 0.6 * 20) / 30)  # over pairs of frames
    assert written["background_consistency"] == [
        pytest.approx(0.6),
        [
            {"video_path": str(A), "video_results": 0.8, "video_sim": pytest.approx(8), "cnt_per_video": 10},
            {"video_path": str(B), "video_results": 0.5, "video_sim": pytest.approx(10), "cnt_per_video": 20},
        ],
    ]
    assert written["dynamic_degree"][0] == 0.5
    assert [item["video_results"] for item in written["dynamic_degree"][1]] == [True, False]
    assert written["imaging_quality"][0] == pytest.approx(0.625)
    assert [item["video_results"] for item in written["imaging_quality"][1]] == pytest.approx([50, 75])
    assert written["aesthetic_quality"] == [0.25, [{"video_path": str(A), "video_results": 0.25}]]


def test_there_and_back(tmp_path: Path) -> None:
    _, path = write_results(tmp_path, SCORES, PROMPTS, FRAMES)
    results = read_results(path)
    for video, values in SCORES.items():
        want = {key: value for key, value in values.items() if key.startswith("vbench.") and value is not None}
        assert results.videos[str(video)] == pytest.approx(want)
    assert results.overall["vbench.imaging_quality"] == pytest.approx(0.625)


def test_what_upstream_wrote_is_read(tmp_path: Path) -> None:
    """Other dimensions, null where nothing could be said, a third element and more keys than we write."""
    path = tmp_path / "results_2026-01-02-03:04:05_eval_results.json"
    items = [{"video_path": "v/a-0.mp4", "video_results": 0.98}]
    path.write_text(
        json.dumps({"motion_smoothness": [0.98, items, [{"video_path": "v/a.mp4"}]], "subject_consistency": [None, []]})
    )
    results = read_results(path)
    assert results.overall == {"vbench.motion_smoothness": 0.98, "vbench.subject_consistency": None}
    assert results.videos == {"v/a-0.mp4": {"vbench.motion_smoothness": 0.98}}


@pytest.mark.parametrize("content", ["not json", "[]", '{"a": 1}', '{"a": [0.5, [{"video_path": "x"}]]}', '{"a": ["x", []]}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(LonggenError, match="holds no results of VBench"):
        read_results(tmp_path / "file.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not there"):
        read_results(tmp_path / "gone.json")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    (tmp_path / "video.mp4").write_bytes(b"pixels")
    return tmp_path / "video.mp4"


def prompt_of(name: str) -> str:
    """As vbench/utils.py `get_prompt_from_filename` reads it."""
    return re.sub(r"-\d+$", "", name.removesuffix(".mp4"))


ODD = [
    'He said "stop" & <b>ran</b>', "two\nlines", "a/b\\c", "a cat, " * 80, "🐈 on a mat", "with_underscore", "..", "-0", "",
    "a-Scene-1", "a clip.mp4 of", "\x00", "日本の猫_",
]  # fmt: skip


def test_plain_prompts_are_file_names(tmp_path: Path, video: Path) -> None:
    cells = [("freespec", video, "a cat, running."), ("freespec", video, "a cat, running."), ("freespec", video, "une forêt-2")]
    placed = export_videos(cells, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in placed] == [
        "freespec/videos/a cat, running.-0.mp4",
        "freespec/videos/a cat, running.-1.mp4",
        "freespec/videos/une forêt-2-0.mp4",
    ]
    assert [prompt_of(path.name) for path in placed] == [prompt for _, _, prompt in cells]
    assert all(path.read_bytes() == b"pixels" for path in placed)


def test_any_prompt_has_a_safe_name_and_comes_back(tmp_path: Path, video: Path) -> None:
    placed = export_videos([("my_preset", video, prompt) for prompt in ODD], tmp_path / "out")
    folder = placed[0].parent
    assert {path.parent for path in placed} == {folder}
    assert sorted(folder.iterdir()) == sorted(set(placed))
    assert len(set(placed)) == len(ODD)
    mapped = json.loads((folder.parent / "prompts.json").read_text(encoding="utf-8"))
    assert [mapped[path.name] for path in placed] == ODD
    for path in placed:
        inside = path.relative_to(tmp_path / "out").as_posix()
        assert "_" not in inside
        assert len(path.name.encode()) <= 210
        assert re.fullmatch(r"[\w ,-]+-0\.mp4", path.name)
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "vbench evaluate --videos_path videos --prompt_file prompts.json --mode custom_input" in readme


def test_names_that_differ_in_case_alone_do_not_meet(tmp_path: Path, video: Path) -> None:
    placed = export_videos([("p", video, "A cat"), ("p", video, "a cat"), ("q", video, "a cat")], tmp_path / "out")
    assert len({str(path).casefold() for path in placed}) == 3
    assert [prompt_of(placed[0].name), prompt_of(placed[2].name)] == ["A cat", "a cat"]


def test_nothing_is_copied_where_a_video_is_missing(tmp_path: Path, video: Path) -> None:
    with pytest.raises(MissingError, match="gone"):
        export_videos([("p", video, "a"), ("p", tmp_path / "gone.mp4", "b")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
