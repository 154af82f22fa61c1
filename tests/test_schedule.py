"""Schedules: what a file may hold, where its errors are, and whose text each latent frame has."""

from __future__ import annotations

import json
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longgen import frames, schedule
from longgen.errors import MissingError, UsageError
from longgen.schedule import PromptSchedule, Shot

UNHURRIED = settings(deadline=None)  # a busy machine is no failure
FPS = st.sampled_from([1, 7, 8, 12, 15, 16, 24, 25, 30, 60])
STRIDES = st.integers(1, 9)
TWO = """\
common = "cinematic, 4k"
blend = "1s"

[[shot]]
prompt = "a circle"
[[shot]]
at = "4s"
prompt = "a square"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "shots.toml"
    path.write_bytes(text.encode())
    return path


def errors_of(folder: Path, text: str) -> list[str]:
    """The lines of the one error that a file with `text` raises, without its heading."""
    with pytest.raises(UsageError) as refusal:
        schedule.load(written(folder, text))
    heading, *errors = refusal.value.given.split("\n")
    assert heading == f"schedule {folder / 'shots.toml'}:"
    assert refusal.value.expected
    assert refusal.value.hint
    return [error.strip() for error in errors]


def cut_at(*times: Fraction | int, blend: Fraction | int = 0) -> PromptSchedule:
    return PromptSchedule(tuple(Shot(Fraction(time), f"shot {time}") for time in (0, *times)), Fraction(blend))


def slow_share(chosen: PromptSchedule, number: int, p: int, fps: int) -> Fraction:
    """The share of a shot in pixel frame p, from the definition, exactly."""

    def come(cut: int) -> Fraction:
        if cut == 0 or cut == len(chosen.shots):
            return Fraction(cut == 0)
        since = Fraction(p, fps) - chosen.shots[cut].at + chosen.blend / 2
        if not chosen.blend:
            return Fraction(since >= 0)
        return min(max(since / chosen.blend, Fraction(0)), Fraction(1))

    return come(number) - come(number + 1)


@st.composite
def schedules(draw: st.DrawFn, blended: bool) -> PromptSchedule:
    """Shots of lengths in hundredths of a second, none shorter than the blend."""
    lengths = draw(st.lists(st.integers(5, 400), min_size=1, max_size=4))
    blend = draw(st.integers(1, min(lengths))) if blended else 0
    return cut_at(*(Fraction(sum(lengths[: i + 1]), 100) for i in range(len(lengths))), blend=Fraction(blend, 100))


# --- files


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    assert schedule.load(written(tmp_path, TWO)) == PromptSchedule(
        (Shot(Fraction(0), "a circle, cinematic, 4k"), Shot(Fraction(4), "a square, cinematic, 4k")), Fraction(1)
    )


def test_common_and_blend_may_be_left_out(tmp_path: Path) -> None:
    read = schedule.load(
        written(tmp_path, '[[shot]]\nat = "0s"\nprompt = """\na circle\n"""\n[[shot]]\nat="1m0.5"\nprompt = \'b\'')
    )
    assert read == PromptSchedule((Shot(Fraction(0), "a circle"), Shot(Fraction(121, 2), "b")), Fraction(0))


@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text])
def test_windows_files_are_the_same(tmp_path: Path, change) -> None:
    assert schedule.load(written(tmp_path, change(TWO))) == schedule.load(written(tmp_path, TWO))


@pytest.mark.parametrize("header", ["[[shot]]", "  [[ shot ]] # [[shot]]", '[["shot"]]', "[['shot']]"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_are_those_of_the_statements(tmp_path: Path, header: str, newline: str) -> None:
    lines = [
        "# [[shot]]",
        'common = "[[shot]]"',
        header,  # line 3
        'prompt = """',
        "[[shot]]",
        "at = '1s'",
        '"""',
        "# at = '5s'",
        header,  # line 9
        "at = '''\\",
        "[[shot]]'''  # at = '4s'",
        "prompt = 'a \u2028 \\' # this separator ends no line",
        header,  # line 13
        "prompt = ''  # [[shot]]",
        '"at" = "x"',
        "",
        header,  # line 17
    ]
    errors = errors_of(tmp_path, newline.join(lines))
    assert [error.split(" = ")[0] for error in errors] == [
        "line 10: shot 2: at",
        "line 14: shot 3: prompt is empty",
        "line 15: shot 3: at",
        "line 17: shot 4: at is missing; only the first shot may omit it",
        "line 17: shot 4: prompt is missing",
    ]


NEXT = '\n[[shot]]\nat = "4s"\nprompt = "b"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["line 1: shot: must be [[shot]] tables, at least one"]),
        ("blend = '1s'\nshot = 3", ["line 2: shot: must be [[shot]] tables, at least one"]),
        ("blend = '1s'\nshot = []", ["line 2: shot: must be [[shot]] tables, at least one"]),
        ("shot = ['a']", ["line 1: shot: must be [[shot]] tables, at least one"]),
        ("\n[shot]\nprompt = 'a'", ["line 2: shot: must be [[shot]] tables, at least one"]),
        ("\n[shot.a]\nprompt = 'a'", ["line 2: shot: must be [[shot]] tables, at least one"]),
        ("\nshot = [\n  {}]", ["line 2: shot 1: prompt is missing"]),
        ("[[shot]]\nprompt='a'\nuntil='4s'", ["line 3: shot 1: until: unknown key; known keys: at, prompt, image, cut"]),
        ("[[shot]]\nprompt='a'\n[shot.more]\nat='1s'", ["line 3: shot 1: more: unknown key; known keys: at, prompt, image, cut"]),
        (
            "[[shot]]\nprompt='a'\n[[shot]]\nat='1s'\n[shot.more]\nprompt='b'",  # a prompt, but not the shot's
            ["line 3: shot 2: prompt is missing", "line 5: shot 2: more: unknown key; known keys: at, prompt, image, cut"],
        ),
        ("[[shot]]\nprompt='a'\n[other]\nat='1s'", ["line 3: other: unknown key; known keys: common, blend, shot"]),
        ("[[shot]]\nprompt='a'\n[[shots]]\nat='1s'", ["line 3: shots: unknown key; known keys: common, blend, shot"]),
        ("fade = 1\n[[shot]]\nprompt='a'", ["line 1: fade: unknown key; known keys: common, blend, shot"]),
        ("[[shot]]\nat='0s'", ["line 1: shot 1: prompt is missing"]),
        ("[[shot]]\nprompt=3", ["line 2: shot 1: prompt = 3 is not text"]),
        ("[[shot]]\nprompt.x=3", ["line 2: shot 1: prompt = {'x': 3} is not text"]),
        ("[[shot]]\nprompt=' '", ["line 2: shot 1: prompt is empty"]),
        ("common=''\n[[shot]]\nprompt='a'", ["line 1: common is empty"]),
        ("common=['a']\n[[shot]]\nprompt='a'", ["line 1: common = ['a'] is not text"]),
        ("[[shot]]\nat='1s'\nprompt='a'", ["line 2: shot 1: at = '1s', but the first shot must begin at 0"]),
        ("[[shot]]\nprompt='a'" + NEXT + NEXT, ["line 8: shot 3: at = '4s' is not after 4s, where an earlier shot begins"]),
        (
            "[[shot]]\nprompt='a'\n[[shot]]\nprompt='b'\nat='0'",
            ["line 5: shot 2: at = '0' is not after 0s, where an earlier shot begins"],
        ),
        ("[[shot]]\nprompt='a'\n[[shot]]\nprompt='b'", ["line 3: shot 2: at is missing; only the first shot may omit it"]),
        ("[[shot]]\nprompt='a'" + NEXT + "cut = 'yes'", ["line 6: shot 2: cut = 'yes' is neither true nor false"]),
        ("[[shot]]\nprompt='a'\ncut = 1" + NEXT, ["line 3: shot 1: cut = 1 is neither true nor false"]),
        ("[[shot]]\nprompt='a'\ncut = true" + NEXT, ["line 3: shot 1: cut: before the first shot there is nothing to cut from"]),
        (
            "blend = '1s'\n[[shot]]\nprompt='a'" + NEXT + "cut = true",
            ["line 7: shot 2: cut: blend = 1s fades the texts of all shots into each other, which a cut cannot"],
        ),
    ],
)
def test_what_cannot_be_is_refused_with_line_and_key(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert errors_of(tmp_path, text) == expected


def test_a_cut_is_read_and_written(tmp_path: Path) -> None:
    text = "blend = '0s'\n[[shot]]\nprompt='a'\ncut = false" + NEXT + "cut = true"
    read = schedule.load(written(tmp_path, text))
    assert [shot.cut for shot in read.shots] == [False, True]
    assert schedule.load(written(tmp_path, read.as_toml())) == read
    assert PromptSchedule.from_dict(json.loads(json.dumps(read.as_dict()))) == read
    assert [shot.keys() - {"at", "prompt"} for shot in read.as_dict()["shots"]] == [set(), {"cut"}]  # else as it always was


def test_how_long_ago_the_prompt_changed() -> None:
    shares = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0.5, 0.5], [0.6, 0.4], [1, 0], [1, 0]])
    assert schedule.since_switch(shares) == [None, None, 0, 1, 2, 0, 0, 0, 1]
    assert schedule.since_switch(shares[:2]) == [None, None]
    assert schedule.since_switch(shares[:0]) == []


@pytest.mark.parametrize("value", ['"soon"', '"-1s"', '""', "4", "4.5", "true", "[4]", "12:30:00"])
def test_what_is_no_time_is_refused(tmp_path: Path, value: str) -> None:
    (at,) = errors_of(tmp_path, f"[[shot]]\nprompt='a'\n[[shot]]\nat = {value}\nprompt='b'")
    (blend,) = errors_of(tmp_path, f"blend = {value}\n[[shot]]\nprompt='a'{NEXT}")
    assert at.startswith("line 4: shot 2: at = ")
    assert blend.startswith("line 1: blend = ")
    assert all("is not a time; expected, in quotes: 20s, 1m30s" in error for error in (at, blend))


def test_a_blend_as_long_as_a_shot_is_accepted_and_a_longer_one_refused(tmp_path: Path) -> None:
    text = 'blend = "BLEND"\n[[shot]]\nprompt="a"' + NEXT + '[[shot]]\nat="6.5s"\nprompt="c"'
    assert schedule.load(written(tmp_path, text.replace("BLEND", "2.5s"))).blend == Fraction(5, 2)
    assert errors_of(tmp_path, text.replace("BLEND", "2.6s")) == [
        "line 1: blend = '2.6s' is longer than shot 2, 2.5s: the fades would overlap"
    ]
    assert [error.split(" is ")[1] for error in errors_of(tmp_path, text.replace("BLEND", "5s"))] == [
        "longer than shot 1, 4s: the fades would overlap",
        "longer than shot 2, 2.5s: the fades would overlap",
    ]


def test_a_time_is_held_against_the_last_that_can_be_read(tmp_path: Path) -> None:
    errors = errors_of(tmp_path, f"[[shot]]\nprompt='a'{NEXT}[[shot]]\nat='x'\nprompt='c'\n[[shot]]\nat='3s'\nprompt='d'")
    assert errors[1:] == ["line 10: shot 4: at = '3s' is not after 4s, where an earlier shot begins"]


def test_all_errors_come_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    shots = "".join(f"[[shot]]\nat = '{9 - i}s'\nprompt = ''\n" for i in range(4))
    errors = errors_of(tmp_path, "what = 1\nblend = 'x'\n" + shots)
    assert [int(error.split(":")[0].removeprefix("line ")) for error in errors] == [1, 2, 4, 5, 7, 8, 10, 11, 13, 14]


@pytest.mark.parametrize(
    ("text", "line"),
    [("[[shot]]\nprompt = a", 2), ("[[shot]]\nat='0'\nat='1'", 3), ("\r\n[[shot]\r\n", 2), ("[[shot]]\nprompt='''a\u2028b\n", 2)],
)
def test_what_is_not_toml_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(UsageError, match=rf"shots\.toml is not TOML: .*line {line}\b"):
        schedule.load(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"none\.toml is not there"):
        schedule.load(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        schedule.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes("common = 'é'".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.toml cannot be read: .*0xe9"):
        schedule.load(tmp_path / "latin.toml")


@UNHURRIED
@given(schedules(blended=True), schedules(blended=False))
def test_dicts_are_json_and_equal_only_for_equal_schedules(one: PromptSchedule, other: PromptSchedule) -> None:
    for chosen in (one, other, cut_at(Fraction(1, 3))):
        assert PromptSchedule.from_dict(json.loads(json.dumps(chosen.as_dict()))) == chosen
    assert (one.as_dict() == other.as_dict()) == (one == other)
    assert one.as_dict() != PromptSchedule(one.shots, one.blend * 2).as_dict()


# --- videos


def test_a_shot_that_begins_when_the_video_is_over_is_refused() -> None:
    schedule.check(cut_at(2, 5), 81, 16)  # 5.0625 s
    with pytest.raises(UsageError, match=r"has shot 3 at 5s, but the video ends at 5s"):
        schedule.check(cut_at(2, 5), 80, 16)
    with pytest.raises(UsageError, match=r"has shot 2 at 2.5s, shot 3 at 5s, but the video ends at 2s") as refusal:
        schedule.check(cut_at(Fraction(5, 2), 5), 32, 16)
    assert refusal.value.expected == "shots that begin before 2s"


def test_known_tables() -> None:
    assert schedule.weights(cut_at(), 9, 4, 8).tolist() == [[1, 1, 1]]
    # 16 fps, stride 4: second 1 is pixel frame 16, the last of latent frame 4; with 17 frames a second, the first of frame 5
    assert schedule.weights(cut_at(1), 25, 4, 16)[1].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert schedule.weights(cut_at(1), 25, 4, 17)[1].tolist() == [0, 0, 0, 0, 0, 1, 1]
    # pixel frames 0 to 8 at 8 fps, a fade from 0.25 s to 0.75 s: 0, 0, 0, 1/4, 1/2, 3/4, 1, 1, 1
    assert schedule.weights(cut_at(Fraction(1, 2), blend=Fraction(1, 2)), 9, 4, 8)[1].tolist() == [0, 3 / 16, 15 / 16]


@UNHURRIED
@given(schedules(blended=False), FPS, STRIDES, st.integers(1, 40))
def test_cuts_are_exact_to_the_frame(chosen: PromptSchedule, fps: int, stride: int, frames_lat: int) -> None:
    """The latent frame that holds a shot's first pixel frame is the first that has it, and no frame is mixed."""
    firsts = [
        frames.latent_frames(ceil(shot.at * fps) + 1, stride) - 1 for shot in chosen.shots
    ]  # of pixel frame p: of p + 1 frames
    assume(len(set(firsts)) == len(firsts) and firsts[-1] < frames_lat)
    table = schedule.weights(chosen, frames.pixel_frames(frames_lat, stride), stride, fps)
    expected = np.zeros((len(firsts), frames_lat))
    for number, (first, end) in enumerate(zip(firsts, [*firsts[1:], frames_lat], strict=True)):
        expected[number, first:end] = 1
    assert table.dtype == np.float64
    assert (table == expected).all()


@UNHURRIED
@given(schedules(blended=True), FPS, STRIDES, st.integers(1, 40))
def test_fades_are_the_mean_over_pixel_frames(chosen: PromptSchedule, fps: int, stride: int, frames_lat: int) -> None:
    holds = [range(1), *(range(stride * (j - 1) + 1, stride * j + 1) for j in range(1, frames_lat))]
    slow = [
        [sum(slow_share(chosen, number, p, fps) for p in held) / len(held) for held in holds] for number in range(len(chosen.shots))
    ]
    assume(all(any(row) for row in slow))
    table = schedule.weights(chosen, frames.pixel_frames(frames_lat, stride), stride, fps)
    assert np.abs(table - np.array(slow, dtype=float)).max() < 1e-14
    assert np.abs(table.sum(axis=0) - 1).max() < 1e-12
    assert table.min() >= 0
    come = np.cumsum(table[::-1], axis=0)[::-1]  # how far each shot, or a later one, has come
    assert np.diff(come, axis=1).min(initial=0) > -1e-14
    for number, row in enumerate(slow):  # outside its fades a text has no share at all, or all of it
        for j, share in enumerate(row):
            if share in (0, 1):
                assert table[number, j] == share


def test_a_count_between_two_of_the_model_is_rounded_up() -> None:
    assert (schedule.weights(cut_at(1), 22, 4, 16) == schedule.weights(cut_at(1), 25, 4, 16)).all()


def test_a_shot_that_no_latent_frame_has_is_refused() -> None:
    with pytest.raises(UsageError, match=r"schedule's shot 2 at 1.0625s is too short to appear in any frame") as refusal:
        schedule.weights(cut_at(Fraction(17, 16), Fraction(18, 16)), 33, 4, 16)
    assert refusal.value.expected == "shots of 0.25s or longer, before the video ends"
    with pytest.raises(UsageError, match=r"shot 2 at 2\.05s is too short"):  # after the last frame, at 2 s, before the end
        schedule.weights(cut_at(Fraction(41, 20)), 33, 4, 16)


def test_exact_where_floating_point_is_not() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point, and 0.57 * 100 is 56.99999999999999."""
    for first in (7, 57):
        table = schedule.weights(cut_at(Fraction(first, 100)), 100, 1, 100)
        assert table[1].tolist() == [0] * first + [1] * (100 - first)


@pytest.mark.parametrize(("asked", "first"), [(40, 42), (80, 81), (120, 120), (160, 162), (200, 201)])
def test_a_shot_begins_with_the_chunk_that_longlive_begins_it_with(asked: int, first: int) -> None:
    """Its configuration for six prompts, in latent frames; the first chunk of three that starts at or after the one asked for."""
    chunks = schedule.by_chunk(cut_at(1), np.eye(2)[(np.arange(240) >= asked).astype(int)].T, 3)
    assert np.array_equal(chunks, np.eye(2)[(3 * np.arange(80) >= first).astype(int)])
