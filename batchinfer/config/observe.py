"""Where metrics go: the values of `observe` that are checked, and the gateway that they are pushed to."""

from __future__ import annotations

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator

from batchinfer.options import Field, JobPath, Options, Secret, field_validator, model_validator, neutral

_Seconds = Annotated[float, Field(gt=0)]
_SecretText = Annotated[str, Secret()]
_URL = re.compile(r"https?://[^\s/]+(/\S*)?")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_MAX_PORT = 65_535
_HEADER = re.compile(r"[\x21-\x7e]+")


def _address(value: str) -> str:
    """Refuse text that is no address to listen on."""
    found = _ADDRESS.fullmatch(value)
    if found is None or int(found[2]) > _MAX_PORT:
        raise ValueError(f"must be HOST:PORT such as 127.0.0.1:9400, got {value!r}")
    return value


def _prom_file(value: str) -> str:
    """Refuse a file that node_exporter would never read."""
    if "://" in value or not value.endswith(".prom"):
        raise ValueError(f"must be a local file NAME.prom: node_exporter reads no other, got {value!r}")
    return value


Address = Annotated[str, AfterValidator(_address)]
"""HOST:PORT to listen on; port 0 is one that is free."""

PromFile = Annotated[JobPath, AfterValidator(_prom_file)]
"""A local file NAME.prom; a relative path is relative to the job file."""


class PushgatewayOptions(Options):
    """Where metrics are pushed."""

    url: _SecretText = neutral(..., repr=False)
    """The gateway, such as http://pushgateway:9091; one with a password comes from `${env:NAME}`."""

    every: _Seconds = neutral(15.0)
    """Seconds between two pushes."""

    instance: _SecretText | None = neutral(None, repr=False)
    """The `instance` of the grouping key; by default `index-3` where the process has a share of the job,
    else the host name."""

    timeout: _Seconds = neutral(5.0)
    """Seconds after which a push is given up."""

    user: _SecretText | None = neutral(None, repr=False)
    """User for basic authentication."""

    password: _SecretText | None = neutral(None, repr=False)
    """Its password, as `${env:NAME}`."""

    token: _SecretText | None = neutral(None, repr=False)
    """A bearer token, as `${env:NAME}`, in place of user and password."""

    ca: JobPath | None = neutral(None)
    """A PEM file with the certificates that sign the gateway's, in place of the system's. The gateway's is
    always checked."""

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        if not _URL.fullmatch(value):
            raise ValueError("must be an http:// or https:// URL")
        return value

    @field_validator("token")
    @classmethod
    def _sendable(cls, value: str | None) -> str | None:
        if value is not None and not _HEADER.fullmatch(value):
            raise ValueError("is empty, or holds a line break or another character that cannot be sent")
        return value

    @field_validator("user")
    @classmethod
    def _one_name(cls, value: str | None) -> str | None:
        if value is not None and (not value or ":" in value):
            raise ValueError("is empty, or holds a colon, which would end it")
        return value

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password need each other")
        logins = (self.user is not None, self.token is not None, "@" in _host(self.url))
        if sum(logins) > 1:
            raise ValueError("has more than one login: a token, a user, or a user in the url")
        if self.ca is not None and not self.url.startswith("https://"):
            raise ValueError("ca needs a url that begins with https://")
        return self

    @property
    def has_login(self) -> bool:
        """Whether a secret is sent with every push."""
        return self.token is not None or self.user is not None or "@" in _host(self.url)


def _host(url: str) -> str:
    """Return the host of a URL with the login before it; of one that cannot be taken apart, nothing."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""
