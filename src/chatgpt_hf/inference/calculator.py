"""A calculator for a model to call: exact, of bounded size, and never Python's `eval`."""

import re
from decimal import Context, Decimal
from fractions import Fraction

from ..errors import DataError

# Limits on what a model may ask for, in characters, digits and brackets within brackets.
LONGEST, MOST_DIGITS, DEEPEST = 200, 100, 20
# Digits of a result that no decimal number gives exactly.
_ROUNDED_TO = Context(prec=12)
_LIMIT = 10**MOST_DIGITS
_TOKEN = re.compile(r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+))|(?P<sign>\*\*|[-+*/()]))", re.ASCII)


def calculator(expression: str) -> str:
    """Computes an arithmetic expression.

    Args:
        expression: Numbers, + - * / ** and brackets.

    Raises:
        DataError: If the expression is anything else than arithmetic, divides by 0, or exceeds the limits of this module.
    """
    # The first two parts of the text above are what a model reads. Python's order of operations, and no rounding: 0.1 + 0.2 is 0.3.
    if len(expression) > LONGEST:
        raise DataError(f"the expression has {len(expression)} characters: give at most {LONGEST}")
    return _text(_Parser(expression).result())


class _Parser:
    """Recursive descent over the tokens of an expression."""

    def __init__(self, expression: str) -> None:
        self._tokens: list[str] = []
        expression, at = expression.rstrip(), 0
        while at < len(expression):
            if (match := _TOKEN.match(expression, at)) is None:
                wrong = expression[at:].lstrip()[0]
                raise DataError(f"{wrong!r} is not arithmetic: give numbers, + - * / ** and brackets")
            self._tokens.append(match["number"] or match["sign"])
            at = match.end()
        self._at = self._depth = 0

    def result(self) -> Fraction:
        value = self._sum()
        if self._next():
            raise DataError(f"there is {self._next()!r} where an operator is missing")
        return value

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *signs: str) -> str:
        """Takes the next token if it is one of these; returns it, or nothing."""
        found = self._next() if self._next() in signs else ""
        self._at += bool(found)
        return found

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+", "-"):
            other = self._product()
            value = _bounded(value + other if sign == "+" else value - other)
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while sign := self._take("*", "/"):
            other = self._signed()
            if sign == "/" and not other:
                raise DataError("division by 0")
            value = _bounded(value * other if sign == "*" else value / other)
        return value

    def _signed(self) -> Fraction:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        value = self._power()
        return -value if negative else value

    def _power(self) -> Fraction:
        base = self._atom()
        if not self._take("**"):
            return base
        self._enter()
        # As in Python: 2 ** -1 ** 2 is 2 ** (-(1 ** 2)).
        exponent = self._signed()
        self._depth -= 1
        if exponent.denominator != 1:
            raise DataError(f"the exponent {_text(exponent)} is not a whole number")
        if not base and exponent < 0:
            raise DataError("division by 0")
        # Before it is computed: the digits of a power are about those of its base, times the exponent.
        bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length()) - 1
        if bits * abs(exponent) > _LIMIT.bit_length():
            raise _too_large()
        return _bounded(base ** int(exponent)) if abs(base) != 1 else base ** (int(exponent) % 2)

    def _atom(self) -> Fraction:
        if self._take("("):
            self._enter()
            value = self._sum()
            if not self._take(")"):
                raise DataError("a bracket is not closed")
            self._depth -= 1
            return value
        token = self._next()
        if not token or not (token[0].isdigit() or token[0] == "."):
            raise DataError(f"a number is missing before {token!r}" if token else "a number is missing at the end")
        self._at += 1
        return _bounded(Fraction(token))

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise DataError(f"brackets or powers are nested more than {DEEPEST} deep")


def _bounded(value: Fraction) -> Fraction:
    if abs(value.numerator) >= _LIMIT or value.denominator >= _LIMIT:
        raise _too_large()
    return value


def _too_large() -> DataError:
    return DataError(f"the expression is too large: a value has more than {MOST_DIGITS} digits")


def _text(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    context = _ROUNDED_TO if rest > 1 else Context(prec=4 * MOST_DIGITS)
    text = f"{context.divide(Decimal(value.numerator), Decimal(value.denominator)):f}"
    return text.rstrip("0") if "." in text else text
