"""The loaded host: everything that knows TransformerLens."""

from steerlens.models.engine import LOCAL, Engine, LocalEngine
from steerlens.models.host import Model, is_hooked, new_cache
from steerlens.models.loading import load_model, supported_hosts
from steerlens.models.ownership import exclusive
from steerlens.models.ray import Ray
from steerlens.models.sites import SITES
from steerlens.models.weight_layout import fast_layout, stock_layout

__all__ = [
    "LOCAL",
    "SITES",
    "Engine",
    "LocalEngine",
    "Model",
    "Ray",
    "exclusive",
    "fast_layout",
    "is_hooked",
    "load_model",
    "new_cache",
    "stock_layout",
    "supported_hosts",
]
