"""What counts as a secret in a job file, and what is left of a URL that holds one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.config.credentials import path_problem, secret_problem
from batchinfer.redact import holds_secret, redact


@pytest.mark.parametrize(
    ("key", "text", "refused"),
    [
        ("secret_access_key", "abc", True),
        ("aws_session_token", "abc", True),
        ("account_key", "abc", True),
        ("sas_token", "?sv=1", True),
        ("connection_string", "AccountKey=abc", True),
        ("password", "${env:PASSWORD}", False),
        ("access_key_id", "AKIA", False),
        ("key", "AKIA", False),
        ("region", "eu-central-1", False),
        ("token", "anon", False),
        ("token", "", False),
        ("token_path", "/var/run/token", False),
        ("endpoint_url", "http://localhost:9000", False),
        ("endpoint_url", "http://user:pass@localhost:9000", True),
    ],
)
def test_secrets_in_a_job_file(key: str, text: str, *, refused: bool) -> None:
    """What is a secret by its name or by its form may only be the name of a variable."""
    assert (secret_problem(key, text) is not None) == refused


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("s3://bucket/a/b.parquet", "s3://bucket/a/b.parquet"),
        ("https://user:pass@host:9000/x", "https://***@host:9000/x"),
        ("https://h/x?sig=abc&se=1", "https://h/x?***"),
        ("https://h/x?X-Amz-Signature=abc", "https://h/x?***"),
        ("https://h/x?page=2", "https://h/x?page=2"),
        ("/data/a:b@c", "/data/a:b@c"),
    ],
)
def test_urls_for_messages(url: str, redacted: str) -> None:
    """A URL without a secret stays as it is; one with a secret loses it."""
    assert redact(url) == redacted
    assert (path_problem(url) is not None) == (url != redacted)


SAFE = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-_.~%", min_size=1, max_size=12)


@given(SAFE, st.sampled_from(["https", "s3", "http"]), SAFE, st.sampled_from(["", "/a/b", "/x?y=1"]))
def test_a_password_never_survives(user: str, scheme: str, host: str, rest: str) -> None:
    """Whatever the URL looks like, its password is found and taken out."""
    url = f"{scheme}://{user}:canary-7f3@{host}{rest}"
    assert holds_secret(url)
    assert "canary-7f3" not in redact(url)


@given(st.text(max_size=40))
def test_any_text(text: str) -> None:
    """No text, URL or not, breaks the search for secrets."""
    assert isinstance(holds_secret(f"https://{text}"), bool)
    assert isinstance(redact(text), str)
