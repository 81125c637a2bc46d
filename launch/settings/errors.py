"""Errors of settings as one line: the setting, its value, the rule and the nearest valid value."""

import difflib
from collections.abc import Iterable

from pydantic import ValidationError


class ConfigError(ValueError):
    """A setting is unknown, malformed, out of range or in conflict with another."""


# Pydantic's error types and our messages. A name in braces is a value of the error's context.
_RULES = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}; nearest valid: {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}; nearest valid: {le}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number of at most 19 digits",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be values separated by commas",
    "too_long": "has {actual_length} values; must have {max_length}",
    "too_short": "must have at least {min_length} value",
    "dict_type": "is a section; set one of its settings",
    "dataclass_type": "is a section; set one of its settings",
}

_NOT_FINITE = ("nan", "inf", "-inf")


def one_line(error: ValidationError) -> str:
    """Return the first error in `error` as one line, for example "train.lr=-1.0: must be above 0"."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    kind, context = first["type"], first.get("ctx", {})
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{'.'.join(place)}: unknown setting"
    if kind == "missing":
        if place[-1].isdigit():
            return f"{'.'.join(place[:-1])}: has too few values; separate them by commas"
        return f"{'.'.join(place)}: has no value"
    reason = first["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return _cut(".".join([*place, reason]), 300, 300)  # __post_init__ begins it with the setting's name
    if place[-1].isdigit():  # the entry of a tuple
        place.pop()
    value = first["input"]
    if kind == "literal_error":
        reason = _choices(str(value), context["expected"])
    elif kind in _RULES:
        if kind.startswith(("less_than", "greater_than")) and str(value).lower() in _NOT_FINITE:
            kind = "finite_number"
        spelled = {key: f"{it:g}" if isinstance(it, float) else it for key, it in context.items()}
        reason = _RULES[kind].format_map(spelled)
    return f"{'.'.join(place)}={_short(value)}: {reason}"


def _short(value: object) -> str:
    """Return the value as Python spells it, cut to 100 characters."""
    return _cut(repr(value), 70, 27)


def _cut(text: str, first: int, last: int) -> str:
    """Return the text, or its first and last characters if it is longer."""
    return text if len(text) <= first + 3 + last else f"{text[:first]}...{text[-last:]}"


def _choices(value: str, expected: str) -> str:
    names = expected.replace("'", "").replace(" or ", ", ").split(", ")
    return f"must be one of {', '.join(names)}{did_you_mean(value[:100], names)}"


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5, prefix: str = "") -> str:
    """Return "; did you mean NAME?" with the nearest of `known`; "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
