"""The command line: parse, call one function, print. The only package that prints or exits.

stdout carries results only (with --json one object, or a list of objects with a name); progress and notes go to stderr.
Everything heavy is imported inside the commands, so that --help answers at once. A command is one file here and one name
in the import below, whose order is that of --help.
"""

from longgen.cli import generate, plan, probe, compare, bench, decode, inspect, doctor, presets, techniques, backbones, docs  # noqa: F401  # isort: skip
from longgen.cli.app import app, main

__all__ = ["app", "main"]
