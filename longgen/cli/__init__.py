"""The command line: parse, call one function, print. The only package that prints or exits.

stdout carries results only (with --json one document, of generate a line for each video, or an error); progress and notes go to
stderr.
Everything heavy is imported inside the commands, so that --help answers at once. A command, or a group of small ones,
is one file here and one name in the import below; `longgen.cli.help` has the order of --help.
"""

from longgen.cli import generate, plan, probe, compare, bench, decode, inspect, doctor, lists, docs  # noqa: F401  # isort: skip
from longgen.cli.app import app, main

__all__ = ["app", "main"]
