"""The errors of the database layer. A message says what happened and what to do. It never contains a password."""

from __future__ import annotations

import shlex


class DatabaseError(Exception):
    """Base of every error of this folder."""


class Unavailable(DatabaseError):
    """The server is down, the connection was lost, or no connection became free in time. Try again later."""


class Misconfigured(DatabaseError):
    """A password, database, table, column or migration is wrong. Trying again does not help."""


class MigrationNotAllowed(Misconfigured):
    """Migrations are outstanding, and the database's role may not apply them. `names` lists them."""

    def __init__(self, names: list[str], role: str, said: str) -> None:
        self.names, self.role = names, role
        super().__init__(
            f"the database needs migrations ({', '.join(names)}), but the role {role} may not apply them: {said}. "
            f"An administrator of the database applies them: codelupe migrate --role {shlex.quote(role)}, with "
            "DATABASE_URL set to the administrator's role"
        )


class EmbeddedDatabaseError(DatabaseError):
    """The embedded Postgres cannot be started or stopped."""


class LeaseLost(DatabaseError):
    """Another holder has the stream now, or the lease has expired. Stop writing."""


class StreamMismatch(DatabaseError):
    """The stream is bound to other values. `problems` lists every difference."""

    def __init__(self, stream: str, problems: list[str]) -> None:
        self.problems = problems
        listed = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(
            f"the stream {stream} cannot continue with this recipe. Undo the differences below, or choose a new stream "
            f"name, with CODELUPE_STREAM or as `stream` in the recipe:\n{listed}"
        )


class SettlementMismatch(DatabaseError):
    """The outcomes do not match the rows of the run. `problems` lists every mismatch."""

    def __init__(self, run_id: int, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"the outcomes do not match the rows of run {run_id}: " + "; ".join(problems))


class BadTransition(DatabaseError):
    """The run cannot change from its current state to the requested one."""


class RowsRevoked(DatabaseError):
    """Rows of the run were revoked after it was claimed."""


class ParentMoved(DatabaseError):
    """The adapter that the run continues from is no longer current."""
