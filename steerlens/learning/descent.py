"""Steps of Adam, checks on held-out prompts, and what is kept of them on the disk."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.files import write_atomically
from steerlens.learning.losses import Directions, loss_and_gain, loss_and_gradient
from steerlens.learning.objectives import Objective
from steerlens.learning.passes import Passes
from steerlens.learning.replies import ReplyPair
from steerlens.learning.training import Training
from steerlens.models.progress import progress_bar


class Check(NamedTuple):
    """The vector on held-out prompts, after so many steps."""

    step: int
    loss: float
    gain: float
    """How much likelier than unsteered the wanted replies are, in nats per token."""


@dataclass
class Descent:
    """How far the learning of one vector has come."""

    rows: list[Tensor]
    """The directions, each a parameter of its own: they take steps of different lengths."""
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    best: Directions | None = None
    interrupted: bool = False

    @classmethod
    def begin(cls, start: Directions, norms: Float[Tensor, " layer"], rate: float) -> "Descent":
        """Before the first step."""
        rows = [row.clone() for row in start]
        groups = [
            {"params": [row], "lr": rate * float(norm) / len(row) ** 0.5}
            for row, norm in zip(rows, norms, strict=True)
        ]
        return cls(rows, torch.optim.Adam(groups))

    @property
    def directions(self) -> Directions:
        """As they are now."""
        return torch.stack(self.rows)

    @property
    def found(self) -> Directions:
        """The best of all checks, or what there is."""
        return (self.directions if self.best is None else self.best).cpu()

    def step(self, gradient: Directions, weight_decay: float, longest: Tensor | None) -> None:
        """Down the gradient, and back within the longest length of each direction."""
        for row, own in zip(self.rows, gradient, strict=True):
            row.mul_(1 - weight_decay)
            row.grad = own
        self.optimizer.step()
        if longest is not None:
            for row, length in zip(self.rows, longest.tolist(), strict=True):
                row.mul_(length / row.norm().clamp_min(length))

    def gives_up(self, patience: int | None) -> bool:
        """Whether so many checks have brought nothing better."""
        if patience is None or not self.checks:
            return False
        losses = [check.loss for check in self.checks]
        return len(losses) - 1 - losses.index(min(losses)) >= patience

    def shown(self) -> dict[str, str]:
        """For the progress bar."""
        shown = {"loss": f"{self.losses[-1]:.3f}"} if self.losses else {}
        if self.checks:
            last = self.checks[-1]
            shown |= {"held out": f"{last.loss:.3f}", "gain": f"{last.gain:+.2f} nats/token"}
        return shown


class Keeper(NamedTuple):
    """Where a job that is not finished is kept, so that it goes on where it stopped."""

    path: Path
    job: str
    """Changes with whatever would lead elsewhere."""

    def save(self, descent: Descent) -> None:
        """All that the next steps depend on."""
        tensors = {"directions": descent.directions}
        if descent.best is not None:
            tensors["best"] = descent.best
        for index, row in enumerate(descent.rows):
            own = descent.optimizer.state[row]
            tensors |= {f"{name}.{index}": torch.as_tensor(value) for name, value in own.items()}
        story = {"job": self.job, "losses": descent.losses, "checks": descent.checks}
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"steerlens": json.dumps(story)}
        kept = save(content, metadata)  # not save_file, which raises no OSError on a full disk
        write_atomically(self.path, lambda path: path.write_bytes(kept))

    def resume(self, descent: Descent) -> None:
        """Take over what was kept, if anything was; refuse what belongs to another job."""
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, "pt") as file:
                story = json.loads(file.metadata()["steerlens"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            other = story["job"] != self.job
            kept = None if other else _Kept.of(story, tensors, descent)
        except (SafetensorError, LookupError, TypeError, ValueError, OSError) as error:
            raise SteerlensError(
                f"{str(self.path)!r} is not a kept state of learning ({error}); remove it"
            ) from error
        if kept is None:
            raise SteerlensError(
                f"{str(self.path)!r} keeps the state of another job (other data, model or "
                "settings); finish that one, choose another out=, or remove the file"
            )
        for row, own, state in zip(descent.rows, kept.directions, kept.states, strict=True):
            row.copy_(own)
            descent.optimizer.state[row] = {
                name: value.to(row.device if name != "step" else "cpu")
                for name, value in state.items()
            }
        descent.losses, descent.checks, descent.best = kept.losses, kept.checks, kept.best


class _Kept(NamedTuple):
    """What a file keeps of a descent, checked against one that begins."""

    directions: Directions
    states: list[dict[str, Tensor]]
    """Of the optimizer, for each layer."""
    losses: list[float]
    checks: list[Check]
    best: Directions | None

    @classmethod
    def of(cls, story: dict[str, Any], tensors: dict[str, Tensor], descent: Descent) -> "_Kept":
        """Check names, shapes and numbers."""
        shape = descent.directions.shape
        rows = range(len(descent.rows))
        states = [
            {name: tensors[f"{name}.{index}"] for name in ("step", "exp_avg", "exp_avg_sq")}
            for index in rows
        ]
        shapes = {"directions": shape, "best": shape}
        shapes |= {f"{name}.{index}": shape[1:] for index in rows for name in _MOMENTS}
        for name, tensor in tensors.items():
            if name in shapes and tensor.shape != shapes[name]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}")
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ValueError(f"{name} holds other than finite numbers")
        losses, checks = story["losses"], [Check(*check) for check in story["checks"]]
        numbers = [*losses, *chain.from_iterable(checks)]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("its losses are no numbers")
        return cls(tensors["directions"], states, losses, checks, tensors.get("best"))


_MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's moments, of the shape of the parameter."""


def first_directions(norms: Float[Tensor, " layer"], width: int, seed: int) -> Directions:
    """Where learning begins: a random direction of a thousandth of the stream's length."""
    generator = torch.Generator().manual_seed(seed)
    random_ones = torch.randn(len(norms), width, generator=generator)
    return random_ones / random_ones.norm(dim=1, keepdim=True) * norms[:, None] * 1e-3


def train(
    passes: Passes,
    objective: Objective,
    steps: Sequence[Sequence[ReplyPair]],
    held_out: Sequence[ReplyPair],
    norms: Float[Tensor, " layer"],
    training: Training,
    *,
    keeper: Keeper | None = None,
    progress: bool = True,
) -> Descent:
    """Steps of Adam on the mean loss of each step's prompts; Ctrl-C keeps the best so far."""
    start = first_directions(norms, passes.plan.vector.width, training.seed)
    descent = Descent.begin(start.to(passes.model.cfg.device), norms, training.learning_rate)
    if keeper is not None:
        keeper.resume(descent)
    longest = None if training.norm_budget is None else training.norm_budget * norms
    drawn = random.Random(training.seed)
    numbers = [drawn.random() for _ in steps]
    done = len(descent.losses)
    with progress_bar(len(steps), "step", progress, what="learning", done=done) as bar:
        try:
            for index in range(done, len(steps)):
                if descent.gives_up(training.patience):
                    break
                loss, gradient = loss_and_gradient(
                    passes, objective, steps[index], descent.directions, training, numbers[index]
                )
                descent.step(gradient, training.weight_decay, longest)
                descent.losses.append(loss)
                if index + 1 == len(steps) or (index + 1) % training.check_every == 0:
                    _check(descent, passes, objective, held_out, training)
                    if keeper is not None:
                        keeper.save(descent)
                bar.set_postfix(descent.shown(), refresh=False)
                bar.update()
        except KeyboardInterrupt:
            if not descent.losses:
                raise
            descent.interrupted = True
    return descent


def _check(
    descent: Descent,
    passes: Passes,
    objective: Objective,
    held_out: Sequence[ReplyPair],
    training: Training,
) -> None:
    """Note how the vector does on held-out prompts, and keep it if it is the best."""
    if not held_out:
        return
    now = descent.directions
    loss, gained = loss_and_gain(passes, objective, held_out, now, training)
    if all(loss < check.loss for check in descent.checks):
        descent.best = now
    descent.checks.append(Check(len(descent.losses), loss, gained))
