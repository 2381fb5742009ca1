"""All rows of the fault suite, by number."""

import database_faults
import http_load
import kills
import leaders
import machine
import producers
from rows import Row

ROWS: dict[int, Row] = {
    **http_load.ROWS,
    **kills.ROWS,
    **leaders.ROWS,
    **machine.ROWS,
    **producers.ROWS,
    **database_faults.ROWS,
}
