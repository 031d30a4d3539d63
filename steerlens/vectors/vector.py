"""A concept as one direction per layer, with its scale and where it came from."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from steerlens.display import Rows, card
from steerlens.errors import SteerlensError
from steerlens.files import PathLike, naming
from steerlens.layer_text import display_layers
from steerlens.numerics import unit
from steerlens.vectors.foreign import VectorFile
from steerlens.vectors.formats import (
    LossyFormatWarning,
    left_out,
    read_vector_file,
    write_vector_file,
)

CENTRED_BY_PROJECTION = "centred by projection"
"""What `centred` notes down as the processing."""


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """One direction per layer, read at one site; knows no model.

    >>> v = SteeringVector(torch.eye(2), layers=(3, 4))
    >>> (v + v)[3], v.cosine(-v)
    (tensor([2., 0.]), tensor([-1., -1.]))
    """

    directions: Float[Tensor, "layer d_model"]
    layers: tuple[int, ...]
    """The block index of each row of `directions`, increasing."""
    site: str = "resid_post"
    """Where in a block it was read, and is written unless said otherwise."""
    norms: Float[Tensor, " layer"] | None = None
    """Mean length of the activations it was read from: the unit of relative strengths."""
    explained: Float[Tensor, " layer"] | None = None
    """Share of the contrast's variance along the direction."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        directions = torch.as_tensor(self.directions).detach()
        if directions.ndim != 2:
            raise SteerlensError(
                f"directions of shape {tuple(directions.shape)} came; needed is [layer, d_model]"
            )
        object.__setattr__(self, "directions", directions.to(torch.float32))
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        if len(self.layers) != len(directions) or not self.layers:
            raise SteerlensError(
                f"{len(directions)} directions came with {len(self.layers)} layers "
                f"{self.layers}; each direction needs its layer"
            )
        if any(low >= high for low, high in zip(self.layers, self.layers[1:], strict=False)):
            raise SteerlensError(f"the layers {self.layers} must increase, without repeats")
        for name in ("norms", "explained"):
            values = getattr(self, name)
            if values is not None and values.shape != (len(self.layers),):
                raise SteerlensError(
                    f"{name} of shape {tuple(values.shape)} came for {len(self.layers)} layers"
                )
            if values is not None and not values.isfinite().all():
                raise SteerlensError(f"{name} holds NaN or infinite values: {values.tolist()}")
        # after the cast: float64 holds numbers that are infinite in float32
        bad = (~self.directions.isfinite()).any(dim=-1)
        if bad.any():
            rows = [layer for layer, is_bad in zip(self.layers, bad, strict=True) if is_bad]
            raise SteerlensError(
                f"the vector holds NaN or infinite values at layer(s) {rows}; extract it again "
                "(in float32 or bfloat16) or leave these layers out"
            )

    def __repr__(self) -> str:
        name = self.provenance.get("name", "vector")
        layers = display_layers(self.layers)
        return f"SteeringVector({name!r}, {self.site}, layers {layers}, d {self.width})"

    def _repr_html_(self) -> str:
        """For notebooks: each layer's length, against what it was read from, and the origin."""
        columns = {
            "layer": self.layers,
            "length": self.directions.norm(dim=1).tolist(),
            "mean activation norm": None if self.norms is None else self.norms.tolist(),
            "variance explained": None if self.explained is None else self.explained.tolist(),
        }
        known = {name: values for name, values in columns.items() if values is not None}
        rows = list(zip(*known.values(), strict=True))
        return card(
            f"SteeringVector {self.provenance.get('name', 'vector')}",
            {"site": self.site, "layers": display_layers(self.layers), "width": self.width},
            Rows(list(known), rows, len(rows)),
            Rows(("what", "value"), self.provenance.items(), len(self.provenance), "Origin", True),
        )

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> Float[Tensor, " d_model"]:
        return self.directions[self.row(layer)]

    @property
    def width(self) -> int:
        """The length of each direction, d_model for residual sites."""
        return self.directions.shape[1]

    def row(self, layer: int) -> int:
        """The row of `directions` that belongs to a layer."""
        if layer not in self.layers:
            raise SteerlensError(
                f"the vector has no direction for layer {layer}; "
                f"it has {display_layers(self.layers)}"
            )
        return self.layers.index(layer)

    def at(self, layers: Iterable[int]) -> "SteeringVector":
        """The same vector, of these layers only."""
        rows = [self.row(layer) for layer in sorted(set(layers))]
        if not rows:
            raise SteerlensError("a vector of no layer was asked for; name at least one layer")
        return replace(
            self,
            directions=self.directions[rows],
            layers=tuple(self.layers[row] for row in rows),
            norms=None if self.norms is None else self.norms[rows],
            explained=None if self.explained is None else self.explained[rows],
        )

    def normalized(self) -> "SteeringVector":
        """Every direction at unit length; a zero direction stays zero."""
        return self._derived("normalized", unit(self.directions))

    def centred(self) -> "SteeringVector":
        """The same in a stream without its mean, which LayerNorm models lose in processing.

        Of the activations' norms, which change with it, none are kept.
        """
        means = self.directions.mean(dim=1, keepdim=True)
        crossed = self._derived("centred", self.directions - means)
        provenance = {**crossed.provenance, "processing": CENTRED_BY_PROJECTION}
        return replace(crossed, norms=None, provenance=provenance)

    def cosine(self, other: "SteeringVector") -> Float[Tensor, " layer"]:
        """Cosine between the two vectors at each layer; zero where either is zero."""
        self._require_like(other, "compare")
        return einsum(
            self.normalized().directions,
            other.normalized().directions,
            "layer d_model, layer d_model -> layer",
        )

    def __add__(self, other: "SteeringVector") -> "SteeringVector":
        return self._combined(other, "sum", torch.add)

    def __sub__(self, other: "SteeringVector") -> "SteeringVector":
        return self._combined(other, "difference", torch.sub)

    def __mul__(self, factor: float) -> "SteeringVector":
        return self._derived(f"times {float(factor):g}", self.directions * float(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "SteeringVector":
        return self * (1 / float(divisor))

    def __neg__(self) -> "SteeringVector":
        return self * -1.0

    def save(self, path: PathLike) -> None:
        """Write the vector atomically, in the format that the file's name ends in.

        `.safetensors` holds all of it; `.svec` is for activation-steering, `.gguf` for llama.cpp
        and repeng. What a format cannot hold is told by a `LossyFormatWarning`.
        """
        optional = {"norms": self.norms, "explained": self.explained}
        tensors = {"directions": self.directions, "layers": torch.tensor(self.layers)}
        tensors |= {name: values for name, values in optional.items() if values is not None}
        metadata = {"site": self.site, "provenance": dict(self.provenance)}
        content = VectorFile(tensors, metadata)
        lost = left_out(path, content)
        if lost:
            warnings.warn(
                f"{str(path)!r} leaves out {' and '.join(lost)}; .safetensors would keep all",
                LossyFormatWarning,
                stacklevel=2,
            )
        write_vector_file(path, content)

    @classmethod
    def load(cls, path: PathLike, layer: int | None = None) -> "SteeringVector":
        """Read a vector that `save` wrote, or another program: `.svec`, `.gguf`, `.pt`, `.npz`.

        `layer` is for a `.pt` or `.npz` of one direction that does not say of which layer.
        """
        tensors, metadata = read_vector_file(path, layer)
        with naming(path):
            return cls(
                directions=tensors["directions"],
                layers=tuple(tensors["layers"].tolist()),
                site=metadata["site"],
                norms=tensors.get("norms"),
                explained=tensors.get("explained"),
                provenance=metadata["provenance"],
            )

    def _combined(
        self, other: "SteeringVector", what: str, operation: Callable[[Tensor, Tensor], Tensor]
    ) -> "SteeringVector":
        self._require_like(other, "combine")
        return replace(
            self._derived(what, operation(self.directions, other.directions)),
            provenance={what: [dict(self.provenance), dict(other.provenance)]},
        )

    def _derived(self, what: str, directions: Float[Tensor, "layer d_model"]) -> "SteeringVector":
        history = [*self.provenance.get("history", []), what]
        return replace(
            self,
            directions=directions,
            explained=None,
            provenance={**self.provenance, "history": history},
        )

    def _require_like(self, other: "SteeringVector", action: str) -> None:
        for name in ("site", "layers", "width"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise SteerlensError(
                    f"cannot {action} vectors of different {name}: {mine!r} and {theirs!r}; "
                    "take the layers they share with .at(layers), or extract both alike"
                )
