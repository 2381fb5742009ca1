"""All rows of the fault suite, by number."""

import database_faults
import kills
import producers
from rows import Row

ROWS: dict[int, Row] = {**kills.ROWS, **producers.ROWS, **database_faults.ROWS}
