"""The command line: arguments → calls of the library. Each module adds its commands.

None imports the library's heavy parts before a command line has been found to make sense.
"""

from steerlens.cli import start, steer, measure, show, serve, cache  # isort: skip - the help's order
from steerlens.cli.options import app

__all__ = ["app", "cache", "measure", "serve", "show", "start", "steer"]
