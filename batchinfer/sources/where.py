"""`input.where`: a condition in SQL's words, parsed to an Arrow expression.

or_       := and_ ("or" and_)*
and_      := not_ ("and" not_)*
not_      := "not" not_ | comparison
comparison:= operand [ op operand | [not] in (literal, …) | [not] between operand and operand
                     | [not] like 'pattern' | is [not] null ]
operand   := column | literal | "(" or_ ")"
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
      | (?P<string>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")*"|`[^`]*`)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<op><>|!=|==|<=|>=|=|<|>|\(|\)|,|-)
      | (?P<end>$)
    )""",
    re.VERBOSE,
)
_WORDS = {"and", "or", "not", "in", "between", "like", "is", "null", "true", "false", "date", "timestamp"}
_COMPARE = {
    "=": "equal",
    "==": "equal",
    "!=": "not_equal",
    "<>": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition: an Arrow expression and the columns that it names."""

    expression: Any
    columns: tuple[str, ...]


def parse_where(text: str) -> Condition:
    """Parse a condition. Raises ValueError that points at the place."""
    return _Parser(text).parse()


class _Parser:
    """One token ahead, one function per line of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._columns: dict[str, None] = {}
        self._advance()

    def parse(self) -> Condition:
        """Parse the whole condition."""
        expression = self._or()
        if self._kind != "end":
            raise self._error("expected `and`, `or` or the end")
        return Condition(expression, tuple(self._columns))

    def _advance(self) -> None:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            self._start = self._at + len(self._text[self._at :]) - len(self._text[self._at :].lstrip())
            raise self._error("cannot read this")
        self._kind = str(found.lastgroup)
        self._word = found.group(self._kind)
        self._start, self._at = found.start(self._kind), found.end()
        if self._kind == "name" and self._word.lower() in _WORDS:
            self._kind, self._word = "word", self._word.lower()

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{what}\n    {self._text}\n    {' ' * self._start}^")

    def _accept(self, token: str) -> bool:
        if self._kind in {"word", "op"} and self._word == token:
            self._advance()
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise self._error(f"expected `{token}`")

    def _or(self) -> Any:
        left = self._and()
        while self._accept("or"):
            left = left | self._and()
        return left

    def _and(self) -> Any:
        left = self._not()
        while self._accept("and"):
            left = left & self._not()
        return left

    def _not(self) -> Any:
        return ~self._not() if self._accept("not") else self._comparison()

    def _comparison(self) -> Any:
        left = self._operand()
        if self._kind == "op" and self._word in _COMPARE:
            name = _COMPARE[self._word]
            self._advance()
            return getattr(pc, name)(left, self._operand())
        if self._accept("is"):
            negated = self._accept("not")
            self._expect("null")
            return left.is_valid() if negated else left.is_null()
        negated = self._accept("not")
        test = self._test(left, negated=negated)
        return ~test if negated else test

    def _test(self, left: Any, *, negated: bool) -> Any:
        if self._accept("in"):
            # SQL's `null in (…)` is null, Arrow's is false: `x < x` is null for a null, else false.
            return left.isin(self._list()) | pc.less(left, left)
        if self._accept("between"):
            low = self._operand()
            self._expect("and")
            return (left >= low) & (left <= self._operand())
        if self._accept("like"):
            if self._kind != "string":
                raise self._error("expected a pattern such as 'de%'")
            return pc.match_like(left, self._literal())
        if negated:
            raise self._error("expected `in`, `between` or `like`")
        return left

    def _list(self) -> list[Any]:
        self._expect("(")
        values = [self._literal()]
        while self._accept(","):
            values.append(self._literal())
        self._expect(")")
        return values

    def _operand(self) -> Any:
        if self._accept("("):
            inner = self._or()
            self._expect(")")
            return inner
        if self._kind in {"name", "quoted"}:
            name = self._word
            if self._kind == "quoted":
                name = name[1:-1].replace('""', '"')
            self._columns[name] = None
            self._advance()
            return pc.field(name)
        return pc.scalar(self._literal())

    def _literal(self) -> Any:
        if self._kind == "op" and self._word == "-":
            self._advance()
            if self._kind != "number":
                raise self._error("expected a number after `-`")
            return -self._number()
        if self._kind == "number":
            return self._number()
        if self._kind == "string":
            value = self._word[1:-1].replace("''", "'")
            self._advance()
            return value
        if self._kind == "word" and self._word in {"date", "timestamp"}:
            return self._dated(self._word)
        for word, value in (("true", True), ("false", False)):
            if self._accept(word):
                return value
        if self._kind == "word" and self._word == "null":
            raise self._error("nothing equals null: write `is null`")
        raise self._error("expected a column, a number or a 'text'")

    def _number(self) -> int | float:
        text = self._word
        self._advance()
        return int(text) if text.isdigit() else float(text)

    def _dated(self, word: str) -> Any:
        self._advance()
        if self._kind != "string":
            raise self._error(f"expected {word} '2026-01-31'")
        text = self._word[1:-1]
        try:
            if word == "date":
                value = pa.scalar(dt.date.fromisoformat(text), pa.date32())
            else:
                value = pa.scalar(dt.datetime.fromisoformat(text), pa.timestamp("us"))
        except ValueError:
            raise self._error(f"not a {word}; write {word} '2026-01-31'") from None
        self._advance()
        return value
