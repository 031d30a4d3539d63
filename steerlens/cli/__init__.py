"""The command line: arguments → calls of the library. Each module adds its commands.

None imports the library's heavy parts before a command line has been found to make sense.
"""

from steerlens.cli import start, steer, learn, measure, show, serve  # isort: skip - the order of the help
from steerlens.cli.options import app

__all__ = ["app", "learn", "measure", "serve", "show", "start", "steer"]
