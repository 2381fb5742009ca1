"""The command line `codelupe`. Results go to stdout, logs to stderr. Exit: 0 ok, 1 failed, 2 usage, 3 precondition."""

from __future__ import annotations

import sys

import typer

from db.errors import DatabaseError
from service import stdio
from service.cli import (
    adapters,
    compare,
    data,
    evaluate,
    experiment,
    exporting,
    ledger,
    machine,
    migrate,
    pause,
    power,
    range_test,
    report,
    reward,
    runs,
    service,
    sweep,
    train,
    wandb_sync,
)  # fmt: skip
from service.errors import PreconditionError, ServiceError
from service.visible import visible

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

COMMANDS = (
    service.up,
    service.stop,
    pause.pause,
    pause.resume,
    data.drop,
    train.train,
    sweep.sweep,
    range_test.range_test,
    experiment.experiment,
    service.status,
    runs.runs,
    runs.replay,
    report.report,
    evaluate.evaluate,
    reward.reward,
    power.power,
    compare.compare,
    exporting.merge,
    exporting.export,
    adapters.adapters,
    adapters.rollback,
    adapters.connect,
    machine.plan,
    machine.doctor,
    wandb_sync.wandb_sync,
    machine.alert_test,
    migrate.migrate,
    data.samples,
    ledger.audit,
    ledger.lineage,
    ledger.revoke,
    adapters.gc,
)
"""In the order of `codelupe --help`. Each command has the name of its function."""

for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run a command. Print a known error as one message, and exit with its code."""
    stdio.prepare()
    try:
        app()
    except ServiceError as error:
        print(f"codelupe: {visible(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except DatabaseError as error:
        print(f"codelupe: {visible(str(error))}", file=sys.stderr)
        sys.exit(PreconditionError.exit_code)
    except OSError as error:  # a full disk, a missing permission or a name that is too long, wherever it occurs
        if sys.argv[1:2] == ["up"]:  # a service runs for months: its log needs the traceback
            raise
        print(f"codelupe: {visible(str(error)[:500])}", file=sys.stderr)
        sys.exit(PreconditionError.exit_code)
