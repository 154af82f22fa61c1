"""Checks the arguments of Python callers: a wrong type is a UsageError at once, not a strange video later."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, SupportsFloat, SupportsIndex, Union, get_args, get_origin

from longgen.errors import UsageError, shown


def expect(name: str, value: Any, kinds: Any, expected: str, optional: bool = False, hint: str = "pass such a value") -> None:
    """Raises UsageError if `value` is not an instance of `kinds`; a bool does not count as a number."""
    if optional and value is None:
        return
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise UsageError(f"{name} = {shown(value)} is of type {type(value).__name__}", expected=expected, hint=hint)


def fitted(name: str, value: Any, annotation: Any) -> Any:
    """`value` of the parameter `name`, if it fits the parameter's type; whole numbers and tuples of other libraries as Python's.

    annotation: evaluated, of the kinds that WORDS names, Literal, unions of these, sequences, pairs and functions. Raises
    UsageError.
    """
    fits, result = _fit(value, annotation)
    if not fits:
        choices = [*dict.fromkeys(_words(annotation))]
        wrong = "is none of them" if isinstance(value, str) and _is_choice(annotation) else f"is of type {type(value).__name__}"
        hint = "save it to a file, and pass its name" if "a path" in choices else "pass such a value"  # pixels, usually
        raise UsageError(f"{name} = {shown(value)} {wrong}", expected=" or ".join(choices), hint=hint)
    return result


WORDS: dict[Any, str] = {
    str: "a string", os.PathLike: "a path", bool: "True or False", int: "a whole number", float: "a number",
    type(None): "None", tuple: "a pair of whole numbers", Callable: "a function",
}  # fmt: skip


def _fit(value: Any, annotation: Any) -> tuple[bool, Any]:
    """Whether `value` is of the type `annotation`, and as what it is taken."""
    origin, parts = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (Union, UnionType):
        return next((fit for fit in (_fit(value, part) for part in parts) if fit[0]), (False, value))
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts), value
    if origin is Callable:
        return callable(value), value
    if origin in (Sequence, tuple):
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            return False, value
        fits = [_fit(item, parts[0]) for item in value]
        return all(fit for fit, _ in fits) and (origin is Sequence or len(fits) == len(parts)), tuple(item for _, item in fits)
    if origin is int and isinstance(value, SupportsIndex) and not isinstance(value, bool):
        return True, operator.index(value)
    if origin is float and isinstance(value, SupportsFloat) and not isinstance(value, bool):
        return True, float(value)
    return isinstance(value, origin), value


def _is_choice(annotation: Any) -> bool:
    return Literal in (get_origin(annotation), *map(get_origin, get_args(annotation)))


def _words(annotation: Any) -> list[str]:
    """What a value of the type `annotation` is, each of its kinds in words."""
    origin, parts = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (Union, UnionType):
        return [word for part in parts for word in _words(part)]
    if origin is Literal:
        return [str(part) for part in parts]
    if origin is Sequence:
        return [f"a list of {WORDS[get_origin(parts[0]) or parts[0]].removeprefix('a ')}s" if parts[0] in WORDS else "a list"]
    return [WORDS.get(origin, f"a {getattr(origin, '__name__', origin)}")]


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
