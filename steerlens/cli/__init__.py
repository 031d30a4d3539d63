"""The command line: arguments → calls of the library. Each module adds its commands."""

from steerlens.cli import cache, measure, show, steer
from steerlens.cli.options import app

__all__ = ["app", "cache", "measure", "show", "steer"]
