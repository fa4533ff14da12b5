"""Frozen dataclasses from nested plain values: what YAML files and command lines say."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from stepalign.support.parsing import check_text, is_nothing, parse_yaml, read_text
from stepalign.support.relative_paths import absolute

T = TypeVar("T")
NUMBERS = {int: "a whole number", float: "a number", bool: "true or false"}


def override(value: T, changes: Mapping[Any, Any], prefix: str = "") -> T:
    """A frozen dataclass with some fields changed, nested like the dataclass itself.

    Raises ValueError for an unknown field, naming the nearest, and for a value that does not fit its field.
    """
    hints = typing.get_type_hints(type(value))
    new: dict[str, Any] = {}
    for key, change in changes.items():
        path = f"{prefix}{key}"
        if key not in hints:
            raise ValueError(f"there is no field {path}{nearest(path, [f'{prefix}{name}' for name in hints])}")
        if not dataclasses.is_dataclass(hints[key]):
            new[key] = _convert(change, hints[key], path)
        elif isinstance(change, Mapping):
            new[key] = override(getattr(value, key), change, f"{path}.")
        else:
            raise ValueError(f"{path} has fields of its own, such as {path}.{_first_field(hints[key])}; got {change!r}")
    return dataclasses.replace(value, **new)  # type: ignore[type-var]


def load_named(name: str, known: Mapping[str, T], blank: Callable[[str], T]) -> T:
    """A named recipe, or the recipe in a YAML file, which may start from a named one under `recipe:`.

    `blank` makes the one that a file without `recipe:` starts from, out of the file's name. Raises ValueError for an
    unknown name or key, naming the nearest, and for a value of the wrong kind. Paths that begin with ./ or ../ are
    relative to the file where they exist as seen from it.
    """
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"recipe: there is none called {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    if not path.is_file():
        raise ValueError(f"recipe: there is no file {name!r}")
    values = parse_yaml(read_text(path, "recipe"), f"recipe: {name}")
    if not isinstance(values, dict):
        raise ValueError(f"recipe: {name} must hold fields and their values, not {type(values).__name__}")
    values = absolute(values, path.parent)
    start = values.pop("recipe", None)
    if start is not None and str(start) not in known:
        raise ValueError(f"recipe: {name} starts from {start!r}{nearest(str(start), known)}")
    return change(blank(path.stem) if start is None else known[start], values)


def change(recipe: T, values: Mapping[Any, Any]) -> T:
    """The recipe with some fields changed, nested as in YAML; raises ValueError as `override` does."""
    try:
        return override(recipe, values)
    except ValueError as error:
        raise ValueError(f"recipe: {error}") from None


def to_yaml(recipe: Any) -> str:
    """The whole recipe, as `load_named` reads it."""
    return yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True)


def absolute_path(name: str) -> str:
    """What is a file or folder here, named from the root, so that it is found from any directory; else unchanged."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def public_name(name: str) -> str:
    """A name for readers elsewhere: of a path on this machine only its last part."""
    return Path(name).name if Path(name).is_absolute() else name


def parse_flags(words: Sequence[str]) -> dict[str, Any]:
    """`--a.b 1 --c x y` (or `--a.b=1`) as {"a": {"b": 1}, "c": ["x", "y"]}, values read as YAML reads them."""
    changes: dict[str, Any] = {}
    index = 0
    while index < len(words):
        word = words[index]
        if not word.startswith("--") or len(word) == 2:
            raise ValueError(f"expected --field value, got {word!r}")
        flag, _, inline = word[2:].partition("=")
        values = [inline] if "=" in word else []
        index += 1
        while index < len(words) and not words[index].startswith("--"):
            values.append(words[index])
            index += 1
        if not values:
            raise ValueError(f"--{flag} needs a value")
        *parents, last = flag.replace("-", "_").split(".")
        target = changes
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ValueError(f"--{flag} sets a field of --{parent}, which already has a value")
        read = [_read(item) for item in values]
        if last in target:
            raise ValueError(f"--{flag} is given twice, or beside a field of its own")
        target[last] = read[0] if len(read) == 1 else read
    return changes


def check_directory_name(name: str, what: str) -> None:
    """Raise ValueError for a name, which may come from somebody else's file, that would lead out of a directory."""
    if name in ("", ".", "..") or any(sign in name for sign in "/\\:") or not name.isprintable():
        raise ValueError(f"{what}: the recipe's name {name!r} cannot name a directory")


def require(holds: bool, field: str, value: object, what: str) -> None:
    """Raise ValueError, naming a field and what it must be, unless a condition holds."""
    if not holds:
        raise ValueError(f"{field} must be {what}, got {value}")


def nearest(word: str, known: Iterable[str]) -> str:
    """ " (nearest: ...)" with the known words most like this one, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" (nearest: {', '.join(close)})" if close else ""


def to_plain(value: Any) -> Any:
    """A dataclass as nested dicts and lists."""
    if dataclasses.is_dataclass(value):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _read(text: str) -> Any:
    try:
        return parse_yaml(text, "value") if text else text
    except ValueError:  # what is no YAML is text
        return text


def _first_field(kind: Any) -> str:
    return dataclasses.fields(kind)[0].name


def _convert(value: Any, hint: Any, path: str) -> Any:
    """The value as the type a field is annotated with, where nothing is lost."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if is_nothing(value) and type(None) in arguments:
            return None
        return _convert(value, next(kind for kind in arguments if kind is not type(None)), path)
    if typing.get_origin(hint) is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{path} is one of {', '.join(map(str, arguments))}; got {value!r}")
    if typing.get_origin(hint) is tuple:
        if is_nothing(value) and arguments[-1] is Ellipsis:
            return ()
        items = list(value) if isinstance(value, list | tuple) else [value]
        kinds = arguments[:1] * len(items) if arguments[-1] is Ellipsis else arguments
        if len(items) != len(kinds):
            raise ValueError(f"{path} takes {len(kinds)} values, got {len(items)}")
        return tuple(_convert(item, kind, path) for item, kind in zip(items, kinds, strict=True))
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return check_text(str(value), path)
    if hint in NUMBERS:
        number = _number(value, hint)
        if number is not None:
            return number
        raise ValueError(f"{path} is {NUMBERS[hint]}; got {value!r}")
    raise ValueError(f"{path} cannot be {value!r}")


def _number(value: Any, hint: type) -> bool | int | float | None:
    if hint is bool or isinstance(value, bool):
        return value if hint is bool and isinstance(value, bool) else None
    try:
        number = float(value)  # YAML reads 1e-4 as text
    except (TypeError, ValueError):
        return None
    if hint is int:
        return int(number) if number.is_integer() else None
    return number if math.isfinite(number) else None
