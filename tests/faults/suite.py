"""All rows of the fault suite, by number."""

import http_load
import kills
import leaders
import machine
import mutants
from rows import Row

ROWS: dict[int, Row] = {**http_load.ROWS, **kills.ROWS, **leaders.ROWS, **machine.ROWS, **mutants.ROWS}
