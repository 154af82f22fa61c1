"""What the Python functions share at their edge: types of arguments are checked, renamed ones are named, and messages speak Python.

longgen words its messages for the command line. Here `--guidance-scale` becomes `guidance_scale`, and `--seed N` `seed=N`; the
commands of a hint, as `longgen probe --quick` or `torchrun --nproc-per-node 2`, stay as they are.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, TypeVar, get_type_hints

from longgen import arguments
from longgen.errors import LonggenError, UsageError
from longgen.progress import Log
from longgen.textfile import visible

FileName = str | os.PathLike[str]
Dtype = Literal["fp32", "bf16", "fp16"]
Offload = Literal["none", "model", "group", "sequential"]
EARLIER = {  # parameters of earlier versions -> what takes their place
    "preset_name": "preset=",
    "sample": "frames=, size=, steps=, guidance_scale=, negative_prompt=, flow_shift= and fps=",
    "model": "its keys as parameters: offload=, lora=, clip_batch=, ...",
    "report": "progress=",
}
P = ParamSpec("P")
T = TypeVar("T")
NAMES = {"continue": "continue_from", "set": "overrides", "cfg": "guidance_scale"}  # option -> parameter, where it differs
COMMAND = re.compile(r"((?:longgen [a-z]+|torchrun|srun|python|pip|hf|vbench) [^;,:()]*)")
OPTION = re.compile(r'(?<![\w-])--([a-z][a-z-]*)(?: (?=[A-Z0-9"]))?')
logger = logging.getLogger("longgen")


def in_python(message: str) -> str:
    """`message` with the parameters of Python for the options of the command line."""

    def parameter(match: re.Match[str]) -> str:
        name = NAMES.get(match[1], match[1].replace("-", "_"))
        return f"{name}=" if match[0].endswith(" ") else name

    return "".join(part if COMMAND.fullmatch(part) else OPTION.sub(parameter, part) for part in COMMAND.split(message))


@contextmanager
def python_words() -> Iterator[None]:
    """An error inside speaks of parameters."""
    try:
        yield
    except LonggenError as error:
        LonggenError.__init__(error, *map(in_python, (error.given, error.expected, error.hint)))
        raise


def public(**renamed: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function of the Python API: its arguments are of the types that it declares, and its errors speak of parameters.

    renamed: what earlier parameters are called now.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.cache
        def hints() -> dict[str, Any]:
            return get_type_hints(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for old in renamed.keys() & kwargs.keys():
                raise UsageError(f"{function.__name__}({old}=) is no parameter any more", expected=renamed[old],
                                 hint="longgen docs python-api")  # fmt: skip
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:  # as Python says it of a function, and what may have been meant
                near = [close for name in kwargs.keys() - signature.parameters.keys()
                        for close in difflib.get_close_matches(name, signature.parameters, 1)]  # fmt: skip
                meant = f"; did you mean {' and '.join(sorted(near))}?" if near else ""
                raise TypeError(f"{function.__name__}() {error}{meant}") from None
            for name, value in bound.arguments.items():
                if name in hints():
                    bound.arguments[name] = arguments.fitted(name, value, hints()[name])
            with python_words():
                return function(*bound.args, **bound.kwargs)

        return checked

    return decorate


def log_of(log: Log | None) -> Log:
    """Where the lines go that the command line prints: to `log`, else to the logger `longgen`, notes as warnings."""

    def to_logger(line: str) -> None:
        logger.log(logging.WARNING if line.startswith(("note:", "failed:")) else logging.INFO, "%s", visible(line))

    chosen = log or to_logger
    return lambda line: chosen(in_python(line))
