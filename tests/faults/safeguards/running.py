"""Safeguards: /health answers, and the service keeps running."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "a hanging loop ends the process": Mutant(
        file="service/cycle/watchdog.py",
        old="                end()\n",
        new="",
        caught_by=test("tests/unit/test_watchdog.py", "stands_still"),
    ),
    "activity of other threads does not count as a heartbeat": Mutant(
        file="service/web/board.py",
        old="        self._change(lambda now: replace(now, **changes))\n",
        new="        self.update(**changes)\n",
        caught_by=test("tests/unit/test_watchdog.py", "other_threads"),
    ),
    "a hanging loop is reported": Mutant(
        file="service/web/board.py",
        old="        if age > STALE_HEARTBEAT_SECONDS:",
        new="        if False:",
        caught_by=test("tests/unit/test_http.py", "stale"),
    ),
    "slow clients do not use up the connections": Mutant(
        file="service/web/http.py",
        old="            connection_limit=1000,\n",
        new="",
        caught_by=test("tests/unit/test_http.py", "half_open"),
    ),
    "an unavailable database gives an error answer, not a traceback": Mutant(
        file="service/web/http.py",
        old="    @app.errorhandler(DatabaseError)\n",
        new="",
        caught_by=test("tests/unit/test_http.py", "errors_are_json"),
    ),
    "changes require the token": Mutant(
        file="service/web/guard.py",
        old="    if not hmac.compare_digest(given",
        new="    if False and not hmac.compare_digest(given",
        caught_by=test("tests/unit/test_http.py", "need_the_token"),
    ),
    "a change from another site is refused": Mutant(
        file="service/web/guard.py",
        old="        return _foreign(public_name) or unauthorized(token)\n",
        new="        return unauthorized(token)\n",
        caught_by=test("tests/browser/test_api.py", "token_and_origin"),
    ),
    "a foreign name for this machine reads nothing": Mutant(
        file="service/web/guard.py",
        old="        if has_names and _is_guarded(request.path)",
        new="        if False and _is_guarded(request.path)",
        caught_by=test("tests/browser/test_api.py", "foreign_name"),
    ),
    "a text of a row needs the token": Mutant(
        file="service/web/api.py",
        old='        shows_text = "Authorization" in request.headers\n',
        new="        shows_text = True\n",
        caught_by=test("tests/browser/test_api.py", "given_only_with_the_token"),
    ),
    "readers leave threads for the probes": Mutant(
        file="service/web/views.py",
        old="READERS, QUEUE = 2, 3\n",
        new="READERS, QUEUE = 20, 30\n",
        caught_by=test("tests/browser/test_api.py", "leave_threads"),
    ),
    "a pipe in the place of a file holds no thread": Mutant(
        file="service/web/files.py",
        old="os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC",
        new="os.O_RDONLY | os.O_CLOEXEC",
        caught_by=test("tests/unit/test_page_parts.py", "holds_nobody_up"),
    ),
    "a paused stream claims nothing": Mutant(
        file="service/cycle/daemon.py",
        old="        if self._holding.asked() is not None:\n            return State.ON_HOLD\n",
        new="",
        caught_by=test("tests/postgres/test_holds.py", "claims_nothing"),
    ),
    "a stopped run waits over a restart": Mutant(
        file="service/cycle/daemon.py",
        old="        if self._holding.stops_training() and run.state",
        new="        if False and run.state",
        caught_by=test("tests/postgres/test_holds.py", "stop_and_save"),
    ),
    "troubles of several threads do not overwrite each other": Mutant(
        file="service/web/board.py",
        old="        with self._lock:\n",
        new="        if True:\n",
        caught_by=test("tests/serving/test_serving.py", "do_not_overwrite"),
    ),
    "an unwritable log does not end the service": Mutant(
        file="service/logs.py",
        old="        if not self._reported:\n",
        new="        raise\n        if not self._reported:\n",
        caught_by=test("tests/unit/test_service_parts.py", "full_disk"),
    ),
    "no claim starts when the disk may be too small": Mutant(
        file="service/cycle/upkeep.py",
        old="        if free < needed:",
        new="        if False:",
        caught_by=test("tests/postgres/test_claim_run.py", "without_disk_space"),
    ),
    "an error pauses the service and does not end it": Mutant(
        file="service/cycle/daemon.py",
        old="            except (DatabaseError, RunDirectoryError, OSError) as error:",
        new="            except ZeroDivisionError as error:",
        caught_by=test("tests/postgres/test_claim_run.py", "standby_service_pauses"),
    ),
    "the reason for a pause is on the board": Mutant(
        file="service/cycle/pausing.py",
        old="        self._board.trouble(cause, reason)\n",
        new="",
        caught_by=test("tests/postgres/test_claim_run.py", "standby_service_pauses"),
    ),
    "a pointer that cannot be updated is reported on the board": Mutant(
        file="service/cycle/upkeep.py",
        old='            self.board.trouble("pointer", f"{self.home.pointer(self.stream)} '
        'cannot be updated: {error}")\n',
        new="",
        caught_by=test("tests/postgres/test_claim_run.py", "pointer_that_cannot"),
    ),
    "the trainer sees no database and no token": Mutant(
        file="service/cycle/launch.py",
        old="if name in PASSED_ON and value}",
        new="if value}",
        caught_by=test("tests/unit/test_service_parts.py", "allow_list"),
    ),
}
