"""How the playground's vectors are made: these functions are run, and their source is shown.

Each can be pasted below `import steerlens as sl`.
"""

from typing import TYPE_CHECKING

import steerlens as sl

if TYPE_CHECKING:
    from steerlens.models.host import Model


def refuse(model: "Model") -> sl.SteeringVector:
    """Refusing against complying first sentences; the smaller part is enough for a start."""
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json"))
    return sl.extract(model, refusals.validation, tokens="suffix")


def refuse_learned(model: "Model") -> sl.SteeringVector:
    """Learned from questions and whole refusals: what makes a pretrained model refuse."""
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json"))
    return sl.learn(model, refusals.train)


def cheerful(model: "Model") -> sl.SteeringVector:
    """Happy against sad sentences."""
    moods = sl.ContrastiveDataset.load(sl.demo_file("moods.json"))
    return sl.extract(model, moods.train, sl.estimators.mean_difference, tokens="all")


def harmful_and_harmless(part: str) -> sl.ContrastiveDataset:
    """Harmful prompts, and harmless ones that look like them."""
    return sl.ContrastiveDataset.load(sl.demo_file("harmful.json")).part(part)


def harmful(model: "Model") -> sl.SteeringVector:
    """Harmful against harmless, in the first third of the model: before the steered layers."""
    early = range(model.cfg.n_layers // 3 + 1)
    discriminant = sl.estimators.linear_discriminant
    return sl.extract(
        model, harmful_and_harmless("train"), discriminant, tokens="last", layers=early
    )


def legal_and_other(part: str) -> sl.ContrastiveDataset:
    """Prompts that ask for legal advice, each with one of another topic, in turn."""
    topics = sl.load_prompts(sl.demo_file("topics.json"))[part]
    others = [prompts for topic, prompts in topics.items() if topic != "legal"]
    rows = enumerate(topics["legal"])
    pairs = [(prompt, others[row % len(others)][row]) for row, prompt in rows]
    return sl.ContrastiveDataset(pairs, name=f"legal/{part}")


def legal(model: "Model") -> sl.SteeringVector:
    """Legal against other requests, in the first third of the model: before the steered layers."""
    early = range(model.cfg.n_layers // 3 + 1)
    discriminant = sl.estimators.linear_discriminant
    return sl.extract(model, legal_and_other("train"), discriminant, tokens="last", layers=early)
