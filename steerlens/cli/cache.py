"""The command that lists and clears converted models."""

from typing import Annotated

import typer

from steerlens.cli.options import app, console, reporting
from steerlens.models.weight_cache import cache_directory, cached_models, clear_cached_models


@app.command("cache")
@reporting
def cache_command(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all converted models.")] = False,
) -> None:
    """List the models converted from GGUF files, and their sizes; STEERLENS_CACHE moves them.

    Example: steerlens cache --clear
    """
    if clear:
        console.print(f"{_megabytes(clear_cached_models())} freed", markup=False)
        return
    models = cached_models()
    for model in models:
        console.print(f"{_megabytes(model.size)}  {model.source}", markup=False, soft_wrap=True)
    total = _megabytes(sum(model.size for model in models))
    where = cache_directory()
    console.print(f"{total} in {len(models)} models at {where}", markup=False, soft_wrap=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
