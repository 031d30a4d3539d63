"""The command line: arguments → calls of the library. Each module adds its commands.

No module imports torch before its command line has been checked.
"""

from steerlens.cli import start, steer, chat, learn, suggest, measure, axbench, show, serve, cache  # isort: skip - the help's order
from steerlens.cli.options import app

__all__ = [
    "app",
    "axbench",
    "cache",
    "chat",
    "learn",
    "measure",
    "serve",
    "show",
    "start",
    "steer",
    "suggest",
]
