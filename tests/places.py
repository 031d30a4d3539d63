"""Where things lie: the repository, and the material shared with other projects."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("STEERLENS_SHARED", ROOT.parent / "shared"))
