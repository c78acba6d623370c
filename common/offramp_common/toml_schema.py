"""TOML tables bound onto frozen dataclasses, with errors that say what would be right.

The dataclass is the schema: a field's type is what the value must be, its default makes the key optional, and a `Rule`
in an `Annotated` type (or in `rules`, for dataclasses that know nothing of TOML) narrows what is accepted. Types may
be bool, int, float, str, Path, Literal, another dataclass, `tuple[X, ...]`, `Mapping[str, X]`, `X | None`, unions of
these, and `Any` within a mapping.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from offramp_common.errors import ConfigurationError

T = TypeVar("T")

# Says where a dotted key was written: a file, an environment variable, the command line.
Origin: TypeAlias = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition beyond the type. `words` completes the sentence "expected ..."."""

    words: str
    accepts: Callable[[Any], bool]


def between(low: float, high: float | None = None) -> Rule:
    """A number no smaller than `low` and, where given, no larger than `high`."""
    words = f"a number of at least {low}" if high is None else f"a number from {low} to {high}"
    return Rule(words, lambda value: low <= value and (high is None or value <= high))


def one_of(*choices: str) -> Rule:
    return Rule(_alternatives(choices), lambda value: value in choices)


def matches(pattern: str, words: str) -> Rule:
    """Text that matches the regular expression `pattern` from end to end."""
    compiled = re.compile(pattern)
    return Rule(words, lambda value: compiled.fullmatch(value) is not None)


def every(rule: Rule) -> Rule:
    """The same condition on each element of a list."""
    return Rule(f"a list, each element {rule.words}", lambda values: all(rule.accepts(value) for value in values))


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises ConfigurationError where it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None


def bind(
    cls: type[T],
    table: Mapping[str, Any],
    origin: Origin | Path | str,
    rules: Mapping[str, Rule] | None = None,
    prefix: str = "",
) -> T:
    """Make a `cls` from a parsed table.

    `rules` maps dotted keys (list positions left out: "inputs.name") to conditions that the types do not carry;
    `prefix` comes before the keys of a table that lies inside another ("preprocess.").
    Raises ConfigurationError for a key that is unknown or missing and for a value of the wrong type or out of bounds.
    """
    written_in: Origin = origin if callable(origin) else lambda _: str(origin)
    return _Binder(written_in, rules or {}).table(cls, table, prefix)


def unknown_key(origin: str, key: str, valid: list[str]) -> ConfigurationError:
    """The error for a key that nobody knows, naming the nearest one that exists."""
    near = difflib.get_close_matches(key, valid, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"valid keys: {', '.join(sorted(valid))}"
    return ConfigurationError(f'{origin}: unknown key "{key}"; {hint}')


class _Mismatch(Exception):
    """The value is not of the wanted type."""


class _Binder:
    def __init__(self, origin: Origin, rules: Mapping[str, Rule]) -> None:
        self._origin = origin
        self._rules = rules

    def table(self, cls: type[T], table: Mapping[str, Any], prefix: str) -> T:
        hints = get_type_hints(cls, include_extras=True)
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in table:
            if name not in fields:
                raise unknown_key(self._origin(prefix + name), prefix + name, [prefix + field for field in fields])
        for name, field in fields.items():
            if name not in table and _required(field):
                key = prefix + name
                raise ConfigurationError(f'{self._origin(key)}: "{key}" is missing; expected {_words(hints[name])}')
        return cls(**{name: self._field(hints[name], value, prefix + name) for name, value in table.items()})

    def _field(self, kind: Any, value: Any, key: str) -> Any:
        extra = self._rules.get(re.sub(r"\[\d+\]", "", key))
        try:
            converted = self._value(kind, value, key)
        except _Mismatch:
            raise self._wrong(key, _words(kind) if extra is None else extra.words, value) from None
        return converted if extra is None else self._checked([extra], converted, key, value)

    def _checked(self, rules: list[Rule], converted: Any, key: str, value: Any) -> Any:
        for rule in rules:
            if not rule.accepts(converted):
                raise self._wrong(key, rule.words, value)
        return converted

    def _value(self, kind: Any, value: Any, key: str) -> Any:
        origin = get_origin(kind)
        if kind is Any:
            return value
        if origin is Annotated:
            return self._checked(_annotated_rules(kind), self._value(get_args(kind)[0], value, key), key, value)
        if origin in (Union, types.UnionType):
            return self._first_fit(_options(kind), value, key)
        if origin is tuple:
            return self._list(get_args(kind)[0], value, key)
        if origin is Mapping:
            return self._mapping(get_args(kind)[1], value, key)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            if not isinstance(value, Mapping):
                raise _Mismatch
            return self.table(kind, value, key + ".")
        return _scalar(kind, value)

    def _first_fit(self, options: list[Any], value: Any, key: str) -> Any:
        for option in options:
            try:
                return self._value(option, value, key)
            except _Mismatch:
                continue
        raise _Mismatch

    def _list(self, kind: Any, value: Any, key: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _Mismatch
        if dataclasses.is_dataclass(kind):
            return tuple(self._field(kind, element, f"{key}[{index}]") for index, element in enumerate(value))
        return tuple(self._value(kind, element, key) for element in value)

    def _mapping(self, kind: Any, value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _Mismatch
        return {name: self._value(kind, element, f"{key}.{name}") for name, element in value.items()}

    def _wrong(self, key: str, expected: str, value: Any) -> ConfigurationError:
        return ConfigurationError(f"{self._origin(key)}: {key}: expected {expected}, got {_shown(value)}")


def _annotated_rules(kind: Any) -> list[Rule]:
    return [rule for rule in getattr(kind, "__metadata__", ()) if isinstance(rule, Rule)]


def _scalar(kind: Any, value: Any) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise _Mismatch
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    # `type is`, as True is an int and must not pass for one.
    if kind in (bool, int, str) and type(value) is kind:
        return value
    raise _Mismatch


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _options(kind: Any) -> list[Any]:
    return [option for option in get_args(kind) if option is not types.NoneType]


_WORDS = types.MappingProxyType(
    {bool: "true or false", int: "an integer", float: "a number", str: "a string", Path: "a path"}
)


def _words(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        rules = _annotated_rules(kind)
        return rules[0].words if rules else _words(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_words(option) for option in _options(kind))
    if origin is Literal:
        return _alternatives(get_args(kind))
    if origin is tuple:
        element = get_args(kind)[0]
        return "a list of tables" if dataclasses.is_dataclass(element) else f"a list, each element {_words(element)}"
    if origin is Mapping:
        return "a table of strings" if get_args(kind)[1] is str else "a table"
    return "a table" if dataclasses.is_dataclass(kind) else _WORDS[kind]


def _alternatives(choices: tuple[str, ...]) -> str:
    quoted = [f'"{choice}"' for choice in choices]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value[:80]}"'
    if isinstance(value, Mapping):
        return "a table"
    return str(value)[:80]
