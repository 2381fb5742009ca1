"""The targets of alerts, through apprise. Nothing here shows an address: it contains passwords and tokens."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from service.alerts.alert import Alert, Severity
from service.errors import SettingsError

if TYPE_CHECKING:
    from apprise import Apprise

WITH_HOST = frozenset(
    {"http", "https", "json", "jsons", "xml", "xmls", "form", "forms", "gotify", "gotifys", "mailto", "mailtos"}
)
"""Schemes whose host is a host. Elsewhere a token may stand in its place, as in slack://token/…"""
WORTH_A_RETRY = frozenset({408, 425, 429})
"""Answers of the 4xx range that another try can change."""
TYPES: dict[Severity, str] = {"good": "success", "warning": "warning", "bad": "failure"}
"""What apprise calls each severity."""
SEND_SECONDS = 60.0
"""The longest time for one try. apprise limits only the silence between two bytes."""
TEST_SECONDS = 30.0
"""How long `doctor` and `alert-test` wait for all targets."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a target did not take an alert."""

    reason: str
    is_final: bool
    """Whether another try would end in the same way."""


class Target:
    """One address. Only one thread sends to it."""

    def __init__(self, name: str, service: Apprise) -> None:
        self.name = name
        """Scheme and host, without any secret."""
        self._service = service
        self._sending: threading.Thread | None = None

    def send(self, alert: Alert) -> Refusal | None:
        """Send an alert, and wait for the answer. Returns None if the target took it.

        A target that goes on answering for ever is left alone after SEND_SECONDS. It gets nothing until it has ended.
        """
        if self._sending is not None and self._sending.is_alive():
            return Refusal(reason="it has not ended its last answer yet", is_final=False)
        answers: list[Refusal | None] = []
        self._sending = threading.Thread(target=lambda: answers.append(self._ask(alert)), daemon=True)
        self._sending.start()
        self._sending.join(SEND_SECONDS)
        return (
            answers[0] if answers else Refusal(reason=f"no end of its answer in {SEND_SECONDS:.0f} s", is_final=False)
        )

    def _ask(self, alert: Alert) -> Refusal | None:
        try:
            result: Any = self._service.notify(
                body=alert.text, title=alert.title, notify_type=TYPES[alert.severity], body_format="text"
            )
        except Exception as error:  # noqa: BLE001  a plugin's bug must not end the alerts. Its text may hold a secret
            return Refusal(reason=f"the plugin failed ({type(error).__name__})", is_final=True)
        return None if result else _refusal(result)


def open_targets(addresses: tuple[str, ...]) -> list[Target]:
    """Open every address. Nothing is sent yet.

    Raises:
        SettingsError: apprise does not know an address, or something is missing in it. Lists all of them.
    """
    if not addresses:
        return []
    _silence()
    from apprise import Apprise, AppriseAsset  # only for who has alerts: it takes 0.2 s

    # No plugins and no configuration from disk. No threads of its own: a hanging target would hold up the end.
    asset = AppriseAsset(
        app_id="CodeLupe",
        app_desc="CodeLupe",
        app_url="",
        plugin_paths=[],
        storage_mode="memory",
        async_mode=False,
        service_timeout=0,
        secure_logging=True,
        allow_templates=False,
        http_redirects=False,  # another host would get the message, or a login page would count as an answer
    )
    targets, problems = [], []
    for number, address in enumerate(addresses, 1):
        service = Apprise.instantiate(address, asset=asset)
        if service is None:
            problems.append(_problem(number, address))
            continue
        targets.append(Target(shown(address), Apprise(service, asset=asset)))
    if problems:
        raise SettingsError(problems)
    return targets


def shown(address: str) -> str:
    """Return scheme, host and port of an address, or the scheme alone if a token may stand in the host's place."""
    scheme = address.partition("://")[0].lower()
    if scheme not in WITH_HOST:
        return f"{scheme}://…"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        return f"{scheme}://…"
    return f"{scheme}://{host or '…'}" + (f":{port}" if port else "")


def try_all(targets: list[Target], alert: Alert) -> list[tuple[Target, Refusal | None]]:
    """Send an alert to all targets at once, each once, and wait for their answers."""
    answers: dict[int, Refusal | None] = {}

    def send(number: int) -> None:
        answers[number] = targets[number].send(alert)

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(len(targets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TEST_SECONDS)
    silent = Refusal(reason=f"no answer in {TEST_SECONDS:.0f} s", is_final=False)
    return [(target, answers.get(number, silent)) for number, target in enumerate(targets)]


def _problem(number: int, address: str) -> str:
    scheme = address.partition("://")[0].lower()
    from apprise.apprise import N_MGR  # its plugins by scheme

    if scheme in N_MGR:
        why = f"apprise knows {scheme}://, but a part of the address is missing or wrong"
    elif scheme in ("http", "https"):
        why = f"for a plain webhook, write json{scheme.removeprefix('http')}:// instead of {scheme}://"
    else:
        why = f"apprise has no service {scheme}://"
    return f"ALERT_URLS: the address number {number} ({scheme}://…) is not allowed: {why}. See docs/monitoring.md"


def _silence() -> None:
    """Keep apprise's and urllib3's own messages out of our log. They may contain parts of addresses."""
    logger = logging.getLogger("apprise")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("requests").setLevel(logging.ERROR)


def _refusal(result: Any) -> Refusal:
    """Say why a delivery failed. Only the status of the answer is taken from apprise's own words."""
    said = " ".join(
        entry.message for one in result for attempt in one for entry in attempt.logs
    )  # results by service, and by try
    if found := re.search(r"error=(\d{3})\b", said):
        status = int(found.group(1))
        return Refusal(
            reason=f"it answered with the status {status}",
            is_final=300 <= status < 500 and status not in WORTH_A_RETRY,
        )
    return Refusal(reason="it could not be reached, or did not answer", is_final=False)
