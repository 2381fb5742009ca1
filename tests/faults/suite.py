"""All rows of the fault suite, by number."""

import database_faults
import kills
from rows import Row

ROWS: dict[int, Row] = {**kills.ROWS, **database_faults.ROWS}
