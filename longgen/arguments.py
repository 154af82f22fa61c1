"""Checks the arguments of Python callers: a wrong type is a UsageError at once, not a strange video later."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any

from longgen.errors import UsageError, shown


def expect(name: str, value: Any, kinds: Any, expected: str, optional: bool = False, hint: str = "pass such a value") -> None:
    """Raises UsageError if `value` is not an instance of `kinds`; a bool does not count as a number."""
    if optional and value is None:
        return
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise UsageError(f"{name} = {shown(value)} is of type {type(value).__name__}", expected=expected, hint=hint)


def of_generate(given: Mapping[str, Any], sample: type, schedule: type) -> None:
    """Checks the parameters of `longgen.generate`, except seed and model. sample, schedule: the types of these two."""
    for name in ("backbone", "duration", "layers", "probe", "device", "dtype", "prompt"):
        expect(name, given[name], str, "a string", optional=name != "prompt" or given["schedule"] is not None)
    expect("preset_name", given["preset_name"], str, "the name of a preset, or a TOML file")
    expect("output", given["output"], (str, os.PathLike), "a file name in .mp4, .webm or .gif, or a folder")
    expect("sample", given["sample"], sample, "longgen.Sample(frames=321, ...)", optional=True)
    expect("schedule", given["schedule"], schedule, "the result of longgen.schedule.load", optional=True)
    expect("model", given["model"], Mapping, '{"offload": "model", ...}')
    for name in ("image", "last_image", "continue_from"):
        expect(name, given[name], (str, os.PathLike), "the name of a file", True, "save it to a file, and pass its name")
    expect("fit", given["fit"], str, "crop or pad", optional=True)
    for name in ("join", "resume", "overwrite", "allow_code"):
        expect(name, given[name], bool, "True or False")
    if given["overrides"] != ():
        texts("overrides", given["overrides"], empty=True)


def whole_number(name: str, value: Any, least: int, most: int = 2**63 - 1) -> int:
    """`value` as an int. Raises UsageError if it is not an integer within the limits."""
    try:
        number = operator.index(value)
        fits = not isinstance(value, bool) and least <= number <= most
    except TypeError:
        number, fits = 0, False
    if not fits:
        limits = f"{least} or more" if most == 2**63 - 1 else f"{least} to {most}"
        raise UsageError(f"{name} = {shown(value)} is not a valid integer", expected=limits, hint="pass one")
    return number


def seed(value: Any) -> int:
    """`value` as a seed. Raises UsageError."""
    return whole_number("seed", value, 0)


def seeds(values: Any) -> tuple[int, ...]:
    """At least one seed, all different. Raises UsageError."""
    expect("seeds", values, Iterable, "distinct integers from 0 on, such as (0, 1)")
    numbers = tuple(seed(value) for value in values)
    if not numbers or len(set(numbers)) < len(numbers):
        raise UsageError(f"seeds = {shown(values)}: {'two are equal' if numbers else 'there are none'}",
                         expected="distinct integers from 0 on, such as (0, 1)", hint="pass such values")  # fmt: skip
    return numbers


def texts(name: str, values: Any, empty: bool = False) -> list[str]:
    """`values` as a list of strings, not empty unless allowed; a lone string would be read letter by letter. Raises UsageError."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UsageError(f"{name} = {shown(values)} is not a list", 'a list of strings, such as ["a red circle"]', "pass a list")
    strings = [*values]
    for value in strings:
        expect(name, value, str, "strings")
    if not strings and not empty:
        raise UsageError(f"{name} is empty", expected="one string or more", hint="pass some")
    return strings
