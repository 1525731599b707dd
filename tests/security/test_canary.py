"""The canaries themselves: they are seen wherever they are, and the traps go off."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.security.canary import PERSON, SECRET, assert_no_canary, malicious_pickle


def test_a_trap_goes_off(tmp_path: Path) -> None:
    """The pickle that the tests hand around does what it is feared for."""
    pickle.loads(malicious_pickle(tmp_path / "ran"))  # noqa: S301 - that is the question
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [SECRET, f"x={quote(SECRET)}", f"{quote(SECRET, safe='')}", base64.b64encode(SECRET.encode()).decode()],
)
def test_a_canary_is_seen_in_whatever_spelling(tmp_path: Path, text: str) -> None:
    """A text or a file that holds the canary, also percent-encoded or in base64, is found."""
    assert_no_canary(tmp_path, "nothing")
    with pytest.raises(AssertionError, match="was printed"):
        assert_no_canary(None, f"before {text} after")
    (tmp_path / "file").write_text(f"before {text} after")
    with pytest.raises(AssertionError, match="is in"):
        assert_no_canary(tmp_path)


@pytest.mark.parametrize("place", ["metadata", "column"])
def test_a_canary_is_seen_in_parquet(tmp_path: Path, place: str) -> None:
    """Compressed pages and footers are looked into as well."""
    table = pa.table({"a": [PERSON if place == "column" else "a"] * 100})
    if place == "metadata":
        table = table.replace_schema_metadata({"who": PERSON})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(AssertionError, match=r"is in .*a\.parquet"):
        assert_no_canary(tmp_path, canary=PERSON)
