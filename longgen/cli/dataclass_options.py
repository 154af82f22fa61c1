"""Lets a Typer command take dataclasses of options.

    @dataclass(frozen=True)
    class SizeOptions:
        size: Annotated[str | None, typer.Option("--size", help="...")] = None
        steps: Annotated[int | None, typer.Option("--steps")] = None

    @with_dataclass_options
    def command(name: str, size: SizeOptions) -> None: ...

Typer sees a command with the parameters name, size and steps, in this order; the command gets `SizeOptions(size=..., steps=...)`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def with_dataclass_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each parameter that is annotated with a dataclass replaced by the fields of the dataclass.

    Raises TypeError where two fields share a name.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if not dataclasses.is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[name] = group = parameter.annotation
        hints = get_type_hints(group, include_extras=True)
        parameters += [parameter.replace(name=field.name, kind=inspect.Parameter.KEYWORD_ONLY, default=field.default,
                                         annotation=hints[field.name]) for field in dataclasses.fields(group)]  # fmt: skip
    names = [parameter.name for parameter in parameters]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"{command.__name__}: {', '.join(sorted(repeated))} is in two groups of options")

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        options = {name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
                   for name, group in groups.items()}  # fmt: skip
        command(**values, **options)

    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded
