"""What the database can answer with. A message says what happened and what to do, and holds no password."""

from __future__ import annotations


class DatabaseError(Exception):
    """Base of every error of this folder."""


class Unavailable(DatabaseError):
    """The server is down, the connection was lost or the pool stayed full: try again later."""


class Misconfigured(DatabaseError):
    """A password, database, table, column or migration is not what it has to be: waiting does not help."""


class EmbeddedDatabaseError(DatabaseError):
    """The embedded Postgres cannot be started or stopped."""


class LeaseLost(DatabaseError):
    """Another holder has the stream now, or the lease has expired: stop writing."""


class StreamMismatch(DatabaseError):
    """The stream is bound to something else; `problems` lists every difference."""

    def __init__(self, stream: str, problems: list[str]) -> None:
        self.problems = problems
        listed = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(
            f"the stream {stream} cannot continue with this recipe; choose a new stream name, with CODELUPE_STREAM or "
            f"as `stream` in the recipe:\n{listed}"
        )


class SettlementMismatch(DatabaseError):
    """The outcomes do not match the rows of the run; `problems` lists how."""

    def __init__(self, run_id: int, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"the outcomes do not match the rows of run {run_id}: " + "; ".join(problems))


class BadTransition(DatabaseError):
    """The run is in a state from which the requested one cannot be reached."""


class RowsRevoked(DatabaseError):
    """Rows of the run were revoked while it was on."""


class ParentMoved(DatabaseError):
    """The adapter that the run started from is no longer current."""
