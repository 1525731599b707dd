"""Numbers and foreign text as a person reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.telemetry import figures


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (812, "812"),
        (999, "999"),
        (1000, "1.00 k"),
        (41_800, "41.8 k"),
        (999_600, "1.00 M"),
        (8_910_244, "8.91 M"),
        (12_000_000, "12.0 M"),
        (0.45, "0.45"),
        (2.5, "2.50"),
        (5e16, "50000 T"),
    ],
)
def test_short_numbers_have_three_digits(number: float, text: str) -> None:
    """Three digits and a unit, also where rounding reaches the next unit."""
    assert figures.short(number) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.0, "0.0 %"),
        (0.742, "74.2 %"),
        (0.99999, "99.9 %"),
        (1.0, "100.0 %"),
        (0.000004, "0.0004 %"),
        (0.0009, "0.09 %"),
        (0.00000001, "<0.0001 %"),
    ],
)
def test_percentages_never_claim_all_or_nothing(ratio: float, text: str) -> None:
    """A run is at 100 % when it is complete, and one failed row in a million is not 0 %."""
    assert figures.percent(ratio) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1m 00s"),
        (287, "4m 47s"),
        (3600, "1h 00m"),
        (11_100, "3h 05m"),
        (187_300, "2d 04h"),
    ],
)
def test_durations_have_two_parts(seconds: float, text: str) -> None:
    """Two parts at most, whatever the length."""
    assert figures.duration(seconds) == text


def test_the_clock_counts_hours() -> None:
    """Hours go beyond a day."""
    assert figures.clock(212.9) == "00:03:32"
    assert figures.clock(100 * 3600) == "100:00:00"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain\n", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        (" 10%|#\r 20%|##\r", " 20%|##"),
        ("a\tb", "a   b"),
        ("two\nlines", "two\\nlines"),
        ("bell\x07 \x9b31m", "bell\\x07 \\x9b31m"),
        ("evil\u202egpj.exe", "evil\\u202egpj.exe"),
        ("Grüße 日本", "Grüße 日本"),
    ],
)
def test_foreign_text_is_harmless(text: str, safe: str) -> None:
    """Colours go, control characters are spelled out, letters of any language stay."""
    assert figures.plain(text) == safe


@given(st.text())
def test_no_text_escapes(text: str) -> None:
    """Whatever a worker prints becomes one printable line of bounded length."""
    safe = figures.plain(text, longest=50)
    assert safe.isprintable()
    assert len(safe) <= 50


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/srv/models/minilm/model.onnx", "minilm/model.onnx"),
        ("s3://bucket/v7/", "bucket/v7"),
        ("minilm-v7", "minilm-v7"),
        ("scoring:Model", "scoring:Model"),
        ("", ""),
    ],
)
def test_a_model_is_called_by_the_end_of_its_path(model: str, name: str) -> None:
    """The folder and the file tell models apart; a version stands for itself."""
    assert figures.model_name(model) == name
