"""The command line: arguments → calls of the library. Each module adds its commands."""

from steerlens import cli_measure, cli_show, cli_steer
from steerlens.cli_options import app

__all__ = ["app", "cli_measure", "cli_show", "cli_steer"]
