"""`python -m service.web.probe`: checks that the local service is alive. The image's health check."""

from __future__ import annotations

import ipaddress
import os
import sys
import urllib.request
from urllib.error import HTTPError

TIMEOUT_SECONDS = 4.0


def address(host: str) -> str:
    """Return where to ask a service that listens on METRICS_HOST: for all addresses, the local one of the same kind."""
    try:
        ip = ipaddress.ip_address(host.strip().strip("[]"))
    except ValueError:
        return host.strip()  # a name
    if ip.is_unspecified:
        return "127.0.0.1" if ip.version == 4 else "[::1]"
    return str(ip) if ip.version == 4 else f"[{ip}]"


def alive(port: int, host: str = "127.0.0.1") -> tuple[bool, str]:
    """Return whether /livez answers 200, and its text. Ignores the environment's proxy."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{address(host)}:{port}/livez", timeout=TIMEOUT_SECONDS) as answer:
            return True, answer.read().decode().strip()
    except HTTPError as error:
        return False, error.read().decode().strip()
    except OSError as error:
        return False, f"no answer at {address(host)}:{port}: {error}"


if __name__ == "__main__":
    ok, said = alive(int(os.environ.get("METRICS_PORT") or 8090), os.environ.get("METRICS_HOST") or "127.0.0.1")
    print(said)
    sys.exit(0 if ok else 1)
