"""Jobs that read activations: extraction, suffix data sets, condition search, directions."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cast
import numpy as np
import peers
import torch
from contest import Agreement, Job, Rival
from hosts import Hosts, Size, mixed_pairs, plain_pairs, suffix_data
from sklearn.metrics import f1_score

import steerlens as sl
from steerlens.activations import batching, reading
from steerlens.models.tokenizing import tokenize_sides
from steerlens.steering.condition_search import ConditionSearch, Similarities, find_thresholds
from steerlens.steering.recipes import CAST
from steerlens.vectors.estimators import mean_difference, pca_pairwise

PARALLEL = 1 - 1e-4
"""Cosine that two programs' rounding leaves."""


def same_lines(ours: Any, theirs: Any, layers: Sequence[int] | None = None) -> Agreement:
    """Least |cosine| of two sets of directions, over layers."""
    mine = ours if isinstance(ours, torch.Tensor) else ours.directions
    others = np.stack([theirs[at] for at in sorted(theirs)]) if isinstance(theirs, dict) else theirs
    kept = list(range(len(mine)) if layers is None else layers)
    cosines = torch.cosine_similarity(mine[kept], torch.as_tensor(others[kept]).to(mine), dim=1)
    least = cosines.abs().min().item()
    return Agreement(f"|cos| ≥ {least:.6f}", least > PARALLEL)


def _extraction(
    hosts: Hosts, data: Any, estimator: Any, tokens: Any, layers: Any = None
) -> Callable[[], sl.SteeringVector]:
    return partial(
        sl.extract,
        hosts.ours,
        data,
        estimator,
        tokens=tokens,
        layers=layers,
        sinks=True,  # as the others do
        progress=False,
    )


def _texts(hosts: Hosts, data: Any) -> list[tuple[str, str]]:
    return [tuple(hosts.text(passage) for passage in pair) for pair in data]


def extraction(hosts: Hosts, size: Size) -> Iterator[Job]:
    data = sl.ContrastiveDataset(mixed_pairs(size.pairs))
    pairs = _texts(hosts, data)
    n_layers = hosts.ours.cfg.n_layers
    cast_run = partial(cast.extract, hosts.hf, hosts.tokenizer, pairs)
    what = f"extraction, {len(data)} pairs"
    yield Job(
        f"{what}, all tokens, all layers",
        _extraction(hosts, data, pca_pairwise, "all"),
        # CAST reads the last layer after the final norm: another stream
        [Rival("CAST", cast_run, partial(same_lines, layers=range(n_layers - 1)), at_least=2.2)],
        model=hosts.ours,
    )
    first = range(n_layers // 2)
    yield Job(
        f"{what}, all tokens, layers 0–{first[-1]}",
        _extraction(hosts, data, pca_pairwise, "all", first),
        [Rival("CAST", cast_run, partial(same_lines, layers=first), at_least=4)],
        model=hosts.ours,
    )
    peer = peers.steering_vectors()
    yield Job(
        f"{what}, last token, means",
        _extraction(hosts, data, mean_difference, "last"),
        [
            Rival(
                "steering-vectors, batches of 32",
                peer and partial(peer, hosts.hf, hosts.tokenizer, pairs, 32),
                same_lines,
                at_least=1.8,
            )
        ],
        model=hosts.ours,
    )
    peer = peers.repeng()
    yield Job(
        f"{what}, last token, PCA",
        _extraction(hosts, data, pca_pairwise, "last"),
        [
            Rival(
                "repeng, batches of 32",
                peer and partial(peer, hosts.hf, hosts.tokenizer, pairs, 32),
                partial(same_lines, layers=range(n_layers - 1)),
                at_least=1.8,
            )
        ],
        model=hosts.ours,
    )


def suffixes(hosts: Hosts, size: Size) -> Iterator[Job]:
    data = suffix_data(size.questions, size.suffixes)
    pairs = _texts(hosts, data)
    sides = tokenize_sides(hosts.ours, data)
    lengths = [
        (len(p.ids) - p.suffix_start, len(n.ids) - n.suffix_start)
        for p, n in zip(*sides, strict=True)
    ]

    def exact(ours: sl.SteeringVector, theirs: np.ndarray) -> Agreement:
        lines = same_lines(ours, theirs, range(hosts.ours.cfg.n_layers - 1))
        error = _sharing_error(hosts, [*sides[0], *sides[1]])
        text = f"{lines.text}; shared = unshared to {error:.0e}"
        return Agreement(text, lines.holds and error < 1e-5)

    what = f"{size.questions} questions × {size.suffixes} suffix pairs"
    yield Job(
        f"{what}, suffix tokens",
        _extraction(hosts, data, pca_pairwise, "suffix"),
        [
            Rival(
                "CAST",
                partial(cast.extract, hosts.hf, hosts.tokenizer, pairs, lengths),
                exact,
                at_least=6,
            )
        ],
        model=hosts.ours,
    )
    peer = peers.steering_vectors()
    yield Job(
        f"{what}, last token, means",
        _extraction(hosts, data, mean_difference, "last"),
        [
            Rival(
                f"steering-vectors, batches of {batch}",
                peer and partial(peer, hosts.hf, hosts.tokenizer, pairs, batch),
                same_lines,
                at_least=6,
            )
            for batch in (8, 32, 128)
        ],
        model=hosts.ours,
    )


def _sharing_error(hosts: Hosts, rows: Sequence[Any]) -> float:
    """Largest difference to a read of every row in full, relative to the largest activation."""
    sample = list(rows)[:: max(1, len(rows) // 400)]
    read = partial(reading.read_rows, hosts.ours, tokens="suffix", sinks=True, progress=False)
    shared = read(list(rows)).pooled
    shared = shared[:: max(1, len(rows) // 400)]
    finder = batching.shared_prefixes
    batching.shared_prefixes = lambda prefixes, widths: [0] * len(prefixes)
    try:
        plain = read(sample).pooled
    finally:
        batching.shared_prefixes = finder
    return ((shared - plain).abs().max() / plain.abs().max()).item()


def search(hosts: Hosts, size: Size) -> Iterator[Job]:
    pairs = plain_pairs()[: size.pairs + 10]
    chosen, kept = (
        tuple(map(list, zip(*part, strict=True)))
        for part in (pairs[: size.pairs], pairs[size.pairs :])
    )
    harm = sl.extract(hosts.ours, kept, mean_difference, tokens="all", sinks=True, progress=False)
    layers = list(range(1, min(6, hosts.ours.cfg.n_layers)))
    rows = hosts.rows([*chosen[0], *chosen[1]])
    directions = {layer: harm[layer].to(hosts.ours.cfg.device) for layer in layers}

    def ours() -> ConditionSearch:
        return sl.search_conditions(
            hosts.ours,
            harm,
            chosen,
            held_out=kept,
            layers=layers,
            site="resid_pre",
            similarity=CAST.similarity,
            combine=CAST.combine,
            progress=False,
        )

    def theirs() -> tuple[Similarities, cast.Cut]:
        found = cast.prompt_similarities(hosts.hf, rows, directions)
        sides = Similarities(found[: size.pairs], found[size.pairs :])
        return sides, cast.grid_search(*sides, size.grid_step)

    def agree(ours: ConditionSearch, theirs: tuple[Similarities, cast.Cut]) -> Agreement:
        sides, cut = theirs
        gap = max(float(np.abs(a - b).max()) for a, b in zip(ours.chosen_on, sides, strict=True))
        better = no_worse(ours.chosen_on, ours.candidates, cut)
        return Agreement(f"similarities to {gap:.0e}; {better.text}", better.holds and gap < 1e-4)

    whole = f"condition search, {2 * size.pairs} prompts, layers {layers[0]}–{layers[-1]}"
    yield Job(whole, ours, [Rival("CAST", theirs, agree, at_least=15)], model=hosts.ours)
    sides = Similarities(*(side.astype(np.float64) for side in ours().chosen_on))

    def remark(candidates: Any, seconds: float) -> str:
        decisions = 2 * len(layers) * (2 * size.pairs) ** 2  # each cut decides each prompt
        return (
            f"{1e3 * seconds:.2f} ms (aim ≤ 2); {decisions / seconds / 1e3:,.0f} decisions per ms"
        )

    yield Job(
        f"{whole}: thresholds alone",
        partial(find_thresholds, sides, layers),
        [
            Rival(
                "CAST's grid of scikit-learn's f1_score",
                partial(cast.grid_search, *sides, size.grid_step),
                partial(no_worse, sides),
                at_least=15,
            )
        ],
        remark=remark,
    )


def no_worse(sides: Similarities, candidates: Any, cut: cast.Cut) -> Agreement:
    """Our best F1 is what scikit-learn finds at that threshold, and at least the grid's."""
    best = candidates[0]
    layers = sorted({layer for candidate in candidates for layer in candidate.layers})
    column = np.concatenate(sides).astype(np.float64)[:, layers.index(best.layers[0])]
    fires = column > best.threshold if best.side == "above" else column < best.threshold
    truth = [1] * len(sides[0]) + [0] * len(sides[1])
    holds = abs(f1_score(truth, fires) - best.f1) < 1e-9 and best.f1 >= cut.f1 - 1e-9
    return Agreement(f"F1 {best.f1:.4f}, the grid's {cut.f1:.4f}", holds)


def directions(hosts: Hosts, size: Size) -> Iterator[Job]:
    pairs, layers, width = size.planted
    positive, negative = planted(pairs, layers, width)

    def per_layer() -> np.ndarray:
        return cast.principal_directions(positive.numpy(), negative.numpy())

    yield Job(
        f"top direction, {pairs} pairs × {layers} layers, d {width}",
        partial(pca_pairwise, positive, negative),
        [Rival("scikit-learn PCA(n_components=1) per layer", per_layer, same_lines, at_least=10)],
        bytes_read=2 * positive.nbytes,
    )


def planted(pairs: int, layers: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs that differ along one direction, and in others by a spectrum falling as 1/k."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    spectrum = 1 / torch.arange(1, 65)
    base = normal(pairs, layers, width)
    contrast = torch.nn.functional.normalize(normal(layers, width), dim=1)
    others = torch.nn.functional.normalize(normal(layers, 64, width), dim=2)
    shift = torch.einsum("plk,lkd->pld", normal(pairs, layers, 64) * spectrum, others)
    shift += 2 * contrast + 0.02 * normal(pairs, layers, width)
    return base + shift, base - shift
