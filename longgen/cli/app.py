"""What every command stands on: the app, its errors and signals, its two streams."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import errno
import functools
import json
import locale
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
import typer.core

from longgen import __version__
from longgen.errors import HungUp, LonggenError, OutOfMemoryError, Terminated, UsageError
from longgen.textfile import visible

SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda token: token.replace("_", "-")}


class Command(typer.core.TyperCommand):
    """A command that refuses an option which is given twice, where click would take the last one and say nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        order: list[Any] = self.make_parser(ctx).parse_args(args=[*args])[2]
        for one in order if not ctx.resilient_parsing else ():
            if one.param_type_name == "option" and not one.multiple and not one.is_flag and order.count(one) > 1:
                name = next(opt for opt in one.opts if opt.startswith("--"))
                error = UsageError(f"{name} is given {order.count(one)} times, and counts once", expected=f"one {name}",
                                   hint="leave the others out")  # fmt: skip
                say(f"longgen: {error}")
                raise typer.Exit(error.exit_code)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if not ctx.params.get("quiet"):
            known = _variables(ctx.find_root().command)
            for name in sorted(name for name in os.environ if name.startswith("LONGGEN_")):
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
                    say(f"note: the variable {name} is none that longgen reads{f' (is {near[0]} meant?)' if near else ''}")
                elif not os.environ[name]:
                    say(f"note: the variable {name} is empty, which counts as not set")
        return super().invoke(ctx)


def _variables(command: Any) -> set[str]:
    """The environment variables that the options of `command` and those below it read."""
    names = {str(one.envvar) for one in command.params if one.envvar} | {"LONGGEN_DEBUG"}
    return names.union(*(_variables(below) for below in getattr(command, "commands", {}).values()))


class App(typer.Typer):
    def command(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return super().command(*args, **{"cls": Command, **kwargs})


app = App(name="longgen", no_args_is_help=True, pretty_exceptions_enable=False, context_settings=SETTINGS,
          help="Long videos from video diffusion models trained on short clips, without training.")  # fmt: skip


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns the errors of longgen.errors into one message and their exit code; LONGGEN_DEBUG=1 shows the traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            _stand_somewhere()
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except BaseException as error:
            if os.environ.get("LONGGEN_DEBUG") == "1" or isinstance(error, SystemExit):
                raise
            raise typer.Exit(_told(error)) from None

    return wrapped


def _stand_somewhere() -> None:
    """Raises LonggenError where the current folder was removed, which libraries answer with much worse."""
    try:
        os.getcwd()
    except OSError:
        raise LonggenError("the current folder is not there any more", expected="a folder that exists",
                           hint="cd into another one") from None  # fmt: skip


def _told(error: BaseException) -> int:
    """Says what `error` comes to, on stderr; its exit code."""
    global _said
    _said = True
    stop = error if isinstance(error, KeyboardInterrupt) else _stopped  # a library may turn it into an error of its own
    if isinstance(stop, KeyboardInterrupt):
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # it is ending: a second one could only spoil the words about it
        by = "the terminal's end" if isinstance(stop, HungUp) else "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
        say(f"longgen: stopped by {by}; what was computed is on disk: the same command goes on from there, generate with --resume")
        return stop.exit_code if isinstance(stop, Terminated) else 130
    known = error if isinstance(error, LonggenError) else _explained(error)
    if known is None:
        say(f"longgen: {type(error).__name__}: {error}\n  hint: this is a defect of longgen; LONGGEN_DEBUG=1 shows where")
        return 1
    say(f"longgen: {known}")
    return known.exit_code


def _explained(error: BaseException) -> LonggenError | None:
    """What the system refused, in words; None where `error` is a defect."""
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"out of memory: {error or 'the host has no more'}", expected="what longgen plan estimates",
                                hint="take fewer --frames or a smaller --size")  # fmt: skip
    if isinstance(error, UnicodeEncodeError) and not locale.getpreferredencoding(False).lower().startswith("utf"):
        return LonggenError(
            f"{error.object[:100]!r} cannot be the name of a file where the locale is {locale.getpreferredencoding(False)}",
            expected="a locale of UTF-8",
            hint="set LC_ALL=C.UTF-8, or take plain names",
        )
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    if any(getattr(one, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(one) for one in chain):
        return LonggenError("no more files may be opened by this process", expected="a limit of 256 or more (ulimit -n)",
                            hint="raise it: ulimit -n 1024")  # fmt: skip
    refused = (
        next((one for one in chain if isinstance(one, OSError)), None) if isinstance(chain[0], OSError | ImportError) else None
    )
    if refused is None:
        return None
    what = refused.filename if isinstance(refused.filename, str) else "a file"
    return LonggenError(f"{what}: {refused.strerror or refused}", expected="files and folders that may be read and written",
                        hint="check the path, its permissions, and the room on the disk")  # fmt: skip


def say(message: str) -> None:
    """To a person, on stderr. A stderr that is closed or full stops nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(visible(message), file=sys.stderr, flush=True)


def answer(text: str, data: Any, as_json: bool, made: bool = False) -> None:
    """The result, on stdout. made: files were, so that a reader who has gone is no failure; their paths then go to stderr.

    Raises LonggenError where stdout takes no more.
    """
    result = json.dumps(data, indent=2) if as_json else text if made else visible(text)
    try:
        if sys.stdout is None:
            raise BrokenPipeError
        print(visible(result) if sys.stdout.isatty() else result, flush=True)
    except BrokenPipeError:
        _let_go()
        if made or sys.stdout is None:
            say(text if made else result)
            return
        raise typer.Exit(1) from None  # the reader has gone; say nothing more
    except (OSError, ValueError) as error:
        _let_go()
        raise LonggenError(f"the result could not be written to stdout: {getattr(error, 'strerror', None) or error}"
                           + (f"; what was made is there: {text}" if made else ""), expected="a stdout with room",
                           hint="free some space, or send it elsewhere") from None  # fmt: skip


def _let_go() -> None:
    """Has Python write what it still holds of stdout to nowhere when it exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version(asked: bool) -> None:
    if asked:
        print(f"longgen {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


_stopped: KeyboardInterrupt | None = None  # the signal that came
_said = False  # whether the command has said what ended it
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_KINDS = {"SIGINT": KeyboardInterrupt, "SIGTERM": Terminated, "SIGHUP": HungUp}


def _on_signal(number: int, frame: object) -> None:
    global _stopped
    _stopped = _stopped or _KINDS[signal.Signals(number).name]()
    raise _stopped


def _as_written(error: UnicodeError) -> tuple[str | bytes, int]:
    """What the encoding of a stream lacks: bytes of names that are not text as they are, all else in the words of Python."""
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in part):
        return bytes(ord(character) - 0xDC00 for character in part), error.end
    return "".join(
        f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}" for character in part
    ), error.end


def main() -> None:
    """The console script."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a stream that came closed: no file that is opened later shall have its number
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - print takes stdout in its place
    codecs.register_error("longgen", _as_written)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="longgen")
    for one in _SIGNALS:
        if signal.getsignal(one) is not signal.SIG_IGN:  # as nohup and shells have it for what runs behind
            signal.signal(one, _on_signal)
    code: Any = 1
    try:
        app()
    except SystemExit as end:
        code = end.code if _stopped is None or _said else _told(_stopped)  # which came before the command began
    except BaseException as error:  # outside of commands: while help is printed, or an option is parsed
        if os.environ.get("LONGGEN_DEBUG") == "1":
            raise
        if isinstance(error, OSError) and error.filename is None and _stopped is None:
            _let_go()
            say(f"longgen: stdout could not be written to: {error.strerror}")
            code = 1
        else:
            code = _told(error)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _let_go()
        code = 1
        if error.errno != errno.EPIPE:
            say(f"longgen: stdout could not be written to: {error.strerror}")
    sys.exit(code)
