"""`python -m service.web.probe`: checks that the local service is alive. The image's health check."""

from __future__ import annotations

import os
import sys
import urllib.request
from urllib.error import HTTPError

TIMEOUT_SECONDS = 4.0


def alive(port: int) -> tuple[bool, str]:
    """Return whether /livez answers 200, and its text. Ignores the environment's proxy."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}/livez", timeout=TIMEOUT_SECONDS) as answer:
            return True, answer.read().decode().strip()
    except HTTPError as error:
        return False, error.read().decode().strip()
    except OSError as error:
        return False, f"no answer on port {port}: {error}"


if __name__ == "__main__":
    ok, said = alive(int(os.environ.get("METRICS_PORT") or 8090))
    print(said)
    sys.exit(0 if ok else 1)
