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

PARTS = ("detection", "steering")
"""The parts of the protocol."""
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
        str,
        taking(
            one_of(("", *PARTS), "part"), "PART", f"One of {', '.join(PARTS)}; empty: both parts."
        ),
    ] = "",
    layer: Annotated[
        int | None, typer.Option(help="That is steered; default: a third of the way up.")
    ] = None,
    kl_budget: Annotated[
        float, typer.Option(help="Of steering: KL p95 on neutral text at factor 1, in nats.")
    ] = 1.0,
    seed: Seed = 0,
) -> None:
    """Detect AxBench's concepts in texts, and steer replies to them, by each kind of vector.

    Beside the vectors stand words alone (detection), a prompt that asks for the concept (steering),
    random directions and shuffled labels. Run again after Ctrl-C, steering goes on where it was.

    Example: steerlens axbench axbench/concept10 --model smollm2 --out out/axbench
    """
    require_writable(out)
    from steerlens.data.axbench import read_axbench

    bench = read_axbench(directory)
    for dropped in bench.dropped:
        say(f"left out: {dropped}")
    from steerlens.models.loading import load_model
    from steerlens.studies.axbench_detection import detect
    from steerlens.studies.axbench_page import detection_leaderboard, steering_leaderboard
    from steerlens.studies.axbench_steering import steer

    loaded = load_model(model)
    if only != "steering":
        found = detect(loaded, bench, layers=layers, seed=seed)
        found.save(out)
        print_frame(detection_leaderboard(found.table), "Detection, mean AUROC over concepts; "
                    "setting chosen on held-out training rows")  # fmt: skip
    if only != "detection":
        found = steer(
            loaded, bench, layer=layer, kl_budget=kl_budget, out=out / "steering", seed=seed
        )
        found.save(out)
        print_frame(steering_leaderboard(found.table), "Steering, mean scores from 0 to 2 over "
                    "concepts; strength chosen on other instructions")  # fmt: skip
        for dropped in found.dropped:
            say(f"left out: {dropped}")
    say(f"wrote results.json and axbench.html to {out}")
