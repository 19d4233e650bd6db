"""Which servers a password of the environment may go to: the folder of an index may have come from a stranger."""

import ipaddress
import os
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from splade_lit.core.errors import UserError

_HOST = re.compile(r"(?:[^@/?#\\]*@)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]*)(?::\d+)?")
_NAMES_HOSTS = re.compile("host", re.IGNORECASE)

_given: set[str] = set()


def remember(url: str) -> None:
    """Take an address for known until the process ends, as its user has given it."""
    _given.add(_origin(url))


def check_known(url: str, variable: str, secret: str) -> None:
    """Raise a UserError if the address of a server is known from nowhere but the files of an index.

    Known are this machine, what has been given in this process (`--url`), and what an environment variable names.

    Args:
        url: the address.
        variable: that names a known one, with the same scheme, host and port.
        secret: the environment variable whose content would go there.
    """
    named = os.environ.get(variable)
    known = _given | ({_origin(named)} if named else set())
    if _origin(url) not in known and not _is_here(url):
        raise UserError(
            f"The index says that its server is {url}, which would get {secret}; set {variable} to this address if "
            "the server is yours."
        )


def _origin(url: str) -> str:
    """Scheme, host and port; of another address than HTTP's, which may name hosts elsewhere, all of it."""
    url = url if "://" in url else f"http://{url}"
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest)[0]}".lower() if scheme.lower() in ("http", "https") else url


def _is_here(url: str) -> bool:
    """Whether an address is of this machine and can be taken for no other.

    >>> [_is_here(url) for url in ("http://localhost:9200", "http://127.0.0.1", "postgresql://me@[::1]/db")]
    [True, True, True]
    >>> [_is_here(url) for url in ("http://elsewhere", "postgresql://localhost/db?host=elsewhere")]
    [False, False]
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError:
        return False
    host = _HOST.fullmatch(parts.netloc)
    if host is None or not url.isprintable() or "service" in unquote(parts.query):
        return False
    # libpq takes hosts from settings, too (and from files that `service` names); without any it takes a local socket.
    settings = [value for name, value in parse_qsl(parts.query) if _NAMES_HOSTS.search(name)]
    if not host[1] and not parts.scheme.startswith("postgres"):
        return False
    return all(map(_is_local, [host[1] or "localhost", *settings]))


def _is_local(host: str) -> bool:
    name = host.strip("[]").lower()
    if name == "localhost" or (name.startswith("/") and "," not in name):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
