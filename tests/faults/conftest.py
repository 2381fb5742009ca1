"""The suite's own modules, for tests that are started from anywhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
