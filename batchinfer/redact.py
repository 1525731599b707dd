"""What may be shown of text that came from elsewhere: no secret in it, and nothing that moves a cursor."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, quote, unquote, urlsplit

_HIDDEN = "***"
_SHORTEST = 8
_AFTER = ".,;:!)]}"
_WITH_PORT = {"http", "https", "ftp", "sftp", "hdfs", "webhdfs", "smb"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>`|]+")
_NAMES = (
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|sig|signature"
    r"|(?:access_|id_|refresh_|auth_|sas_)?token|password|passwd|pwd|(?:client_)?secret|credentials?"
    r"|api[_-]?key|(?:secret_)?access[_-]?key|account_?key|sharedaccess(?:key|signature)"
)
_IN_QUERY = re.compile(rf"{_NAMES}|auth|code|key|[\w-]*(?:token|secret|password)", re.IGNORECASE)
# A client may print a request without its server, and a connection string has no server at all. In a
# path such a name is a partition's.
_PAIR = re.compile(rf"(?<![\w/-])({_NAMES})(=|%3[Dd])[^\s&;,\"'\\<>)\]}}]+", re.IGNORECASE)
_HEADER = re.compile(
    r"(authorization|x-amz-security-token)([\"']?\s*[:=]\s*[\"']?)(?:[a-z0-9-]+\s+)?[^\s\"',]+",
    re.IGNORECASE,
)

_remembered: dict[str, None] = {}


def remember(secret: str) -> None:
    """Have a value hidden wherever it stands, for as long as this process lives.

    Shorter ones than eight characters are not: they would be found inside of words.
    """
    if len(secret) < _SHORTEST:
        return
    for form in (secret, quote(secret, safe=""), repr(secret)[1:-1]):
        _remembered[form] = None


def redact(text: str) -> str:
    """Return text without secrets: userinfo and signatures of URLs, and every remembered value."""
    for secret in sorted(_remembered, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    if "://" in text:
        text = _URL.sub(_replaced, text)
    if "=" in text or "%3" in text:
        text = _PAIR.sub(rf"\1\2{_HIDDEN}", text)
    return _HEADER.sub(rf"\1\2{_HIDDEN}", text) if ":" in text or "=" in text else text


def holds_secret(url: str) -> bool:
    """Say whether a URL carries a password or a signature."""
    return "://" in url and _redacted(url) != url


def visible(text: str, *, lines: bool = False) -> str:
    """Return text with escapes for what does not print: control characters, and those that turn the
    direction of writing. `lines`: line breaks and tabs stay."""
    kept = "\n\t" if lines else ""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text)


def _replaced(found: re.Match[str]) -> str:
    """Redact a URL that was found in a text; what ends the sentence is not of it."""
    url = found.group().rstrip(_AFTER)
    return _redacted(url) + found.group()[len(url) :]


def _redacted(url: str) -> str:
    """Take a URL apart and put it together again without what is secret in it."""
    try:
        parts = urlsplit(url)
        has_port = parts.port is not None and parts.scheme.lower() in _WITH_PORT
    except ValueError:
        return _broken(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if ":" in host and "[" not in host and not (at or has_port):
        # What looks like a port is the beginning of a password that has a slash in it.
        return _broken(url)
    if at and (":" in userinfo or parts.scheme.lower() in {"http", "https", "ftp"}):
        # `user@` alone is a container in abfs:// and a login in sftp://, but a token in https://.
        host = f"{_HIDDEN}@{host}"
    elif at:
        host = parts.netloc
    query = _without_secrets(parts.query)
    fragment = _without_secrets(parts.fragment)
    if (host, query, fragment) == (parts.netloc, parts.query, parts.fragment):
        return url
    return _joined(url, parts, host, query=query, fragment=fragment)


def _joined(url: str, parts: SplitResult, host: str, *, query: str, fragment: str) -> str:
    scheme = url[: url.index("://")]
    text = f"{scheme}://{host}{parts.path}"
    text += f"?{query}" if parts.query else ""
    return text + (f"#{fragment}" if parts.fragment else "")


def _broken(url: str) -> str:
    """Return what is sure of a URL that cannot be taken apart: a password with a slash in it ends the
    server's name too early."""
    scheme, _, rest = url.partition("://")
    before, at, tail = rest.rpartition("@")
    if not at and not {"?", "#"} & set(before + tail):
        return url
    host = re.match(r"[A-Za-z0-9.-]*", tail)
    return f"{scheme}://{_HIDDEN}@{host.group() if host else ''}" if at else f"{scheme}://{_HIDDEN}"


def _without_secrets(query: str) -> str:
    """Return a query or fragment, or stars in place of one that holds a secret."""
    for pair in re.split("[&;]", query):
        name, _, value = pair.partition("=")
        if _IN_QUERY.fullmatch(unquote(name)):
            return _HIDDEN
        inner = unquote(value)
        if "://" in inner and holds_secret(inner):
            return _HIDDEN
    return query
