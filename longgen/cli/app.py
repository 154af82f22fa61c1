"""The Typer app that all commands share: its errors and exit codes, signals, and the two output streams."""

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
from longgen.cli.dataclass_options import with_dataclass_options
from longgen.device import chain, lacks_memory
from longgen.errors import HungUp, LonggenError, OutOfMemoryError, Terminated, UsageError
from longgen.textfile import visible

SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda token: token.replace("_", "-")}


class Command(typer.core.TyperCommand):
    """A command that refuses a repeated option, where click would silently use the last one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        order: list[Any] = self.make_parser(ctx).parse_args(args=[*args])[2]
        for parameter in order if not ctx.resilient_parsing else ():
            single = parameter.param_type_name == "option" and not parameter.multiple and not parameter.is_flag
            if single and order.count(parameter) > 1:
                name = next(option for option in parameter.opts if option.startswith("--"))
                error = UsageError(f"{name} is given {order.count(parameter)} times", expected=f"a single {name}",
                                   hint="leave the others out")  # fmt: skip
                say(f"longgen: {error}")
                raise typer.Exit(error.exit_code)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if not ctx.params.get("quiet"):
            variables = _variables(ctx.find_root().command)
            for name in sorted(name for name in os.environ if name.startswith("LONGGEN_")):
                if name not in variables:
                    near = difflib.get_close_matches(name, variables, n=1, cutoff=0.7)
                    say(f"note: longgen does not read the variable {name}{f' (did you mean {near[0]}?)' if near else ''}")
                elif not os.environ[name]:
                    say(f"note: the variable {name} is empty, which counts as unset")
        return super().invoke(ctx)


def _variables(command: Any) -> set[str]:
    """The environment variables that the options of `command` and its subcommands read."""
    names = {str(parameter.envvar) for parameter in command.params if parameter.envvar} | {"LONGGEN_DEBUG"}
    return names.union(*(_variables(subcommand) for subcommand in getattr(command, "commands", {}).values()))


class App(typer.Typer):
    """Commands may take dataclasses of options; their errors become a message and an exit code."""

    def command(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        register = super().command(*args, **{"cls": Command, **kwargs})
        return lambda function: register(reports_errors(with_dataclass_options(function)))


app = App(name="longgen", no_args_is_help=True, pretty_exceptions_enable=False, context_settings=SETTINGS,
          help="Long videos from video diffusion models trained on short clips, without training.")  # fmt: skip


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns the errors of longgen.errors into a message and their exit code; LONGGEN_DEBUG=1 shows the traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            try:
                os.getcwd()
            except OSError:  # which libraries report badly
                raise LonggenError("the current folder no longer exists", "an existing folder", "cd into another one") from None
            command(*args, **kwargs)
        except BaseException as error:
            if isinstance(error, SystemExit | typer.Exit) or os.environ.get("LONGGEN_DEBUG") == "1":
                raise
            raise typer.Exit(_report_error(error)) from None

    return wrapped


def _report_error(error: BaseException) -> int:
    """Prints the message of `error` on stderr; returns its exit code."""
    global _reported
    _reported = True
    stop = error if isinstance(error, KeyboardInterrupt) else _interrupt  # a library may turn it into an error of its own
    if isinstance(stop, KeyboardInterrupt):
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the process is ending: a second signal could only garble the message
        by = "the terminal's end" if isinstance(stop, HungUp) else "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
        say(f"longgen: stopped by {by}; what was computed is on disk: the same command continues it, generate with --resume")
        return stop.exit_code if isinstance(stop, Terminated) else 130
    report = error if isinstance(error, LonggenError) else _system_error(error)
    if report is None:
        say(f"longgen: {type(error).__name__}: {error}\n  hint: this is a bug in longgen; LONGGEN_DEBUG=1 shows the traceback")
        return 1
    say(f"longgen: {report}")
    return report.exit_code


def _system_error(error: BaseException) -> LonggenError | None:
    """The error of the operating system behind `error`, in words; None where `error` is a bug."""
    links = [*chain(error)]
    if lacking := next((link for link in links if lacks_memory(link)), None):
        reason = " ".join(str(lacking).split())[:200] or "the host has no more"
        return OutOfMemoryError(f"out of memory: {reason}", expected="the memory longgen plan estimates",
                                hint="use fewer --frames or a smaller --size")  # fmt: skip
    encoding = locale.getpreferredencoding(False)
    if isinstance(error, UnicodeEncodeError) and not encoding.lower().startswith("utf"):
        return LonggenError(f"{error.object[:100]!r} cannot be a file name in the locale encoding {encoding}",
                            expected="a UTF-8 locale", hint="set LC_ALL=C.UTF-8, or use ASCII names")  # fmt: skip
    if any(getattr(link, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(link) for link in links):
        return LonggenError("this process may open no more files", expected="a limit of 256 or more (ulimit -n)",
                            hint="raise it: ulimit -n 1024")  # fmt: skip
    refused = next((link for link in links if isinstance(link, OSError)), None)
    if refused is None or not isinstance(links[0], OSError | ImportError):
        return None
    what = refused.filename if isinstance(refused.filename, str) else "a file"
    return LonggenError(f"{what}: {refused.strerror or refused}", expected="files and folders with read and write permission",
                        hint="check the path, its permissions, and the room on the disk")  # fmt: skip


def say(message: str) -> None:
    """Prints a message for people on stderr. A stderr that is closed or full is ignored."""
    with contextlib.suppress(OSError, ValueError):
        print(visible(message), file=sys.stderr, flush=True)


def logger(quiet: bool) -> Callable[[str], None]:
    """`say`, or nothing where `quiet`."""
    return (lambda message: None) if quiet else say


def answer(text: str, data: Any, as_json: bool, wrote: bool = False) -> None:
    """Prints the result on stdout. wrote: files were written, so a closed pipe is no failure; their paths then go to stderr.

    Raises LonggenError where stdout cannot be written.
    """
    result = json.dumps(data, indent=2) if as_json else text if wrote else visible(text)
    try:
        if sys.stdout is None:
            raise BrokenPipeError
        print(visible(result) if sys.stdout.isatty() else result, flush=True)
    except BrokenPipeError:
        _discard_stdout()
        if wrote or sys.stdout is None:
            say(text if wrote else result)
            return
        raise typer.Exit(1) from None  # the reader is gone
    except (OSError, ValueError) as error:
        _discard_stdout()
        raise LonggenError(f"the result could not be written to stdout: {getattr(error, 'strerror', None) or error}"
                           + (f"; the files were written: {text}" if wrote else ""), expected="a stdout with free space",
                           hint="free some space, or redirect it elsewhere") from None  # fmt: skip


def _discard_stdout() -> None:
    """Points stdout at /dev/null, so that flushing it at exit cannot fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version(requested: bool) -> None:
    if requested:
        print(f"longgen {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


_interrupt: KeyboardInterrupt | None = None  # by the first signal
_reported = False  # whether the error that ended the command was printed
_SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
if hasattr(signal, "SIGHUP"):  # not on Windows
    _SIGNALS[signal.SIGHUP] = HungUp


def _on_signal(number: int, frame: object) -> None:
    global _interrupt
    _interrupt = _interrupt or _SIGNALS[signal.Signals(number)]()
    raise _interrupt


def _escape_unencodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Codec error handler for streams: undecodable bytes of file names as they are, other characters as Python escapes."""
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    if all("\udc80" <= c <= "\udcff" for c in part):
        return bytes(ord(c) - 0xDC00 for c in part), error.end
    return "".join(rf"\u{ord(c):04x}" if ord(c) < 0x10000 else rf"\U{ord(c):08x}" for c in part), error.end


def main() -> None:
    """The console script."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: no file opened later may get its number
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - print takes stdout in its place
    codecs.register_error("longgen", _escape_unencodable)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="longgen")
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup and for background jobs
            signal.signal(number, _on_signal)
    code: Any = 1
    try:
        app()
    except SystemExit as end:
        code = end.code if _interrupt is None or _reported else _report_error(_interrupt)  # a signal before the command began
    except BaseException as error:  # outside commands: while help is printed, or options are parsed
        if os.environ.get("LONGGEN_DEBUG") == "1":
            raise
        if isinstance(error, OSError) and error.filename is None and _interrupt is None:
            _discard_stdout()
            say(f"longgen: stdout could not be written: {error.strerror}")
            code = 1
        else:
            code = _report_error(error)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _discard_stdout()
        code = 1
        if error.errno != errno.EPIPE:
            say(f"longgen: stdout could not be written: {error.strerror}")
    sys.exit(code)
