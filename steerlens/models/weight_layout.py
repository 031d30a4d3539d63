"""The memory layout of weights: as the forward pass needs them, or as the host made them.

HookedTransformer passes `W.T.contiguous()` or a rearranged weight to every matrix product, which
copies the whole matrix unless it is transposed in memory already.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from steerlens.models.host import is_hooked

Host = TypeVar("Host", bound=nn.Module)

_PROJECTIONS: dict[str, tuple[int, ...]] = {
    # the host flattens "head d_model d_head" to "(head d_head) d_model"
    **dict.fromkeys(("W_Q", "W_K", "W_V", "_W_K", "_W_V"), (0, 2, 1)),
    # and "head d_head d_model" to "d_model (head d_head)"
    "W_O": (2, 0, 1),
}
_GATED_MLP: dict[str, tuple[int, ...]] = dict.fromkeys(("W_gate", "W_in", "W_out"), (1, 0))
_UNEMBED: dict[str, tuple[int, ...]] = {"W_U": (1, 0)}
"""Weight → the order of its axes in memory with which the host copies nothing."""


def fast_layout(model: Host) -> Host:
    """Store weights so that the host stops copying them in every forward pass; returns the model.

    Values, shapes and names stay, only strides change: logits stay bit-identical, and `.to()`,
    `state_dict` and `load_state_dict` keep the layout. `stock_layout` undoes it. At most one weight
    is held twice at a time. A TransformerBridge, whose modules copy nothing, is left unchanged.

    >>> fast_layout(load_model()).unembed.W_U.stride()
    (1, 192)
    """
    for weight, order in _weights(model):
        weight.data = _laid_out(weight.data, order)
    return model


def stock_layout(model: Host) -> Host:
    """Undo `fast_layout`: every weight contiguous in memory, as the host makes it.

    >>> model = load_model()
    >>> stock_layout(model).unembed.W_U.stride()
    (3072, 1)
    >>> _ = fast_layout(model)
    """
    for weight, _ in _weights(model):
        weight.data = weight.data.contiguous()
    return model


def _weights(model: Any) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
    """The weights that the host copies, with the order that their axes should have in memory."""
    if not is_hooked(model):
        return
    parts: list[tuple[Any, dict[str, tuple[int, ...]]]] = [(model.unembed, _UNEMBED)]
    for block in model.blocks:
        if not (
            model.cfg.use_split_qkv_input or model.cfg.use_attn_in
        ):  # multiplied without a copy
            parts.append((block.attn, _PROJECTIONS))
        mlp = getattr(block, "mlp", None)  # attention-only models have none
        if hasattr(mlp, "W_gate"):  # a plain MLP is multiplied without a copy
            parts.append((mlp, _GATED_MLP))
    for part, orders in parts:
        for name, order in orders.items():
            weight = part._parameters.get(name)
            if weight is not None and weight.dim() == len(order):  # quantised ones are flat
                yield weight, order


def _laid_out(weight: Tensor, memory_order: tuple[int, ...]) -> Tensor:
    """The same tensor, contiguous in memory when its axes are taken in `memory_order`."""
    inverse = [memory_order.index(axis) for axis in range(len(memory_order))]
    return weight.permute(memory_order).contiguous().permute(inverse)
