"""Results → Plotly figures, each named after what it shows.

No figure runs a model or writes a file: call `.show()` or `.write_html(path)` on what is returned.
Conditions: `similarities_by_layer`, `threshold_sweep`, `condition_report`, `gate_timeline`,
`topic_confusion`.
Vectors: `vector_cosines`, `cosine_matrix`, `explained_variance`, `logit_lens`, `writers`,
`token_scan`, `token_text`, `principal_scatter`, `singular_spectrum`, `learning_curve` (of a
learned one). Effects, from results or tidy tables: `layer_strength` (sweep), `dose_response`
(evaluation, sweep), `pareto` (evaluation, sweep, suggestion), `rates` (evaluation),
`method_comparison` (comparison), `calibration`, `sentiment`, `saturation`. Conversations: `drift`.
Where colours show a sign, orange is positive and blue is negative.
"""

from steerlens.dashboards.comparisons import rates, saturation, sentiment
from steerlens.dashboards.conditions import (
    condition_report,
    gate_timeline,
    similarities_by_layer,
    threshold_sweep,
    topic_confusion,
)
from steerlens.dashboards.conversations import drift
from steerlens.dashboards.effects import dose_response, layer_strength
from steerlens.dashboards.learning import learning_curve, method_comparison
from steerlens.dashboards.theme import DARK, TEMPLATE, dark
from steerlens.dashboards.tokens import logit_lens, token_scan, token_text
from steerlens.dashboards.tradeoffs import calibration, pareto
from steerlens.dashboards.vectors import (
    cosine_matrix,
    explained_variance,
    principal_scatter,
    singular_spectrum,
    vector_cosines,
    writers,
)

__all__ = [
    "DARK",
    "TEMPLATE",
    "calibration",
    "condition_report",
    "cosine_matrix",
    "dark",
    "dose_response",
    "drift",
    "explained_variance",
    "gate_timeline",
    "layer_strength",
    "learning_curve",
    "logit_lens",
    "method_comparison",
    "pareto",
    "principal_scatter",
    "rates",
    "saturation",
    "sentiment",
    "similarities_by_layer",
    "singular_spectrum",
    "threshold_sweep",
    "token_scan",
    "token_text",
    "topic_confusion",
    "vector_cosines",
    "writers",
]
