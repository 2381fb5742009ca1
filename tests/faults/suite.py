"""All rows of the fault suite, by number."""

import kills
from rows import Row

ROWS: dict[int, Row] = {**kills.ROWS}
