"""`input.where`: a condition in SQL's words, parsed to a tree.

or_       := and_ ("or" and_)*
and_      := not_ ("and" not_)*
not_      := "not"* comparison
comparison:= "(" or_ ")" | operand [ op operand | [not] in (literal, …)
             | [not] between operand and operand | [not] like 'pattern' | is [not] null ]
operand   := column | literal
"""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal

from batchinfer.sources.condition import Column, Compare, Condition, Every, In, IsNull, Like, Node, Not, Some
from batchinfer.sources.literals import Literal

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<string>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")+"|`[^`]+`)
      | (?P<name>[^\W\d]\w*)
      | (?P<op><>|!=|==|<=|>=|=|<|>|\(|\)|,|-)
      | (?P<end>$)
    )""",
    re.VERBOSE,
)
_TEXT_FOLLOWS = re.compile(r"\s*'")
_WORDS = {"and", "or", "not", "in", "between", "like", "is", "null", "true", "false"}
_DATED = {"date", "timestamp"}
_OPERATORS = {"=", "==", "!=", "<>", "<", "<=", ">", ">="}
_MAX_DEPTH = 100
_MAX_COMPARISONS = 500
_MAX_DIGITS = 40
_SHOWN = 60


def parse_where(text: str) -> Condition:
    """Parse a condition. Raises ValueError that points at the place."""
    return _Parser(text).parse()


class _Parser:
    """One token ahead, one function per line of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = self._depth = self._comparisons = 0
        self._columns: dict[str, bool] = {}
        self._advance()

    def parse(self) -> Condition:
        """Return the whole text as a condition."""
        root = self._or()
        if self._kind != "end":
            raise self._error("expected `and`, `or` or the end")
        quoted = frozenset(name for name, quoted in self._columns.items() if quoted)
        return Condition(root, tuple(self._columns), quoted)

    def _advance(self) -> None:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            rest = self._text[self._at :]
            self._start = self._at + len(rest) - len(rest.lstrip())
            raise self._error("cannot read this")
        self._kind = str(found.lastgroup)
        self._word = found.group(self._kind)
        self._start, self._at = found.start(self._kind), found.end()
        if self._kind == "name":
            word = self._word.lower()
            # `date` and `timestamp` are common names of columns: only a text behind makes them words.
            dated = word in _DATED and _TEXT_FOLLOWS.match(self._text, self._at)
            if word in _WORDS or dated:
                self._kind, self._word = "word", word

    def _error(self, what: str) -> ValueError:
        """Point at the current token in its line, or in the part of a long line around it."""
        begin = self._text.rfind("\n", 0, self._start) + 1
        begin = max(begin, self._start - _SHOWN)
        line = self._text[begin : self._start + _SHOWN].split("\n", 1)[0]
        return ValueError(
            f"{what}, at character {self._start + 1}\n    {line}\n    {' ' * (self._start - begin)}^"
        )

    def _accept(self, token: str) -> bool:
        if self._kind in {"word", "op"} and self._word == token:
            self._advance()
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise self._error(f"expected `{token}`")

    def _or(self) -> Node:
        parts = [self._and()]
        while self._accept("or"):
            parts.append(self._and())
        return Some(tuple(parts)) if len(parts) > 1 else parts[0]

    def _and(self) -> Node:
        parts = [self._not()]
        while self._accept("and"):
            parts.append(self._not())
        return Every(tuple(parts)) if len(parts) > 1 else parts[0]

    def _not(self) -> Node:
        negated = False
        while self._accept("not"):
            negated = not negated
        inner = self._comparison()
        return Not(inner) if negated else inner

    def _comparison(self) -> Node:
        if self._kind == "op" and self._word == "(":
            return self._parenthesis()
        self._comparisons += 1
        if self._comparisons > _MAX_COMPARISONS:
            # Arrow walks a chain of them by recursion: thousands would end the process.
            raise self._error(f"more than {_MAX_COMPARISONS} comparisons; use `in (…)`")
        left = self._operand()
        if self._kind == "op" and self._word in _OPERATORS:
            op = self._word
            self._advance()
            return Compare(op, left, self._operand())
        if self._accept("is"):
            negated = self._accept("not")
            self._expect("null")
            test: Node = IsNull(self._column(left))
            return Not(test) if negated else test
        negated = self._accept("not")
        test = self._test(left, negated=negated)
        return Not(test) if negated else test

    def _parenthesis(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"more than {_MAX_DEPTH} parentheses are open")
        self._advance()
        inner = self._or()
        self._expect(")")
        self._depth -= 1
        return inner

    def _test(self, left: Column | Literal, *, negated: bool) -> Node:
        if self._accept("in"):
            return In(self._column(left), self._list())
        if self._accept("between"):
            low = self._operand()
            self._expect("and")
            return Every((Compare(">=", left, low), Compare("<=", left, self._operand())))
        if self._accept("like"):
            if self._kind != "string":
                raise self._error("expected a pattern such as 'de%'")
            return Like(self._column(left), self._literal().value)
        if negated:
            raise self._error("expected `in`, `between` or `like`")
        return left

    def _column(self, operand: Column | Literal) -> Column:
        if isinstance(operand, Literal):
            raise self._error("only a column can stand before `in`, `like` and `is`")
        return operand

    def _list(self) -> tuple[Literal, ...]:
        self._expect("(")
        values = [self._literal()]
        while self._accept(","):
            values.append(self._literal())
        self._expect(")")
        return tuple(values)

    def _operand(self) -> Column | Literal:
        if self._kind not in {"name", "quoted"}:
            return self._literal()
        quoted = self._word.startswith('"')
        name = self._word if self._kind == "name" else self._word[1:-1]
        name = name.replace('""', '"') if quoted else name
        self._columns.setdefault(name, quoted)
        self._advance()
        return Column(name)

    def _literal(self) -> Literal:
        if self._accept("-"):
            if self._kind != "number":
                raise self._error("expected a number after `-`")
            return self._number(-1)
        if self._kind == "number":
            return self._number(1)
        if self._kind == "string":
            text = self._word[1:-1].replace("''", "'")
            self._advance()
            return Literal("text", text)
        if self._kind == "word" and self._word in _DATED:
            return self._dated(self._word)
        for word, value in (("true", True), ("false", False)):
            if self._accept(word):
                return Literal("bool", value)
        if self._kind == "word" and self._word == "null":
            raise self._error("nothing equals null: write `is null`")
        raise self._error("expected a column, a number or a 'text'")

    def _number(self, sign: int) -> Literal:
        value = sign * Decimal(self._word)
        if abs(value.adjusted()) > _MAX_DIGITS or len(value.as_tuple().digits) > _MAX_DIGITS:
            raise self._error(f"numbers have at most {_MAX_DIGITS} digits")
        self._advance()
        return Literal("number", value)

    def _dated(self, word: str) -> Literal:
        self._advance()
        text = self._word[1:-1]
        try:
            value = (dt.date if word == "date" else dt.datetime).fromisoformat(text)
        except ValueError:
            raise self._error(f"not a {word}; write {word} '2026-01-31'") from None
        self._advance()
        return Literal(word, value)
