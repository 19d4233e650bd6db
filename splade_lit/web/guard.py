"""What stands before the page: which hosts and sizes of requests are answered, and headers that browsers obey."""

import ipaddress
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_TARGET_BYTES = 49_152  # of path and query: a query and an id of 2,000 characters each, of 12 bytes once escaped

# Scripts and styles come from this server alone, none of them from the text of a page, and texts are never made markup.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{what}-src 'self'" for what in ("script", "style", "img", "connect")),
        *(f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors")),
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """Answers only what a page of this server would ask.

    A page of somebody else whose name is made to lead here (DNS rebinding) sends that name as the host, and is refused.
    Addresses of numbers are taken as hosts, as no name leads to them.

    Args:
        app: what answers.
        hosts: names that this server has, beside localhost.
    """

    def __init__(self, app: AsgiApp, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._hosts = frozenset({"localhost", *(host.lower().rstrip(".") for host in hosts)})

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or say why not."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message.get("headers", [])}
                more = _HEADERS | {"cache-control": "no-cache"}
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode()) for name, value in more.items() if name.encode() not in there),
                ]
            await send(message)

        if problem := self._problem(scope):
            await _refuse(send_with_headers, *problem)
        else:
            await self._app(scope, receive, send_with_headers)

    def _problem(self, scope: Message) -> tuple[int, str] | None:
        """Status and sentence of a request that is not answered."""
        headers = dict(scope["headers"])
        if scope["method"] not in ("GET", "HEAD"):
            return 405, "Only GET is answered here."
        if headers.get(b"content-length", b"0").strip() != b"0" or b"transfer-encoding" in headers:
            return 413, "Requests have no body here."
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET_BYTES:
            return 414, f"The address is longer than {MAX_TARGET_BYTES} bytes; ask for less."
        if not self._is_ours(headers.get(b"host", b"").decode("latin-1")):
            return 421, "This server has another name; give yours with --allow-host."
        if headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate":
            return 403, "Pages of other sites are not answered."
        return None

    def _is_ours(self, host: str) -> bool:
        if host.startswith("["):
            name = host[1:].partition("]")[0]
        else:
            name = host.rpartition(":")[0] if host.count(":") == 1 else host
        name = name.lower().rstrip(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
