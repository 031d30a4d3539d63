"""Activation steering and conditional activation steering on TransformerLens.

prompts → vector → condition → steering → replies → effect → report

Other names are in their folders: `from steerlens.export import edited_biases`.
"""

from typing import Any

import lazy_loader

# Names are imported at first use: `import steerlens` loads neither torch nor TransformerLens.
# `__init__.pyi` lists where each one comes from.
_attribute, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes as long to import as all the rest

        return version("steerlens")
    return _attribute(name)


__all__ = [  # noqa: RUF022 - the order of the work
    "load_model",
    "ContrastiveDataset",
    "load_prompts",
    "demo_file",
    "extract",
    "learn",
    "Training",
    "SteeringVector",
    "search_conditions",
    "extract_topics",
    "Condition",
    "projections",
    "Steering",
    "steering_hooks",
    "apply_rules",
    "save_plan",
    "load_plan",
    "generate",
    "stream",
    "Chat",
    "Sampling",
    "Replies",
    "evaluate",
    "calibrate_strength",
    "suggest",
    "sweep",
    "export_model",
    "Ray",
    "SteerlensError",
    "estimators",
    "objectives",
    "hooks",
    "similarities",
    "soft_gates",
    "places",
    "schedules",
    "judges",
    "interpret",
    "dashboards",
    "studies",
]
