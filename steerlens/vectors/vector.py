"""A concept as one direction per layer, with its scale and provenance."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from steerlens.display import Rows, card
from steerlens.errors import SteerlensError
from steerlens.files import PathLike, naming
from steerlens.layer_text import as_layers, display_layers
from steerlens.numerics import unit
from steerlens.shapes import Direction, Directions, PerLayer
from steerlens.vectors.foreign import VectorFile
from steerlens.vectors.formats import (
    LossyFormatWarning,
    left_out,
    read_vector_file,
    write_vector_file,
)

CENTRED_BY_PROJECTION = "centred by projection"
"""The processing that `centred` records in the provenance."""


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """One direction per layer, read at one site; independent of any model, on the CPU.

    >>> v = SteeringVector(torch.eye(2), layers=(3, 4))
    >>> (v + v)[3], v.cosine(-v)
    (tensor([2., 0.]), tensor([-1., -1.]))
    """

    directions: Directions
    layers: tuple[int, ...]
    """The block index of each row of `directions`, increasing."""
    site: str = "resid_post"
    """Where in a block it was read, and where it steers by default."""
    norms: PerLayer | None = None
    """Mean norm of the activations it was read from: the unit of relative strengths."""
    explained: PerLayer | None = None
    """Share of the contrast's variance along the direction."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Name, model, data and settings it comes from."""

    def __post_init__(self) -> None:
        directions = torch.as_tensor(self.directions).detach()
        if directions.ndim != 2:
            raise SteerlensError(
                f"got directions of shape {tuple(directions.shape)}; expected [layer, d_model]"
            )
        object.__setattr__(self, "directions", directions.to("cpu", torch.float32))
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        if len(self.layers) != len(directions) or not self.layers:
            raise SteerlensError(
                f"got {len(directions)} directions and {len(self.layers)} layers {self.layers}; "
                "expected one layer for each direction"
            )
        if any(low >= high for low, high in zip(self.layers, self.layers[1:], strict=False)):
            raise SteerlensError(
                f"got the layers {self.layers}; expected them to increase, without repeats"
            )
        for name in ("norms", "explained"):
            values = getattr(self, name)
            if values is None:
                continue
            object.__setattr__(self, name, values.cpu())
            if values.shape != (len(self.layers),):
                raise SteerlensError(
                    f"got {name} of shape {tuple(values.shape)}; expected one number for each of "
                    f"{len(self.layers)} layers"
                )
            if not values.isfinite().all():
                raise SteerlensError(
                    f"got {name} {values.tolist()}; expected no NaN or infinite values"
                )
        # after the cast: float64 holds numbers that are infinite in float32
        bad = (~self.directions.isfinite()).any(dim=-1)
        if bad.any():
            rows = [layer for layer, is_bad in zip(self.layers, bad, strict=True) if is_bad]
            raise SteerlensError(
                f"the vector holds NaN or infinite values at layer(s) {rows}; extract it again "
                "(in float32 or bfloat16) or leave out these layers"
            )

    def __repr__(self) -> str:
        name = self.provenance.get("name", "vector")
        layers = display_layers(self.layers)
        return f"SteeringVector({name!r}, {self.site}, layers {layers}, d {self.width})"

    def _repr_html_(self) -> str:
        """For notebooks: the norm of each layer's direction, and the origin."""
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

    def __getitem__(self, layer: int) -> Direction:
        return self.directions[self.row(layer)]

    @property
    def width(self) -> int:
        """Components of each direction: d_model, unless the site is `z`."""
        return self.directions.shape[1]

    def row(self, layer: int) -> int:
        """The row of `directions` for a layer; raises if the vector has none."""
        if layer not in self.layers:
            raise SteerlensError(
                f"the vector has no direction for layer {layer}; "
                f"it has {display_layers(self.layers)}"
            )
        return self.layers.index(layer)

    def at(self, layers: Iterable[int]) -> "SteeringVector":
        """The vector at these layers only.

        >>> vector.at([3])
        SteeringVector('refusal/train', resid_post, layers 3, d 192)
        """
        rows = [self.row(layer) for layer in sorted(set(as_layers(layers)))]
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
        """Every direction at norm 1; a zero direction stays zero."""
        return self._derived("normalized", unit(self.directions))

    def centred(self) -> "SteeringVector":
        """The vector without its mean, for LayerNorm models with centred weights.

        The activation norms, which change with centring, are dropped.
        """
        means = self.directions.mean(dim=1, keepdim=True)
        crossed = self._derived("centred", self.directions - means)
        provenance = {**crossed.provenance, "processing": CENTRED_BY_PROJECTION}
        return replace(crossed, norms=None, provenance=provenance)

    def cosine(self, other: "SteeringVector") -> PerLayer:
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
        """Write the vector atomically; a `LossyFormatWarning` says what the format cannot hold.

        Args:
            path: The file; its ending is the format. `.safetensors` holds everything, `.svec` is
                for activation-steering, `.gguf` for llama.cpp and repeng.
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
        """Read a vector that `save` or another program wrote.

        Args:
            path: A `.safetensors`, `.svec`, `.gguf`, `.pt` or `.npz` file.
            layer: The layer of a `.pt` or `.npz` file that holds one direction and does not name
                its layer.

        >>> vector.save("refusal.safetensors")
        >>> SteeringVector.load("refusal.safetensors").layers == vector.layers
        True
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

    def _derived(self, what: str, directions: Directions) -> "SteeringVector":
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
                    "take the layers they share with .at(layers), or extract both at the same site"
                )
