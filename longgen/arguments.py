"""What Python callers give, checked where it comes in: a wrong kind is a UsageError there, and no strange video later."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any

from longgen.errors import UsageError, shown


def expect(name: str, value: Any, kinds: Any, expected: str, optional: bool = False) -> None:
    """Raises UsageError where `value` is none of `kinds`; a truth value is no number."""
    if optional and value is None:
        return
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise UsageError(f"{name} = {shown(value)} is of type {type(value).__name__}", expected=expected, hint="give it so")


def of_generate(given: Mapping[str, Any], sample: type, schedule: type) -> None:
    """Checks the parameters of `longgen.generate` but its seed and its model. sample, schedule: of which types those are."""
    for name in ("backbone", "duration", "layers", "probe", "device", "dtype"):
        expect(name, given[name], str, "a text", optional=True)
    expect("prompt", given["prompt"], str, "a text", optional=given["schedule"] is not None)
    expect("preset_name", given["preset_name"], str, "a preset's name, or a TOML file")
    expect("output", given["output"], (str, os.PathLike), "a file name in .mp4, or a folder")
    expect("sample", given["sample"], sample, "longgen.Sample(frames=321, ...)", optional=True)
    expect("schedule", given["schedule"], schedule, "what longgen.schedule.load gives", optional=True)
    expect("model", given["model"], Mapping, '{"offload": "model", ...}')
    for name in ("resume", "overwrite", "allow_code"):
        expect(name, given[name], bool, "True or False")
    if given["overrides"] != ():
        texts("overrides", given["overrides"], empty=True)


def whole_number(name: str, value: Any, least: int, most: int = 2**63 - 1) -> int:
    """`value` as an int. Raises UsageError where it is none within the limits."""
    try:
        number = operator.index(value)
        fits = not isinstance(value, bool) and least <= number <= most
    except TypeError:
        number, fits = 0, False
    if not fits:
        limits = f"{least} or more" if most == 2**63 - 1 else f"{least} to {most}"
        raise UsageError(f"{name} = {shown(value)} is no whole number that it takes", expected=limits, hint="give one")
    return number


def seed(value: Any) -> int:
    """A seed. Raises UsageError."""
    return whole_number("seed", value, 0)


def seeds(values: Any) -> tuple[int, ...]:
    """Seeds, at least one and all different. Raises UsageError."""
    expect("seeds", values, Iterable, "different whole numbers from 0 on, as (0, 1)")
    found = tuple(seed(value) for value in values)
    if not found or len(set(found)) < len(found):
        raise UsageError(f"seeds = {shown(values)}: {'two are equal' if found else 'there is none'}",
                         expected="different whole numbers from 0 on, as (0, 1)", hint="give them so")  # fmt: skip
    return found


def texts(name: str, values: Any, empty: bool = False) -> list[str]:
    """A list of texts, at least one unless it may be empty; one text alone would be read letter by letter. Raises UsageError."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UsageError(f"{name} = {shown(values)} is no list", expected='texts in a list, as ["a red circle"]', hint="give it so")
    found = [*values]
    for value in found:
        expect(name, value, str, "texts")
    if not found and not empty:
        raise UsageError(f"{name} is empty", expected="one text or more", hint="give some")
    return found
