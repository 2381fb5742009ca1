"""Who may do what: the token, the same origin, the host, and the headers that keep hostile texts harmless."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from flask import Flask, Response, jsonify, request

READING = ("GET", "HEAD", "OPTIONS")
LOOPBACK_NAMES = ("localhost", "localhost.localdomain")
GUARDED = ("/api/v1/", "/static/")
"""Paths that answer only to the service's own names, if these are known. `/` is one of them too."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""On every answer."""


def add_guards(app: Flask, *, token: str | None, host: str, public_url: str | None) -> None:
    """Check each request before it is answered, and add the headers.

    Args:
        token: None refuses every POST
        host: where the service listens
        public_url: the address under which it is known, if it has another one
    """
    public_name = place(public_url)
    has_names = is_loopback(host) or public_name is not None  # else nobody knows by which names it is reached

    @app.before_request
    def guard() -> Response | None:
        if request.routing_exception is not None:  # a 404 or 405
            return None
        if has_names and _is_guarded(request.path) and not _is_own_name(request.host, public_name):
            return refusal(
                403,
                f"the service does not know itself as {request.host}. Ask 127.0.0.1 or localhost, or set PUBLIC_URL",
            )
        if request.method in READING:
            return None
        return _foreign(public_name) or unauthorized(token)

    @app.after_request
    def add_headers(answer: Response) -> Response:
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        if "Cache-Control" not in answer.headers:
            answer.headers["Cache-Control"] = "no-store"
        return answer


def unauthorized(token: str | None) -> Response | None:
    """Return the refusal of a request without the right token, or None."""
    if token is None:
        return refusal(403, "POST is disabled. Set CODELUPE_TOKEN to enable it")
    scheme, _, given = request.headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        return refusal(401, "no token. Send 'Authorization: Bearer …' with CODELUPE_TOKEN", "Bearer")
    # WSGI: the header's bytes as latin-1
    if not hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode()):
        return refusal(401, "wrong token. Send the value of CODELUPE_TOKEN", 'Bearer error="invalid_token"')
    return None


def refusal(status: int, error: str, challenge: str | None = None) -> Response:
    """Return an error as JSON."""
    answer = jsonify({"error": error})
    answer.status_code = status
    if challenge is not None:
        answer.headers["WWW-Authenticate"] = challenge
    return answer


def is_loopback(host: str) -> bool:
    """Whether a service that listens on this host is reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip().strip("[]")).is_loopback
    except ValueError:
        return host.strip().lower().rstrip(".") in LOOPBACK_NAMES


def _is_guarded(path: str) -> bool:
    return path == "/" or path.startswith(GUARDED)


def place(url: str | None) -> str | None:
    """Return host and port of an address, as they are compared: in lower case and ASCII, without a default port.

    None: it has no host.
    """
    try:
        parts = urlsplit(url or "")
        name, port = (parts.hostname or "").rstrip("."), parts.port
        if not name.isascii():
            name = name.encode("idna").decode()
    except ValueError:  # includes UnicodeError
        return None
    if not name:
        return None
    return name if port in (None, 80, 443) else f"{name}:{port}"


def _is_own_name(host: str, public_name: str | None) -> bool:
    """Whether a Host header names this machine. A page of a foreign name that resolves to 127.0.0.1 must not read."""
    found = place(f"//{host}")
    return found is not None and (found == public_name or is_loopback(urlsplit(f"//{host}").hostname or ""))


def _foreign(public_name: str | None) -> Response | None:
    """Return the refusal of a POST from another site. Under /api/v1 the origin must be stated."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None and site not in ("same-origin", "none"):
        return refusal(403, f"a request from another site is refused (Sec-Fetch-Site: {site})")
    if origin is not None and (place(origin) or "?") not in (place(f"//{request.host}"), public_name):
        return refusal(403, f"a request from another site is refused (Origin: {origin})")
    if origin is None and site is None and request.path.startswith("/api/v1/"):
        return refusal(403, f"no origin. Send 'Origin: {request.host_url.rstrip('/')}'")
    return None
