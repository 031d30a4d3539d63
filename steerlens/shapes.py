"""The tensor shapes that signatures share, in TransformerLens's names for the axes.

Axes: `batch pos d_model` as in the host; `layer` are the layers of a vector or a read, in order;
`pair` are contrasting pairs, `prompt` the prompts of a read, `sample` the rows of any matrix.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Resid = Float[Tensor, "batch pos d_model"]
"""Residual stream, or another site's activations, of a batch."""
TokenIds = Int[Tensor, "batch pos"]
"""Token ids of a batch, padding included."""
TokenMask = Bool[Tensor, "batch pos"]
"""One truth value for each token of a batch, such as which are not padding."""

Side = Float[Tensor, "pair layer d_model"]
"""Activations of one side of a contrast, positive or negative: one per pair and layer."""
PromptActivations = Float[Tensor, "prompt layer d_model"]
"""One activation per prompt and layer, pooled over the tokens read."""
Samples = Float[Tensor, "sample layer d_model"]
"""The rows of a data matrix for each layer, such as centred activations."""

Directions = Float[Tensor, "layer d_model"]
"""One direction per layer, pointing from negative to positive."""
Direction = Float[Tensor, " d_model"]
"""One direction."""
PerLayer = Float[Tensor, " layer"]
"""One number per layer."""
