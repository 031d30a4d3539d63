"""The one exception that steerlens raises for input it cannot use."""


class SteerlensError(ValueError):
    """Says what came, what was needed and what to do about it."""
