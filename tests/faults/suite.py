"""All rows of the fault suite, by number."""

import damage
import disk
import fitting_faults
import kills
import leaders
import machine
import malformed
from rows import Row

ROWS: dict[int, Row] = {
    **kills.ROWS,
    **leaders.ROWS,
    **machine.ROWS,
    **fitting_faults.ROWS,
    **damage.ROWS,
    **disk.ROWS,
    **malformed.ROWS,
}
