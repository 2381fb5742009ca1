"""Writes the metrics of service/web/metrics.py as JSON and in Prometheus' formats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.web.board import Board, Snapshot
from service.web.metrics import JUDGED, METRICS, Definition, Value


def json_metrics(snapshot: Snapshot) -> dict[str, Any]:
    """Return the JSON form: three sections for existing users, and all metrics below `metrics`."""
    totals = snapshot.totals
    ended = sum(totals.runs.get(outcome, 0) for outcome in JUDGED) if totals else 0
    last = totals.last_success_at if totals else None
    return {
        "state": {
            "last_trained_id": totals.last_trained_id if totals else None,
            "total_training_runs": ended,
            "total_samples_trained": totals.trained_rows if totals else 0,
            "last_training_time": last.isoformat() if last else None,
        },
        "training_metrics": {
            "eval_loss": snapshot.losses.get("eval"),
            "train_loss": snapshot.losses.get("train"),
        },
        "config": {
            "model": snapshot.model,
            "batch_size": snapshot.batch_size,
            "lora_r": snapshot.lora_rank,
        },
        "metrics": {definition.name: _json_value(definition, snapshot) for definition in METRICS},
    }


def _json_value(definition: Definition, snapshot: Snapshot) -> Any:
    readings = [(labels, value) for labels, value in definition.read(snapshot) if value is not None]
    if not definition.labels:
        return readings[0][1] if readings else None
    if len(definition.labels) == 1:
        return {labels[0]: value for labels, value in readings}
    if definition.name == "build_info":
        return [dict(zip(definition.labels, labels, strict=True)) for labels, _ in readings]
    nested: dict[str, dict[str, Value]] = {}
    for (first, second), value in readings:
        nested.setdefault(first, {})[second] = value
    return nested


class _SnapshotCollector(Collector):
    """Turns the definitions into Prometheus families at each scrape."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        snapshot = self._board.read()
        for definition in METRICS:
            cls = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
            family = cls(f"codelupe_{definition.name}", definition.help, labels=definition.labels)
            for labels, value in definition.read(snapshot):
                if value is not None:
                    family.add_metric(list(labels), float(value))
            yield family


def prometheus_metrics(board: Board, accept: str) -> tuple[bytes, str]:
    """Return the exposition in the format of the Accept header, and its Content-Type."""
    registry = CollectorRegistry()
    registry.register(_SnapshotCollector(board))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
