"""All rows of the fault suite, by number."""

import database_faults
import http_load
import kills
import leaders
import machine
import mutants
import producers
from rows import Row

ROWS: dict[int, Row] = {
    **kills.ROWS,
    **producers.ROWS,
    **database_faults.ROWS,
    **leaders.ROWS,
    **http_load.ROWS,
    **machine.ROWS,
    **mutants.ROWS,
}
