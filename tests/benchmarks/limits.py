"""Where the time of a job goes, and how far it is from what the machine can do."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from contest import Job, seconds
from torch.profiler import ProfilerActivity

KINDS = {
    "matrix products": ("mm", "bmm", "addmm", "addmv", "mv", "dot", "baddbmm", "linear", "matmul"),
    "softmax and masks": ("_softmax", "softmax", "masked_fill", "where", "triu", "tril", "isin"),
    "norms": ("pow", "mean", "sqrt", "rsqrt", "native_layer_norm", "linalg_vector_norm"),
    "element-wise": ("add", "sub", "mul", "div", "neg", "silu", "gelu", "tanh", "bitwise_and"),
    "copies and look-ups": (
        "copy", "cat", "stack", "index", "_index_put_impl", "index_put", "index_select", "gather",
        "embedding", "clone", "contiguous", "index_add", "fill", "zero", "to", "_to_copy",
    ),
}  # fmt: skip
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
OTHER, OUTSIDE = "other operators", "outside operators (Python)"


class Rates(NamedTuple):
    """What this machine reaches on the job's own shapes of matrices."""

    flops: float
    bytes: float


class Pass(NamedTuple):
    """One block, or the unembedding, in one forward pass."""

    flops: float
    bytes: float
    """Weights, keys and values, each read once."""


class Account(NamedTuple):
    job: str
    seconds: float
    limit: float
    """Each pass takes the longer of its arithmetic and its reading, at the measured rates."""
    flops: float
    bytes: float
    shares: dict[str, float]
    """Of the profiled run's time, by kind of operator."""

    @property
    def from_limit(self) -> str:
        return f"{self.seconds / self.limit:.1f}" if self.limit else "–"


def measure(model: Any) -> Rates:
    """Multiply matrices of the model's shapes, and read a matrix once that fits in no cache."""
    cfg = model.cfg
    device, dtype = cfg.device, cfg.dtype
    tokens = torch.randn(2048, cfg.d_model, device=device, dtype=dtype)
    weight = torch.randn(cfg.d_model, cfg.d_mlp, device=device, dtype=dtype)
    large = torch.randn(1 << 13, 1 << 13, device=device, dtype=dtype)
    vector = torch.randn(1 << 13, device=device, dtype=dtype)

    def best(run: Callable[[], Any]) -> float:
        return min(seconds(run) for _ in range(5))

    product = 2 * tokens.numel() * cfg.d_mlp
    return Rates(
        product / best(lambda: tokens @ weight), large.nbytes / best(lambda: large @ vector)
    )


@contextmanager
def counted(model: Any) -> Iterator[list[Pass]]:
    """Every pass of a block and of the unembedding; tokens that pad are computed, so count."""
    passes: list[Pass] = []
    size = torch.finfo(model.cfg.dtype).bits // 8
    heads = model.cfg.n_key_value_heads or model.cfg.n_heads

    def block(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        rows, new = args[0].shape[:2]
        entry = options.get("past_kv_cache_entry")
        past = 0 if entry is None else entry.past_keys.shape[1]
        weights = sum(w.numel() for name, w in module.named_parameters() if "W_" in name)
        seen = past + (new + 1) / 2  # tokens that a new one looks at, on average
        attention = 4 * rows * new * seen * model.cfg.n_heads * model.cfg.d_head
        cached = 2 * rows * (past + new) * heads * model.cfg.d_head
        passes.append(Pass(2 * weights * rows * new + attention, size * (weights + cached)))

    def unembedding(module: Any, args: tuple[Any, ...]) -> None:
        weights = module.W_U.numel()
        passes.append(Pass(2 * weights * args[0].shape[:2].numel(), size * weights))

    handles = [one.register_forward_pre_hook(block, with_kwargs=True) for one in model.blocks]
    handles.append(model.unembed.register_forward_pre_hook(unembedding))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def account(job: Job, rates: Rates, median: float) -> Account:
    """Count the job's work, and profile it, in two more runs."""
    passes = [Pass(0, job.bytes_read)]
    if job.model is not None:
        with counted(job.model) as passes:
            job.ours()
    limit = sum(max(one.flops / rates.flops, one.bytes / rates.bytes) for one in passes)
    flops, read = (sum(column) for column in zip(*passes, strict=True))
    return Account(job.name, median, limit, flops, read, shares(job.ours))


def shares(run: Callable[[], Any]) -> dict[str, float]:
    """Shares of the wall-clock time; profiling itself makes the part outside operators larger."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profile:
        wall = seconds(run)
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::").rstrip("_")
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent[_KIND_OF.get(name, OTHER)] += own / 1e6
    spent[OUTSIDE] = max(0.0, wall - spent.total())
    return {kind: spent[kind] / spent.total() for kind in (*KINDS, OTHER, OUTSIDE)}
