"""The vectors that a playground offers: recipes over the demo data, and files."""

import inspect
import json
import keyword
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from math import ceil, floor
from typing import Any, ClassVar, NamedTuple

from steerlens.activations.extraction import extract
from steerlens.activations.pairs import Sides
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.errors import SteerlensError
from steerlens.evaluation.default_strength import default_steering
from steerlens.files import demo_file, digest
from steerlens.learning.learning import default_layer
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.playground import recipes
from steerlens.playground.kept import Item, keep, kept, key_of
from steerlens.steering.condition_search import ConditionSearch, search_conditions
from steerlens.steering.conditions import Condition
from steerlens.steering.similarities import cosine
from steerlens.steering.steering import Steering
from steerlens.steering.thresholds import Candidate
from steerlens.vectors.vector import SteeringVector

MOST_UPLOADS = 8
FEWEST_LISTED, MOST_LISTED = 8, 500
"""Prompts of a list."""


class Cut(NamedTuple):
    """The layer that a condition reads, and the similarity above which it fires."""

    layer: int
    above: float


class Scale(NamedTuple):
    """The unit in which a vector's strength is given, and how far the page goes."""

    unit: str
    step: float
    most: float
    relative: bool = False


RELATIVE = Scale("as a fraction of the activation norm", 0.01, 1.5, relative=True)
LEARNED = Scale("times the vector as it was learned", 0.05, 5.0)
ABSOLUTE = Scale("times the vector", 0.1, 50.0)
"""All go far beyond what leaves text readable."""


def scale_of(vector: SteeringVector) -> Scale:
    """Relative if the vector knows its norms, but for a learned one, which has its own length."""
    if "objective" in vector.provenance:
        return LEARNED
    return ABSOLUTE if vector.norms is None else RELATIVE


class Offer(NamedTuple):
    """What the page has to know of a vector, made or not."""

    name: str
    about: str
    layers: tuple[int, ...]
    scale: Scale
    condition: bool

    @property
    def first_layers(self) -> tuple[int, int]:
        """The first and last layer steered at first: below the middle, where it often works."""
        return self.layers[len(self.layers) * 2 // 6], self.layers[len(self.layers) // 2]


@dataclass(frozen=True, eq=False)
class Entry:
    """A vector, and the Python that makes it."""

    name: str
    """A Python identifier, used by rules and scripts."""
    vector: SteeringVector
    code: str
    """A Python expression over `sl` and `model`."""
    about: str
    source: str = ""
    """The functions that `code` calls."""
    cut: Cut | None = None
    """The initial threshold of a condition on it; None: it is offered for steering only."""
    reach: float = 1.0
    """Thresholds are offered from −reach to reach."""
    scored: str = ""
    """How well the condition did on prompts that it was not chosen on, in words."""
    searched: Condition | None = None
    """A condition of a search or a plan of the command line; its threshold is fixed."""
    condition_code: str = ""
    """A Python expression over `sl` and `vectors` that gives it."""

    @property
    def tokens(self) -> str:
        """Which tokens of a prompt its condition reads: the user's words if the vector did."""
        return "user" if self.vector.provenance.get("tokens") == "user" else "last"

    @property
    def offer(self) -> Offer:
        """The entry as the page offers it."""
        scale, layers = scale_of(self.vector), self.vector.layers
        conditional = self.cut is not None or self.searched is not None
        return Offer(self.name, self.about, layers, scale, conditional)


Library = Mapping[str, Entry]


class Recipe(NamedTuple):
    """How an entry is made: by a function that the page shows."""

    about: str
    make: Callable[[Model], SteeringVector]
    files: tuple[str, ...]
    """The demo data that it reads."""
    layers: Callable[[int], Iterable[int]]
    """The layers of the vector, by the number of the model's."""
    scale: Scale = RELATIVE
    contrast: Callable[[str], ContrastiveDataset] | None = None
    """The labelled prompts of a part, for a condition; None: it is offered for steering only."""

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def source(self) -> str:
        """The source of its functions."""
        functions: list[Callable[..., Any]] = [self.make]
        functions = functions if self.contrast is None else [self.contrast, *functions]
        return "\n\n".join(inspect.getsource(function) for function in functions)

    def offer(self, n_layers: int) -> Offer:
        """The entry that it will make, as the page offers it."""
        layers = tuple(self.layers(n_layers))
        return Offer(self.name, self.about, layers, self.scale, self.contrast is not None)

    def code(self, model: Model) -> str:
        """The Python expression that makes the vector."""
        return f"{self.name}(model)"

    def entry(self, model: Model) -> Entry:
        """The entry that it makes."""
        return make_entry(model, self)

    def reads(self) -> list[str]:
        """What decides about the entry, beside the model."""
        return [self.source, *(digest(demo_file(file).read_bytes()) for file in self.files)]


def _early(n_layers: int) -> range:
    """The layers up to the first one steered: a condition is read before the stream is."""
    return range(n_layers // 3 + 1)


RECIPES = (
    Recipe("refusing against agreeing first sentences", recipes.refuse, ("refusal.json",), range),
    Recipe(
        "refusals learned by gradient (a minute or two, once)",
        recipes.refuse_learned,
        ("refusal.json",),
        lambda n_layers: [default_layer(n_layers)],
        LEARNED,
    ),
    Recipe("happy against sad sentences", recipes.cheerful, ("moods.json",), range),
    Recipe(
        "harmful against harmless prompts",
        recipes.harmful,
        ("harmful.json", "lookalikes.json"),
        _early,
        contrast=recipes.harmful_and_harmless,
    ),
    Recipe(
        "prompts that ask for legal advice against others",
        recipes.legal,
        ("topics.json",),
        _early,
        contrast=recipes.legal_and_other,
    ),
)


@dataclass(frozen=True)
class Lists:
    """A condition from two lists of prompts: it learns from every other one, the rest decide."""

    name: str
    positive: tuple[str, ...]
    """Prompts on which it should fire."""
    negative: tuple[str, ...]

    about: ClassVar[str] = "from two lists of prompts"
    source: ClassVar[str] = ""

    @classmethod
    def of(cls, called: str, positive: str, negative: str, taken: Collection[str]) -> "Lists":
        """The lists of two texts with one prompt a line.

        Raises:
            SteerlensError: if the lists are too short or too long, or differ in length.
        """
        lists = [
            tuple(line.strip() for line in text.splitlines() if line.strip())
            for text in (positive, negative)
        ]
        sizes = [len(one) for one in lists]
        if sizes[0] != sizes[1] or not FEWEST_LISTED <= sizes[0] <= MOST_LISTED:
            raise SteerlensError(
                f"got {sizes[0]} prompts to fire on and {sizes[1]} others; expected as many of "
                f"each, {FEWEST_LISTED} to {MOST_LISTED}, one a line"
            )
        return cls(free_name(called, taken), *lists)

    def offer(self, n_layers: int) -> Offer:
        """The entry that it will make, as the page offers it."""
        return Offer(self.name, self.about, tuple(_early(n_layers)), RELATIVE, True)

    def reads(self) -> list[str]:
        """What decides about the entry, beside the model."""
        return [*self.positive, "", *self.negative]

    def code(self, model: Model) -> str:
        """The Python expression that makes the vector."""
        sides = [list(side[::2]) for side in (self.positive, self.negative)]
        layers = _early(model.cfg.n_layers)
        return f'sl.extract(model, {(*sides,)!r}, tokens="user", layers={layers!r})'

    def entry(self, model: Model) -> Entry:
        """Extract the vector, and search its layer and threshold on the prompts kept aside."""
        layers = _early(model.cfg.n_layers)
        learned = (list(self.positive[::2]), list(self.negative[::2]))
        vector = extract(model, learned, tokens="user", layers=layers, progress=False)
        found = ContrastiveDataset.from_sides(self.positive, self.negative).lint()
        told = "".join(f"; beware: {one}" for one in found)
        entry = Entry(self.name, vector, self.code(model), self.about)
        aside = (list(self.positive[1::2]), list(self.negative[1::2]))
        return with_cut(model, entry, aside, None, told)


NONE: Mapping[str, Lists] = {}


class Shelf:
    """The vectors that all tabs share: recipes are followed when a vector is first asked for.

    What was made is kept on disk for the next start.

    Args:
        model: The model that they are for.
        recipes: How vectors can be made.
        entries: Vectors that are there already.
    """

    def __init__(
        self, model: Model, recipes: Iterable[Recipe] = (), entries: Iterable[Entry] = ()
    ) -> None:
        self.model = model
        self.recipes = {recipe.name: recipe for recipe in recipes}
        self.made = {entry.name: entry for entry in entries}
        self._origin = json.dumps(model_provenance(model), sort_keys=True)

    def offers(self, own: Library, lists: Mapping[str, Lists] = NONE) -> dict[str, Offer]:
        """Everything by name: what can be made, what is made, and a tab's own vectors and lists."""
        n_layers = self.model.cfg.n_layers
        recipes = {
            name: recipe.offer(n_layers)
            for some in (self.recipes, lists)
            for name, recipe in some.items()
        }
        made = {name: entry.offer for name, entry in {**self.made, **own}.items()}
        return {**{name: made[name] for name in made if name not in recipes}, **recipes, **made}

    def make(self, name: str) -> None:
        """Make the entry of a recipe, for all tabs."""
        self.made[name] = self.follow(self.recipes[name])

    def follow(self, recipe: Recipe | Lists) -> Entry:
        """The entry of a recipe: from the disk, or made now and kept there."""
        name, key = recipe.name, key_of(self._origin, *recipe.reads())
        item = kept(name, key)
        entry = None if item is None else _kept_entry(recipe, item, self.model)
        if entry is None:
            entry = recipe.entry(self.model)
            facts = {"cut": entry.cut, "reach": entry.reach, "scored": entry.scored}
            about = f"vector {name!r} for {self.model.cfg.model_name}"
            keep(name, key, Item(facts, entry.vector), about)
        return entry

    def strength_of(self, steering: Steering) -> float:
        """A strength that leaves text whole, rounded down to a step; kept on disk when found."""
        vector, scale = steering.vector, scale_of(steering.vector)
        content = vector.directions.float().numpy().tobytes()
        key = key_of(self._origin, digest(content), repr(steering), steering.edit.__name__)
        item = kept("strength", key)
        if item is not None and isinstance(item.facts.get("strength"), float):
            return item.facts["strength"]
        found, _ = default_steering(self.model, steering, progress=False)
        total = sum(found.strengths)  # of an addition: what its layers share
        strength = round(min(floor(total / scale.step + 1e-6) * scale.step, scale.most), 6)
        about = f"strength of {steering.name!r} for {self.model.cfg.model_name}"
        keep("strength", key, Item({"strength": float(strength)}), about)
        return strength


def _kept_entry(recipe: Recipe | Lists, item: Item, model: Model) -> Entry | None:
    """An entry from the disk; None if what it says is not what a recipe gives."""
    if item.vector is None:
        return None
    try:
        cut, reach, scored = (item.facts[name] for name in ("cut", "reach", "scored"))
        cut = None if cut is None else Cut(int(cut[0]), float(cut[1]))
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    entry = Entry(recipe.name, item.vector, recipe.code(model), recipe.about, recipe.source)
    return replace(entry, cut=cut, reach=float(reach), scored=str(scored))


def make_entry(model: Model, recipe: Recipe) -> Entry:
    """Extract a vector, and search its condition's layer and threshold if it has one."""
    vector = recipe.make(model)
    entry = Entry(recipe.name, vector, recipe.code(model), recipe.about, recipe.source)
    if recipe.contrast is None:
        return entry
    return with_cut(model, entry, recipe.contrast("validation"), recipe.contrast("test"))


def with_cut(
    model: Model, entry: Entry, data: Sides, held_out: Sides | None, told: str = ""
) -> Entry:
    """The entry with the layer and threshold at which its vector tells prompts apart best."""
    search = search_conditions(
        model,
        entry.vector,
        data,
        held_out=held_out,
        combine=1,
        tokens=entry.tokens,
        similarity=cosine,
        progress=False,
    )
    # The page offers "above" only: the best candidate of this side.
    best = next(candidate for candidate in search.candidates if candidate.side == "above")
    largest = max(abs(side).max() for side in search.chosen_on)
    reach = ceil(20 * largest) / 20
    cut = Cut(best.layers[0], round(best.threshold, 4))
    return replace(entry, cut=cut, reach=reach, scored=_scored(search, best) + told)


def _scored(search: ConditionSearch, chosen: Candidate) -> str:
    """How well a candidate does on the prompts held out, in words."""
    f1 = search.score(search.condition(chosen)).f1
    n_prompts = sum(map(len, search.scored_on))
    return f"F1 {f1.value:.2f} [{f1.low:.2f}, {f1.high:.2f}] on {n_prompts} held-out prompts"


def free_name(stem: str, taken: Collection[str]) -> str:
    """An identifier made of a file's name that no other entry has."""
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:30]
    if not name.isidentifier() or keyword.iskeyword(name):
        name = f"vector_{name}".strip("_")
    numbered = (f"{name}_{number}" for number in count(2))
    return next(free for free in chain([name], numbered) if free not in taken)
