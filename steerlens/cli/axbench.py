"""The command that runs AxBench's protocol."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.cli.names import TINY_CHAT
from steerlens.cli.options import (
    MEASURE,
    ModelName,
    Seed,
    app,
    argument,
    existing_directory,
    one_of,
    taking,
)
from steerlens.cli.output import print_frame, reporting, say
from steerlens.files import require_writable
from steerlens.layer_text import parse_layers

PARTS = ("detection",)
"""The parts of the protocol that there are."""
EightLayers = Annotated[
    Any,
    taking(
        partial(parse_layers, argument="layers"),
        "LAYERS",
        'Such as "3", "2-5" or "1,4-6". Default: eight, spread over the depth.',
    ),
]


@app.command("axbench", rich_help_panel=MEASURE)
@reporting
def axbench_command(
    directory: Annotated[
        Any,
        argument(
            existing_directory,
            "DIR",
            "train_data.parquet, latent_eval_data.parquet and metadata.jsonl of AxBench.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The directory for results.json and the page.")] = Path(
        "out/axbench"
    ),
    model: ModelName = TINY_CHAT,
    layers: EightLayers = None,
    only: Annotated[
        str, taking(one_of(PARTS, "part"), "PART", f"One of {', '.join(PARTS)}.")
    ] = PARTS[0],
    seed: Seed = 0,
) -> None:
    """Detect AxBench's concepts in texts: by directions at each layer, and by words alone.

    Example: steerlens axbench axbench/concept10 --model smollm2 --out out/axbench
    """
    require_writable(out)
    from steerlens.data.axbench import read_axbench

    bench = read_axbench(directory)
    for dropped in bench.dropped:
        say(f"left out: {dropped}")
    from steerlens.models.loading import load_model
    from steerlens.studies.axbench import detect

    detection = detect(load_model(model), bench, layers=layers, seed=seed)
    detection.save(out)
    print_frame(detection.leaderboard, "Detection, mean AUROC over concepts; setting chosen on "
                "held-out training rows")  # fmt: skip
    say(f"wrote results.json and axbench.html to {out}")
