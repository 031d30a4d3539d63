"""Where things lie: the repository, its reference numbers, and what lies outside it."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORACLES = ROOT / "tests" / "oracles" / "data"
SHARED = Path(os.environ.get("STEERLENS_SHARED", ROOT.parent / "shared"))
