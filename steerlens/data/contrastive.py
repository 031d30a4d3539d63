"""Contrasting prompts: pairs, the suffixes they are crossed with, and their parts."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, Literal

from steerlens.data.lint import Finding, lint_pairs
from steerlens.data.prompts import Passage, Prompt, as_texts, require_prompt
from steerlens.data.row_files import PAIRS as FORMAT
from steerlens.display import Rows, card, prompt_text
from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike, naming, write_json
from steerlens.schemas import Declared, FileModel, Many, Two, read_as


@dataclass(frozen=True)
class Passages(Sequence[Passage]):
    """One side of a dataset; its rows are built on access and never stored."""

    dataset: "ContrastiveDataset"
    side: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        return self.dataset[row][self.side]


@dataclass(frozen=True)
class ContrastiveDataset(Sequence[tuple[Passage, Passage]]):
    """Prompt pairs × suffixes: row i is (positive, negative), in suffix-major order.

    >>> data = ContrastiveDataset([("Hi.", "Hi.")], suffixes=[("No, I", "Sure, I")])
    >>> len(data), data[0][0].suffix, data[0][1].suffix
    (1, 'No, I', 'Sure, I')
    """

    pairs: Sequence[tuple[Prompt, Prompt]]
    suffixes: Sequence[str | tuple[str, str]] = ()
    """Strings shared by both sides, or (positive, negative) pairs of strings; never a mixture."""
    system: tuple[str | None, str | None] = (None, None)
    """System messages of the positive and the negative side."""
    chat: bool | None = None
    """Whether the chat template is applied; None if the tokenizer has one."""
    generation_prompt: bool = True
    """Whether a templated prompt ends with the opening of the assistant's reply."""
    name: str = "contrast"
    parts: Mapping[str, tuple[range, range]] = field(default_factory=dict)
    """Part name → the ranges of its pairs and of its suffixes."""

    def __post_init__(self) -> None:
        set_ = partial(object.__setattr__, self)
        set_("pairs", as_texts(self.pairs, "pairs"))
        set_("suffixes", as_texts(self.suffixes, "suffixes") if len(self.suffixes) else ())
        if not self.pairs:
            raise SteerlensError(f"the dataset {self.name!r} is empty; expected at least one pair")
        for index, pair in enumerate(self.pairs):
            if isinstance(pair, str | Mapping) or not hasattr(pair, "__len__") or len(pair) != 2:
                raise SteerlensError(
                    f"pair {index} of {self.name!r} is {short_repr(pair)}; "
                    "expected (positive prompt, negative prompt)"
                )
            for prompt in pair:
                require_prompt(prompt, f"pair {index} of {self.name!r}")
        _require_settings(self)
        forms = {_suffix_form(suffix) for suffix in self.suffixes}
        if len(forms) > 1 or "other" in forms:
            raise SteerlensError(
                f"the suffixes of {self.name!r} are mixed in form ({', '.join(sorted(forms))}); "
                "expected only strings, or only (positive, negative) pairs of strings"
            )

    @classmethod
    def from_sides(
        cls, positive: Sequence[Prompt], negative: Sequence[Prompt], **options: Any
    ) -> "ContrastiveDataset":
        """Pair two equally long lists of prompts, first with first.

        Args:
            positive: Texts or chats that show the behaviour: a list, Series, array or column.
            negative: Texts or chats that do not.
            **options: Other fields of the dataset, such as `suffixes` and `name`.

        >>> ContrastiveDataset.from_sides(["I love you."], ["I hate you."], name="love")
        ContrastiveDataset('love': 1 pairs)
        """
        positive, negative = as_texts(positive, "positive"), as_texts(negative, "negative")
        if len(positive) != len(negative):
            raise SteerlensError(
                f"got {len(positive)} positive but {len(negative)} negative prompts; expected "
                "pairs: give each positive prompt its negative"
            )
        return cls(list(zip(positive, negative, strict=True)), **options)

    @classmethod
    def one_against_rest(
        cls, groups: Mapping[str, Sequence[Prompt]], target: str, **options: Any
    ) -> "ContrastiveDataset":
        """Contrast one group with each of the others, prompt by prompt (multi-condition CAST).

        Args:
            groups: Name → prompts; all groups are equally long.
            target: The name of the positive group.
            **options: Other fields of the dataset; its `name` is that of the target.

        >>> topics = {"cooking": ["Bake."], "law": ["Sue."], "sport": ["Run."]}
        >>> ContrastiveDataset.one_against_rest(topics, "law").pairs
        [('Sue.', 'Bake.'), ('Sue.', 'Run.')]
        """
        if target not in groups or len(groups) < 2:
            raise SteerlensError(
                f"got the target {target!r} and the groups {sorted(groups)}; "
                "expected one of at least two groups"
            )
        others = [group for group in groups if group != target]
        options.setdefault("name", target)
        return cls.from_sides(
            list(chain.from_iterable(groups[target] for _ in others)),
            list(chain.from_iterable(groups[group] for group in others)),
            **options,
        )

    def __len__(self) -> int:
        return len(self.pairs) * max(1, len(self.suffixes))

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        index = range(len(self))[row]
        suffix_index, pair_index = divmod(index, len(self.pairs))
        suffix: Any = self.suffixes[suffix_index] if self.suffixes else ""
        both = (suffix, suffix) if isinstance(suffix, str) else suffix
        return tuple(
            Passage(prompt, ending, system)
            for prompt, ending, system in zip(
                self.pairs[pair_index], both, self.system, strict=True
            )
        )

    def __iter__(self) -> Iterator[tuple[Passage, Passage]]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        crossed = f" × {len(self.suffixes)} suffixes" if self.suffixes else ""
        parts = f", parts {', '.join(self.parts)}" if self.parts else ""
        return f"ContrastiveDataset({self.name!r}: {len(self.pairs)} pairs{crossed}{parts})"

    def _repr_html_(self) -> str:
        """For notebooks: the first pairs and suffixes, in two columns."""
        suffixes = [(text, text) if isinstance(text, str) else text for text in self.suffixes]
        parts = [f"{part} ({len(pairs)} pairs)" for part, (pairs, _) in self.parts.items()]
        sides = ("positive", "negative")
        systems = [self.system] if any(self.system) else []
        tables: dict[str, tuple[Sequence[Sequence[object]], int]] = {
            "System messages": (systems, len(systems)),
            "Pairs": ([[*map(prompt_text, pair)] for pair in self.pairs[:5]], len(self.pairs)),
            "Suffixes": (suffixes[:5], len(suffixes)),
        }
        return card(
            f"ContrastiveDataset {self.name}",
            {"rows": len(self), "parts": ", ".join(parts)},
            *(Rows(sides, rows, n, f"{what}, {n}") for what, (rows, n) in tables.items() if n),
        )

    @property
    def positive(self) -> Passages:
        """The positive side of every row."""
        return Passages(self, 0)

    @property
    def negative(self) -> Passages:
        """The negative side of every row."""
        return Passages(self, 1)

    @property
    def train(self) -> "ContrastiveDataset":
        """The part "train"."""
        return self.part("train")

    @property
    def validation(self) -> "ContrastiveDataset":
        """The part "validation"."""
        return self.part("validation")

    @property
    def test(self) -> "ContrastiveDataset":
        """The part "test"."""
        return self.part("test")

    def part(self, name: str) -> "ContrastiveDataset":
        """The dataset of one named part.

        >>> refusals.part("test")
        ContrastiveDataset('refusal/test': 20 pairs × 24 suffixes)
        """
        if name not in self.parts:
            known = ", ".join(map(repr, self.parts)) or "none"
            raise SteerlensError(
                f"{self.name!r} has no part {name!r} (its parts: {known}); make parts with .split()"
            )
        pairs, suffixes = self.parts[name]
        return replace(
            self,
            pairs=[self.pairs[index] for index in pairs],
            suffixes=[self.suffixes[index] for index in suffixes],
            name=f"{self.name}/{name}",
            parts={},
        )

    def split(
        self, train: float = 0.6, validation: float = 0.2, *, seed: int = 0
    ) -> "ContrastiveDataset":
        """Shuffle the pairs into train, validation and test parts; suffixes go to every part.

        Pairs that share a prompt go to the same part, so that no prompt is in two parts.

        Args:
            train: Share of the pairs in "train".
            validation: Share of the pairs in "validation"; the rest is "test".
            seed: Seed of the shuffle.

        >>> pairs = [(f"Do {i}.", f"Undo {i}.") for i in range(10)]
        >>> len(ContrastiveDataset(pairs).split().train)
        6
        """
        groups = _groups_sharing_a_prompt(self.pairs)
        random.Random(seed).shuffle(groups)
        bounds = [round(share * len(self.pairs)) for share in (train, train + validation)]
        chosen: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
        taken = 0
        for group in groups:
            part = ("train", "validation", "test")[sum(taken >= bound for bound in bounds)]
            chosen[part] += group
            taken += len(group)
        empty = [part for part, indices in chosen.items() if not indices]
        if empty:
            raise SteerlensError(
                f"splitting {len(self.pairs)} pairs (in {len(groups)} groups without a shared "
                f"prompt) leaves the part {empty[0]!r} empty; give more pairs or other shares"
            )
        order = list(chain.from_iterable(chosen.values()))
        every_suffix = range(len(self.suffixes))
        parts, start = {}, 0
        for part, indices in chosen.items():
            parts[part] = (range(start, start + len(indices)), every_suffix)
            start += len(indices)
        return replace(self, pairs=[self.pairs[index] for index in order], parts=parts)

    def lint(self) -> list[Finding]:
        """What would mislead whoever learns from these pairs, each with its number.

        Length skew, leaked words, prompts on both sides, uneven sides, duplicates, near-duplicates
        between parts, template tokens in prompts, empty and over-long rows. `extract` warns of
        what is found.

        >>> ContrastiveDataset([("Hi.", "Hi.")]).lint()
        [Finding(kind='prompts on both sides', told="1, such as 'Hi.'")]
        """
        told_apart = self.system[0] != self.system[1] or any(
            not isinstance(suffix, str) and suffix[0] != suffix[1] for suffix in self.suffixes
        )
        rows = {name: pairs for name, (pairs, _) in self.parts.items()}
        return lint_pairs(self.pairs, rows, same_prompts=told_apart)

    def save(self, path: PathLike) -> None:
        """Write the dataset with its parts as JSON, atomically."""
        whole = {"all": (range(len(self.pairs)), range(len(self.suffixes)))}
        write_json(
            path,
            {
                "format": FORMAT,
                "name": self.name,
                "system": list(self.system) if any(self.system) else None,
                "chat_template": self.chat,
                "generation_prompt": self.generation_prompt,
                "parts": {
                    part: {
                        "pairs": [list(self.pairs[index]) for index in pairs],
                        "suffixes": [_listed(self.suffixes[index]) for index in suffixes] or None,
                    }
                    for part, (pairs, suffixes) in (self.parts or whole).items()
                },
            },
        )

    @classmethod
    def load(cls, path: PathLike) -> "ContrastiveDataset":
        """Read a dataset that `save` wrote; errors name the place in a malformed file."""
        content = read_as(path, _File)
        pairs: list[Any] = []
        suffixes: list[Any] = []
        parts: dict[str, tuple[range, range]] = {}
        ranges: dict[tuple[Any, ...], range] = {}
        for part, rows in content.parts.items():
            first_pair = len(pairs)
            pairs += map(tuple, rows.pairs)
            part_suffixes = tuple(map(_tupled, rows.suffixes or []))
            if part_suffixes not in ranges:  # split() gives the same suffixes to every part
                ranges[part_suffixes] = range(len(suffixes), len(suffixes) + len(part_suffixes))
                suffixes += part_suffixes
            parts[part] = (range(first_pair, len(pairs)), ranges[part_suffixes])
        with naming(path):
            return cls(
                pairs,
                suffixes,
                system=_tupled(content.system or [None, None]),
                chat=content.chat_template,
                generation_prompt=content.generation_prompt,
                name=str(path) if content.name is None else content.name,
                parts={} if set(parts) == {"all"} else parts,
            )


class _Part(Declared):
    pairs: Many[Two[str | list[dict[str, str]]]]
    suffixes: Many[str | Two[str]] | None = None


class _File(FileModel):
    title = "a contrastive dataset"
    format: Literal["steerlens.contrast/1"]
    name: str | None = None
    about: str = ""
    system: Two[str | None] | None = None
    chat_template: bool | None = None
    generation_prompt: bool = True
    parts: dict[str, _Part]


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _require_settings(data: ContrastiveDataset) -> None:
    settings = {
        "system (two texts or None)": len(data.system) == 2
        and all(text is None or isinstance(text, str) for text in data.system),
        "chat (True, False or None)": data.chat is None or isinstance(data.chat, bool),
        "generation_prompt (True or False)": isinstance(data.generation_prompt, bool),
        "name (text)": isinstance(data.name, str),
    }
    wrong = [setting for setting, fits in settings.items() if not fits]
    if wrong:
        raise SteerlensError(
            f"the dataset {short_repr(data.name)} has the wrong {', '.join(wrong)}"
        )


def _suffix_form(suffix: Any) -> str:
    if isinstance(suffix, str):
        return "strings"
    is_pair = (
        isinstance(suffix, Sequence)
        and len(suffix) == 2
        and all(isinstance(ending, str) for ending in suffix)
    )
    return "pairs" if is_pair else "other"


def _listed(suffix: Any) -> Any:
    return suffix if isinstance(suffix, str) else list(suffix)


def _groups_sharing_a_prompt(pairs: Sequence[tuple[Prompt, Prompt]]) -> list[list[int]]:
    """Indices of the pairs, grouped so that pairs of different groups share no prompt."""
    import numpy as np  # here: with scipy, too slow to import for the command line
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    node: dict[str, int] = {}
    edges = [[node.setdefault(repr(prompt), len(node)) for prompt in pair] for pair in pairs]
    graph = coo_array((np.ones(len(edges)), np.array(edges).T), shape=(len(node), len(node)))
    _, component = connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for index, (positive, _) in enumerate(edges):
        groups.setdefault(component[positive], []).append(index)
    return list(groups.values())
