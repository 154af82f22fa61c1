"""The Typer app that all commands share: its errors and exit codes, signals, and the two output streams."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import difflib
import errno
import functools
import itertools
import json
import locale
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from longgen import __version__, launch, ranks, signals
from longgen.cli import help as help_text
from longgen.cli import messages, rank, suggest
from longgen.cli.dataclass_options import with_dataclass_options
from longgen.device import chain, lacks_memory
from longgen.errors import HungUp, LonggenError, OutOfMemoryError, Terminated, UsageError, shown
from longgen.textfile import visible

if TYPE_CHECKING:
    from longgen.cli.log_file import LogFile
    from longgen.progress import OnProgress

SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda token: token.replace("_", "-")}
ALONE = {"--ray": "local", "--preview": "auto"}  # what an option means that may stand without a value
CLICK_USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # typer's versions have a click inside, or beside them


class _WithHelp:
    """Of commands and groups: --help shows what matters, --help-all every option; see `longgen.cli.help`."""

    rich_markup_mode: Any
    everything = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = args if not hasattr(self, "commands") else [*itertools.takewhile(lambda word: word.startswith("-"), args)]
        wanted = [*help_text.wants_all(own)]
        self.everything = bool(wanted)
        args = ["--help" if index in wanted else word for index, word in enumerate(args)]
        return super().parse_args(ctx, args)  # type: ignore[misc, no-any-return]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if self.rich_markup_mode is None:  # plain, for the documentation
            return super().format_help(ctx, formatter)  # type: ignore[misc, no-any-return]
        formatter.write(help_text.shown(self, ctx, self.everything) + "\n")

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found: list[Any] = super().shell_complete(ctx, incomplete)  # type: ignore[misc]
        if incomplete and help_text.ALL.startswith(incomplete):
            found.append(type(super().shell_complete(ctx, "--")[0])(help_text.ALL))  # type: ignore[misc]
        return found

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return help_text.usage_pieces(self)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        help_text.plain_options(self, ctx, formatter)


class Command(_WithHelp, typer.core.TyperCommand):
    """A command that refuses a repeated option, where click would silently use the last one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if [*help_text.wants_all(args)]:
            return super().parse_args(ctx, args)
        given: Any
        order: Any
        own = {option for parameter in self.params for option in parameter.opts}
        args = _with_values(args, {option: value for option, value in ALONE.items() if option in own})
        try:
            given, _, order = self.make_parser(ctx).parse_args(args=[*args])
        except CLICK_USAGE_ERROR as unparsed:
            unparsed.ctx = unparsed.ctx or ctx
            raise
        ctx.meta["longgen.given"] = given
        for parameter in order if not ctx.resilient_parsing else ():
            single = parameter.param_type_name == "option" and not parameter.multiple and not parameter.is_flag
            if single and order.count(parameter) > 1:
                name = next(option for option in parameter.opts if option.startswith("--"))
                error = UsageError(f"{name} is given {order.count(parameter)} times", expected=f"a single {name}",
                                   hint="leave the others out")  # fmt: skip
                raise typer.Exit(_report_error(error))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if ctx.params.get("log_file") is None or not _here.writes:
            return self._invoke(ctx)
        from longgen.cli import log_file

        try:
            first = str(_here) if launch.started() else f"longgen {__version__}: {log_file.command_line(ctx)}"
            log = log_file.opened(ctx.params["log_file"], ctx.params, first)
        except LonggenError as error:
            raise typer.Exit(_report_error(error)) from None
        with _logging_to(log):
            code: Any = 1
            try:
                self._invoke(ctx)
                code = 0
            except typer.Exit as end:
                code = end.exit_code
                raise
            except SystemExit as end:
                code = end.code
                raise
            finally:
                log.write(f"{_here}: exit code {code}" if launch.started() else f"exit code {code}")
        if log.trouble is not None:
            raise typer.Exit(_report_error(log.trouble))

    def _invoke(self, ctx: Any) -> Any:
        if not ctx.params.get("quiet") and not launch.started():  # or it was said already
            variables = _variables(ctx.find_root().command)
            for name in sorted(name for name in os.environ if name.startswith("LONGGEN_")):
                if name not in variables:
                    near = difflib.get_close_matches(name, variables, n=1, cutoff=0.7)
                    say(f"note: longgen does not read the variable {name}{f' (did you mean {near[0]}?)' if near else ''}")
                elif not os.environ[name]:
                    say(f"note: the variable {name} is empty, which counts as unset")
        return super().invoke(ctx)


def _with_values(args: list[str], values: dict[str, str]) -> list[str]:
    """`args` with a value after each option of `values` that stands alone, also where a prompt of several words comes next."""
    spelled = []
    for index, argument in enumerate(args):
        following = args[index + 1] if index + 1 < len(args) else "-"
        alone = argument in values and (following.startswith("-") or " " in following.strip())
        spelled += [argument, values[argument]] if alone else [argument]
    return spelled


def _variables(command: Any) -> set[str]:
    """The environment variables that the options of `command` and its subcommands read."""
    names = {str(parameter.envvar) for parameter in command.params if parameter.envvar} | {"LONGGEN_DEBUG", ranks.STORE}
    return names.union(*(_variables(subcommand) for subcommand in getattr(command, "commands", {}).values()))


class Group(_WithHelp, typer.core.TyperGroup):
    """A command with commands below it, in the order of use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return help_text.ordered(self.commands)


class Root(Group):
    """The command `longgen`: with --json an error of the option parser itself is JSON too."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        global _json
        _json = JsonState("--json" in [*itertools.takewhile(lambda word: word != "--", args)])
        with self._usage_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with self._usage_errors():
            return super().invoke(ctx)

    @contextlib.contextmanager
    def _usage_errors(self) -> Iterator[None]:
        """Errors of the option parser look as all others do; a group alone shows its help."""
        try:
            yield
        except CLICK_USAGE_ERROR as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error.ctx.get_help())
            else:
                _tell(suggest.usage_error(error, self), error.exit_code)
            raise typer.Exit(error.exit_code) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        first = str(args[0])
        if self.get_command(ctx, first) is None and suggest.is_prompt(first):
            silent = ctx.resilient_parsing or launch.started() or {"-q", "--quiet"} & {*args}
            if (command := first.split()[0]) in self.commands and not silent:
                say(f"note: {shown(first, 60)} is taken as a prompt; for the command, without these quotes: longgen {command} ...")
            args = ["generate", *args]
        return super().resolve_command(ctx, args)


class App(typer.Typer):
    """Commands may take dataclasses of options; their errors become a message and an exit code."""

    def __init__(self, cls: type[Group] = Group, **kwargs: Any) -> None:
        super().__init__(cls=cls, **kwargs)

    def command(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        register = super().command(*args, **{"cls": Command, **kwargs})
        return lambda function: register(reports_errors(with_dataclass_options(function)))


app = App(name="longgen", cls=Root, no_args_is_help=True, pretty_exceptions_enable=False, context_settings=SETTINGS,
          help="Long videos from video diffusion models trained on short clips, without training.")  # fmt: skip


@dataclasses.dataclass
class JsonState:
    """Whether --json is given, whether stdout has its result, and of `generate` the video under way, which an error is about."""

    requested: bool = False
    answered: bool = False
    video: dict[str, Any] | None = None


_json = JsonState()


def about_video(video: dict[str, Any] | None) -> None:
    """Makes the error that follows one of this video."""
    _json.video = video


def take_rank() -> None:
    """Makes this process one of the ranks that its environment names: from here on only rank 0 speaks. Raises UsageError."""
    global _here
    if _here == ranks.ALONE:
        _here = rank.enter()


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
            if isinstance(error, SystemExit | typer.Exit):
                raise
            code = _report_error(error, command.__name__)
            if os.environ.get("LONGGEN_DEBUG") == "1":
                raise
            raise typer.Exit(code) from None

    return wrapped


ON_DISK = "what was computed is on disk: the same command"
LEFT = {"generate": f"{ON_DISK} with --resume continues it", "decode": "the latents are kept"}  # by command, by a stop
LEFT |= dict.fromkeys(("compare", "probe", "doctor"), f"{ON_DISK} continues it")


def report_stop(stop: KeyboardInterrupt, left: str) -> int:
    """Says which signal stopped the command, and what is `left` of it; returns the exit code."""
    global _reported
    _reported = True
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the process is ending: a second signal could only garble the message
    by = "the terminal's end" if isinstance(stop, HungUp) else "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
    code = stop.exit_code if isinstance(stop, Terminated) else 130
    _tell(LonggenError(f"stopped by {by}", "", left), code, stopped=True)
    return code


def _report_error(error: BaseException, command: str = "") -> int:
    """Prints the message of `error` on stderr, and as JSON on stdout where that is asked for; returns its exit code."""
    global _reported
    _reported = True
    stop = error if isinstance(error, KeyboardInterrupt) else _interrupt  # a library may turn it into an error of its own
    if isinstance(stop, KeyboardInterrupt):
        return report_stop(stop, LEFT.get(command, "nothing was kept"))
    lost = _here.size > 1 and ranks.is_lost(error)
    report = error if isinstance(error, LonggenError) else _system_error(error)
    if lost:
        reason = " ".join(str(error).split())[:200]
        report = LonggenError(f"{_here} cannot reach another rank, which has ended or does not answer: {reason}",
                              "all ranks until the end", f"that rank says why; {launch.GOES_ON}")  # fmt: skip
    elif report is None:
        report = LonggenError(
            f"{type(error).__name__}: {error}", "", "this is a bug in longgen; LONGGEN_DEBUG=1 shows the traceback"
        )
    _tell(report, report.exit_code, lost=lost)
    return report.exit_code


def _tell(error: LonggenError, code: int, stopped: bool = False, lost: bool = False) -> None:
    """Says what ends the command, once for all ranks. lost: of several, another one has ended."""
    if launch.started():
        return rank.leave_report(_here, error, code, stopped, lost, _json.video)
    if not _here.writes:
        joined = ranks.current() != ranks.ALONE  # before that all ranks refuse the same options
        own = not stopped and (not (lost or error.everywhere) if joined else lost)
        if own and sys.__stderr__ is not None:
            print(visible(f"longgen: {_here}: {error}"), file=sys.__stderr__, flush=True)
        return
    say(f"longgen: {error.given}; {error.hint}" if stopped else f"longgen: {error}")
    _print_error(error, code, stopped)


def _print_error(error: LonggenError, code: int, stopped: bool) -> None:
    """The error as one line of JSON on stdout where --json asks for it, unless the result stands there; see docs/json-lines."""
    if _json.requested and not _json.answered:
        video = {} if _json.video is None else {"status": "stopped" if stopped else "failed", **_json.video}
        _json.answered = True
        try:
            print(json.dumps({**video, "error": error_dict(error), "exit_code": code}), flush=True)
        except (OSError, ValueError):  # stderr has it
            _discard_stdout()


def error_dict(error: LonggenError) -> dict[str, str]:
    """The three facts of an error, for JSON."""
    return {"given": error.given, "expected": error.expected, "hint": error.hint}


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


def say(message: str, logged: bool = True) -> None:
    """Prints a message for people on stderr, and in the file of --log-file. A stderr that is closed or full is ignored.
    On a terminal it fits the width, words whole, and the labels of an error have colours.
    """
    if logged and _log is not None:
        _log.write(message)
    with contextlib.suppress(OSError, ValueError), signals.whole_line():
        text = visible(message)
        print(messages.on_terminal(text) if messages.is_terminal(sys.stderr) else text, file=sys.stderr, flush=True)


def note_in_log(message: str) -> None:
    """Writes to the file of --log-file alone, where there is one."""
    if _log is not None:
        _log.write(message)


def logger(quiet: bool) -> Callable[[str], None]:
    """`say`, or where `quiet` the log file alone."""
    return note_in_log if quiet else say


@contextlib.contextmanager
def progress_shown(quiet: bool) -> Iterator[OnProgress]:
    """A function that shows progress on stderr, unless `quiet`, and its milestones in the log file."""
    from longgen import bars, progress

    milestones = None if _log is None else progress.in_lines(_log.write, progress.LOG_EVERY_S)
    with bars.reporter(quiet, functools.partial(say, logged=False)) as shown:
        if milestones is None:
            yield shown
        else:
            in_log = milestones
            yield lambda now: (shown(now), in_log(now))[0]


@contextlib.contextmanager
def _logging_to(log: LogFile) -> Iterator[None]:
    global _log
    _log = log
    try:
        yield
    finally:
        _log = None
        log.close()


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """What is said in here does not reach the log file: the process that does the work writes it there."""
    global _log
    kept, _log = _log, None
    try:
        yield
    finally:
        _log = kept


def answer(text: str, data: Any, as_json: bool, wrote: bool = False, indent: int | None = 2) -> None:
    """Prints the result on stdout. wrote: files were written, so a closed pipe is no failure; their paths then go to stderr.
    indent: of the JSON, None for a single line.

    Raises LonggenError where stdout cannot be written.
    """
    result = json.dumps(data, indent=indent) if as_json else text if wrote else visible(text)
    try:
        _json.answered = as_json  # an error that follows is no second document
        print_line(result)
    except BrokenPipeError:
        if wrote or sys.stdout is None:
            say(text if wrote else result)
            return
        raise typer.Exit(1) from None  # the reader is gone
    except (OSError, ValueError) as error:
        raise unwritten(error, text if wrote else "") from None


def print_line(line: str) -> None:
    """Prints on stdout, at once. Raises BrokenPipeError where nobody reads it, OSError, ValueError where it cannot be written."""
    if sys.stdout is None:
        raise BrokenPipeError
    try:
        with signals.whole_line():
            print(visible(line) if sys.stdout.isatty() else line, flush=True)
    except (OSError, ValueError):
        _discard_stdout()
        raise


def unwritten(error: Exception, files: str) -> LonggenError:
    """The error for a result that `error` kept from stdout. files: those that were written, a line each."""
    return LonggenError(f"the result could not be written to stdout: {getattr(error, 'strerror', None) or error}"
                        + (f"; the files were written: {files}" if files else ""), expected="a stdout with free space",
                        hint="free some space, or redirect it elsewhere")  # fmt: skip


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


_here = ranks.ALONE  # this process among its ranks
_interrupt: KeyboardInterrupt | None = None  # by the first signal
_log: LogFile | None = None  # of --log-file
_reported = False  # whether the error that ended the command was printed
_SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
if hasattr(signal, "SIGHUP"):  # not on Windows
    _SIGNALS[signal.SIGHUP] = HungUp


def _on_signal(number: int, frame: object) -> None:
    global _interrupt
    _interrupt = _interrupt or _SIGNALS[signal.Signals(number)]()
    signals.deliver(_interrupt)


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
    if launch.started():
        take_rank()
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
    if _here.size > 1:
        rank.leave(code or 0)
    sys.exit(code)
