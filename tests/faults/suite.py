"""The rows of the fault suite, by number."""

import announced
import columns
import control_tokens
import damage
import database_faults
import disk
import fitting_faults
import http_load
import killed_nodes
import killed_ranks
import kills
import leaders
import machine
import malformed
import mutants
import neighbours
import producers
import reused_ids
import shared_source
import soak
import wrong_settings
from rows import Row

MODULES = (
    kills,
    producers,
    reused_ids,
    database_faults,
    leaders,
    disk,
    damage,
    fitting_faults,
    malformed,
    control_tokens,
    http_load,
    machine,
    soak,
    wrong_settings,
    columns,
    announced,
    neighbours,
    shared_source,
    killed_ranks,
    killed_nodes,
    mutants,
)
ROWS: dict[int, Row] = {number: row for module in MODULES for number, row in module.ROWS.items()}
