"""The vectors of a playground: those that are ready, and those made when first asked for."""

import threading
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.playground.jobs import Job, JobQueue
from steerlens.playground.kept_entries import keep, kept_entry
from steerlens.playground.library import RECIPES, STEP, Entry, Recipe, first_strength, making
from steerlens.playground.request import STRONGEST


class Shelf(Mapping[str, Entry]):
    """The entries that are ready, by name; others are made by the queue, and kept on disk.

    Args:
        model: The model that the vectors are for.
        queue: Makes them, in turn with the pages' prompts.
        recipes: What can be made.
        ready: Entries that need not be made.
    """

    def __init__(
        self,
        model: Model,
        queue: JobQueue,
        recipes: Sequence[Recipe] = RECIPES,
        ready: Mapping[str, Entry] | None = None,
    ) -> None:
        self.model, self.queue = model, queue
        self._recipes = {recipe.name: recipe for recipe in recipes}
        self._ready = dict(ready or {})
        self._jobs: dict[str, Job[str]] = {}
        self._strengths: WeakKeyDictionary[Entry, float] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Entry:
        return self._ready[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._ready))

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def pending(self) -> dict[str, Recipe]:
        """What is not made yet."""
        return {name: one for name, one in self._recipes.items() if name not in self._ready}

    @property
    def busy(self) -> bool:
        """Whether anything is being made."""
        return any(not job.ended for job in tuple(self._jobs.values()))

    @property
    def news(self) -> str:
        """What is being made, and what failed, in words."""
        words = []
        for name, job in tuple(self._jobs.items()):
            if job.error:
                words.append(f"{name} could not be made: {job.error}")
            elif not job.ended:
                words.append(f"{job.latest or f'{name} is waiting for its turn'} …")
        return " ".join(words)

    def ask(self, name: str) -> None:
        """Make a pending entry, unless that is under way."""
        if name in self.pending:
            self._submit(name, self.making(name))

    def strength_of(self, entry: Entry) -> float | None:
        """The strength that a page begins with; None: it is being calibrated."""
        found = self._strengths.get(entry, entry.strength)
        if found is None:
            self._submit(entry.name, self.calibrating(entry))
        return found

    def making(self, name: str) -> Generator[str, None, None]:
        """Make a pending entry; yields what is done next, in words."""
        recipe = self._recipes[name]
        yield f"Looking for {name} on the disk"
        entry = kept_entry(self.model, recipe)
        if entry is None:
            entry = yield from making(self.model, recipe)
            self._keep(entry)
        self._ready[name] = entry

    def calibrating(self, entry: Entry) -> Generator[str, None, None]:
        """Find the strength of an entry; yields what is done next, in words."""
        yield f"Calibrating the strength of {entry.name}"
        step, most = STEP[entry.relative], STRONGEST[entry.relative]
        strength = first_strength(self.model, entry, step, most)
        self._strengths[entry] = strength
        if self._ready.get(entry.name) is entry:
            self._keep(replace(entry, strength=strength))

    def _submit(self, name: str, steps: Generator[str, None, None]) -> None:
        with self._lock:
            job = self._jobs.get(name)
            if job is None or job.ended:
                self._jobs[name] = job = Job(lambda: steps)
                self.queue.submit(job)

    def _keep(self, entry: Entry) -> None:
        recipe = self._recipes.get(entry.name)
        try:
            if recipe is not None:
                keep(self.model, recipe, entry)
        except SteerlensError as error:
            warnings.warn(f"{entry.name} is made anew at every start: {error}", stacklevel=2)
