"""`.svec` files: the JSON of IBM/activation-steering."""

from pathlib import Path

import torch
from pydantic import ConfigDict

from steerlens.errors import SteerlensError
from steerlens.files import PathLike, read_json, write_json
from steerlens.schemas import Declared, Numbers, check
from steerlens.vectors.foreign import (
    BLOCK_OUTPUT,
    VectorFile,
    as_vector_file,
    by_layer,
    model_type,
    noted,
    rows_by_layer,
)


def write_svec(path: PathLike, content: VectorFile) -> None:
    """Write directions and explained variances by layer, as activation-steering does."""
    explained = content.tensors.get("explained")
    rows = rows_by_layer(content)
    values = {} if explained is None else dict(zip(rows, explained.tolist(), strict=True))
    write_json(
        path,
        {
            "model_type": model_type(content),
            "directions": {str(layer): row.tolist() for layer, row in rows.items()},
            "explained_variances": {str(layer): value for layer, value in values.items()},
        },
    )


class _Svec(Declared):
    model_config = ConfigDict(extra="ignore")  # another program's file, which may gain keys

    model_type: str | None = None
    directions: dict[str, Numbers]
    explained_variances: dict[str, float] | None = None


def read_svec(path: PathLike) -> VectorFile:
    """Read what activation-steering wrote; its directions belong to the blocks' outputs."""
    content = check(_Svec, read_json(path), path)
    rows = by_layer(content.directions.items())
    explained = by_layer((content.explained_variances or {}).items())
    if explained and explained.keys() != rows.keys():
        raise SteerlensError(
            f"got directions for layers {sorted(rows)}, but explained variances for "
            f"{sorted(explained)}; the file may be incomplete"
        )
    directions = {layer: torch.tensor(row) for layer, row in rows.items()}
    return noted(as_vector_file(directions, content.model_type, explained), path)


def svec_left_out(path: PathLike, content: VectorFile) -> list[str]:
    """All but directions, explained variances and the model's type."""
    site, provenance = content.metadata["site"], content.metadata["provenance"]
    kept = {"model_type" if provenance.get("model_type") else "model", "source"}
    if provenance.get("name") == Path(path).stem:  # loading gives that name again
        kept.add("name")
    missing = sorted(provenance.keys() - kept)
    lost = [f"the site {site!r}"] if site != BLOCK_OUTPUT else []
    lost += ["the activation norms"] if "norms" in content.tensors else []
    return lost + ([f"the provenance ({', '.join(missing)})"] if missing else [])
