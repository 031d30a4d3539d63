"""How the playground's vectors are made: these functions are run, and their source is shown.

Each can be pasted below `import steerlens as sl`.
"""

from typing import TYPE_CHECKING

import steerlens as sl

if TYPE_CHECKING:
    from steerlens.models.host import Model


def refuse(model: "Model") -> sl.SteeringVector:
    """Refusing against complying first sentences; a few are enough for a start."""
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json")).validation
    few = sl.ContrastiveDataset(refusals.pairs[:8], suffixes=refusals.suffixes, name="refusal")
    return sl.extract(model, few, tokens="suffix")


def refuse_learned(model: "Model") -> sl.SteeringVector:
    """Learned by gradient from refusals in whole sentences: a small pretrained model obeys it."""
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json"))
    return sl.learn(model, refusals.train)


def cheerful(model: "Model") -> sl.SteeringVector:
    """Happy against sad sentences."""
    moods = sl.ContrastiveDataset.load(sl.demo_file("moods.json"))
    return sl.extract(model, moods.train, sl.estimators.mean_difference, tokens="all")


def harmful_and_harmless(part: str) -> sl.ContrastiveDataset:
    """Harmful prompts, each with a harmless one of much its length."""
    files = ("harmful.json", "lookalikes.json")
    data = [sl.ContrastiveDataset.load(sl.demo_file(file)).part(part) for file in files]
    pairs = [pair for one in data for pair in one.pairs]
    even = [(a, b) for a, b in pairs if abs(len(str(a).split()) - len(str(b).split())) <= 2]
    return sl.ContrastiveDataset(even, name="harmful")


def harmful(model: "Model") -> sl.SteeringVector:
    """Harmful against harmless, in the first third of the model: before the steered layers."""
    early = range(model.cfg.n_layers // 3 + 1)
    return sl.extract(model, harmful_and_harmless("train"), tokens="user", layers=early)


def legal_and_other(part: str) -> sl.ContrastiveDataset:
    """Prompts that ask for legal advice, and as many others, of each other topic in turn."""
    topics = sl.load_prompts(sl.demo_file("topics.json"))[part]
    others = [prompts for name, prompts in topics.items() if name != "legal"]
    rest = [others[row % len(others)][row] for row in range(len(topics["legal"]))]
    return sl.ContrastiveDataset.from_sides(topics["legal"], rest, name="legal")


def legal(model: "Model") -> sl.SteeringVector:
    """Legal against other requests, in the first third of the model: before the steered layers."""
    early = range(model.cfg.n_layers // 3 + 1)
    return sl.extract(model, legal_and_other("train"), tokens="user", layers=early)
