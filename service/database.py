"""Connects to the configured database, or to the embedded one below CODELUPE_HOME."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from db import embedded, migrate, rights
from db.errors import DatabaseError, Misconfigured, Unavailable
from db.pool import Pool
from db.retry import retried
from db.source import Source, check_source
from db.urls import safe_url
from service.errors import PreconditionError
from service.logs import event as log
from service.settings.home import Home, running_service
from service.settings.load import Settings

START_WAIT_SECONDS = 60.0
POOLER_TRIES = 3
"""How often a busy connection pooler is asked for a second connection. Each try takes five seconds."""


def open_pool(settings: Settings, url: str) -> Pool:
    """Make a pool with the settings' limits. It connects on first use."""
    return Pool(
        url,
        min_connections=settings.db_pool_min_conn,
        max_connections=settings.db_pool_max_conn,
        application_name=f"codelupe:{os.getpid()}",
    )


def get_ready(pool: Pool, settings: Settings, *, wait_seconds: float = START_WAIT_SECONDS) -> list[str]:
    """Wait for the database, migrate it and check the source table. Returns the applied migrations.

    Raises:
        PreconditionError: it does not answer, or is not what the settings say.
    """
    try:
        applied = retried(lambda: migrate.apply(pool, settings.source), give_up_seconds=wait_seconds)
        _check_phases(check_source(pool, settings.source), settings)
    except Unavailable as error:
        raise PreconditionError(
            f"the database does not answer ({error}). Check DATABASE_URL or POSTGRES_HOST, and that Postgres is running"
        ) from error
    except Misconfigured as error:
        raise PreconditionError(str(error)) from error
    return applied


def _check_phases(source: Source, settings: Settings) -> None:
    if settings.recipe.phases and source.absent and "phase" in source.absent:
        raise PreconditionError(
            f"the recipe {settings.recipe.name} has phases ({', '.join(settings.recipe.phase_names)}), but "
            f"{source.table} has no column {source.column('phase')}. Add it, or name another one: "
            "SOURCE_COLUMNS=phase=NAME"
        )


def check_pooler(pool: Pool) -> None:
    """Behind a connection pooler, say what is different, and check that a claim gets the two connections it needs.

    Raises:
        PreconditionError: the pooler has only one for this role.
    """
    if not pool.is_pooled():
        return
    log("Connection pooler", notices="no LISTEN: new files are noticed at each poll, every CHECK_INTERVAL seconds")
    if not any(pool.serves_two() for _ in range(POOLER_TRIES)):
        raise PreconditionError(
            "the connection pooler in front of the database runs only one transaction of this role at a time, or all "
            "its connections are in use. A claim needs two. Set its pool size to at least 2 (pgbouncer: pool_size)"
        )


def check_may_insert(pool: Pool, settings: Settings) -> None:
    """Check the right to insert into the source.

    Raises:
        PreconditionError: the role may not. The message has the GRANT statement.
    """
    with pool.transaction(read_only=True) as cursor:
        role = rights.current_role(cursor)
        missing = [right.statement for right in rights.missing(cursor, role, settings.source)]
    if missing:
        raise PreconditionError(
            f"the role {role} may not insert into {settings.source.table}. "
            f"Its owner gives the right: {'; '.join(missing)}"
        )


@contextmanager
def database(settings: Settings, *, migrated: bool = True) -> Iterator[Pool]:
    """Yield a pool for one command. Start the embedded database if it is not running, and stop it afterwards.

    Raises:
        PreconditionError: it does not answer, or is not what the settings say.
    """
    home = Home(settings.home)
    url, started = settings.database_url, False
    if url is None:
        url = embedded.running_url(home.postgres)
        if url is None:
            home.prepare()
            try:
                url, started = embedded.start(home.postgres), True
            except DatabaseError as error:
                raise PreconditionError(str(error)) from error
    pool = open_pool(settings, url)
    try:
        if migrated:
            get_ready(pool, settings, wait_seconds=10.0)
        yield pool
    finally:
        pool.close()
        if started and running_service(home) is None:  # leave it to a service that started meanwhile
            embedded.stop(home.postgres)


def shown_url(url: str) -> str:
    """Return the URL without its password."""
    return safe_url(url)
