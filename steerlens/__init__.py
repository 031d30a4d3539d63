"""Activation steering and conditional activation steering on TransformerLens.

prompts → vector → condition → steering → replies → effect → report

What is not named here is in its folder: `from steerlens.export import edited_biases`.
"""

from typing import Any

import lazy_loader

# Names are imported at first use: `import steerlens` loads neither torch nor TransformerLens.
# Where each one comes from stands in `__init__.pyi`.
_attribute, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # as long to import as all the rest

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
    "Condition",
    "Steering",
    "steering_hooks",
    "apply_rules",
    "generate",
    "stream",
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
    "judges",
    "interpret",
    "dashboards",
    "studies",
]
