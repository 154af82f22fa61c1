"""What every command stands on: the app, its errors and signals, its two streams."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from longgen import __version__
from longgen.errors import LonggenError, Terminated

SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda token: token.replace("_", "-")}

app = typer.Typer(name="longgen", no_args_is_help=True, pretty_exceptions_enable=False, context_settings=SETTINGS,
                  help="Long videos from video diffusion models trained on short clips, without training.")  # fmt: skip


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns the errors of longgen.errors into one message and their exit code; LONGGEN_DEBUG=1 shows the traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except LonggenError as error:
            if os.environ.get("LONGGEN_DEBUG") == "1":
                raise
            say(f"longgen: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as stop:
            terminated = isinstance(stop, Terminated)
            say(f"longgen: stopped by {'SIGTERM' if terminated else 'Ctrl-C'}; what was computed is on disk: "
                "the same command goes on from there, generate with --resume")  # fmt: skip
            raise typer.Exit(Terminated.exit_code if terminated else 130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; say nothing more
            raise typer.Exit(1) from None
        except Exception as error:
            if os.environ.get("LONGGEN_DEBUG") == "1":
                raise
            say(f"longgen: {type(error).__name__}: {error}\n  do: this is a defect of longgen; LONGGEN_DEBUG=1 shows where")
            raise typer.Exit(1) from None

    return wrapped


def say(message: str) -> None:
    """To a person, on stderr."""
    print(message, file=sys.stderr, flush=True)


def answer(text: str, data: Any, as_json: bool) -> None:
    """The result, on stdout."""
    print(json.dumps(data, indent=2) if as_json else text)


def _version(asked: bool) -> None:
    if asked:
        print(f"longgen {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def _on_sigterm(number: int, frame: object) -> None:
    raise Terminated


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    app()
