"""All rows of the fault suite, by number."""

import control_tokens
import damage
import disk
import fitting_faults
import kills
import leaders
import machine
import malformed
from rows import Row

MODULES = (kills, leaders, machine, damage, disk, fitting_faults, malformed, control_tokens)
ROWS: dict[int, Row] = {number: row for module in MODULES for number, row in module.ROWS.items()}
