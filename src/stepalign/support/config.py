"""Recipes as frozen dataclasses from YAML files and command-line flags; pydantic converts the value of each field."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from stepalign.support.errors import nearest
from stepalign.support.parsing import check_text, is_nothing, parse_yaml, read_text
from stepalign.support.relative_paths import absolute

T = TypeVar("T")
CONFIG = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)
TYPES = {int: "INTEGER", float: "NUMBER", str: "TEXT", bool: "true|false", types.NoneType: "none"}
PLAIN = (str, int, float, types.NoneType)
"""Types of values in YAML that a field may hold, apart from true and false."""


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
        part = getattr(value, key)
        if not dataclasses.is_dataclass(part):
            new[key] = _convert(change, hints[key], path)
        elif isinstance(change, Mapping):
            new[key] = override(_member(part, hints[key], change, path), change, f"{path}.")
        else:
            raise ValueError(f"{path} has fields of its own, such as {path}.{_first_field(part)}; got {change!r}")
    return dataclasses.replace(value, **new)  # type: ignore[type-var]


def load_named(name: str, known: Mapping[str, T], blank: Callable[[str], T]) -> T:
    """A named recipe, or the recipe in a YAML file, which may start from a named one under `recipe:`.

    `blank` makes the recipe that a file without `recipe:` starts from, given the file's name. Raises ValueError for an
    unknown name or key, naming the nearest, and for a value of the wrong type. A path that begins with ./ or ../ is
    relative to the file if it exists there.
    """
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"recipe: there is none named {name!r}{nearest(name, known)}; known: {', '.join(known)}")
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
    """The whole recipe as YAML that `load_named` reads."""
    return yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True)


def absolute_path(name: str) -> str:
    """The absolute path of an existing file or folder; any other name unchanged."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def public_name(name: str) -> str:
    """A name without this machine's folders: the last part of an absolute path, any other name unchanged."""
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
    """Raise ValueError for a recipe's name that is no plain directory name, and so could lead out of one."""
    if name in ("", ".", "..") or any(sign in name for sign in "/\\:") or not name.isprintable():
        raise ValueError(f"{what}: the recipe's name {name!r} cannot name a directory")


def require(holds: bool, field: str, value: object, what: str) -> None:
    """Raise ValueError with the field, its value and the requirement unless a condition holds."""
    if not holds:
        raise ValueError(f"{field} must be {what}, got {value}")


def type_name(hint: Any) -> str:
    """Notation of a field's values in help and in errors: INTEGER, fast|slow, NUMBER|none, TEXT ... and the like."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Union | types.UnionType:
            return "|".join(map(type_name, arguments))
        case typing.Literal:
            return "|".join(map(str, arguments))
        case builtin if builtin is tuple:
            if arguments[-1] is Ellipsis:
                return f"{type_name(arguments[0])} ..."
            return " ".join(map(type_name, arguments))
    return TYPES[hint]


def to_plain(value: Any) -> Any:
    """A dataclass as nested dicts and lists."""
    if dataclasses.is_dataclass(value):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _read(text: str) -> Any:
    try:
        return parse_yaml(text, "value") if text else text
    except ValueError:  # text that is not YAML
        return text


def _first_field(part: Any) -> str:
    return dataclasses.fields(part)[0].name


def _member(part: Any, hint: Any, change: Mapping[Any, Any], path: str) -> Any:
    """The dataclass that a nested change starts from: the present one, or another of its union, by `kind`."""
    members = typing.get_args(hint)
    if not members or change.get("kind", part.kind) == part.kind:
        return part
    kinds = {typing.get_args(typing.get_type_hints(member)["kind"])[0]: member for member in members}
    kind = _convert(change["kind"], Literal[tuple(kinds)], f"{path}.kind")
    return kinds[kind]()


def _convert(value: Any, hint: Any, path: str) -> Any:
    """The value as the type of a field, where nothing is lost; one value stands for a tuple of any length."""
    kinds = {typing.get_origin(kind) or kind for kind in (hint, *typing.get_args(hint))}
    listed = list(value) if isinstance(value, list | tuple) else [value]
    for text in (item for item in listed if isinstance(item, str)):
        check_text(text, path)
    given = listed if tuple in kinds else value
    if is_nothing(value) and kinds & {types.NoneType, Ellipsis}:
        given = () if Ellipsis in kinds else None
    elif int in kinds and isinstance(value, str):
        with suppress(ValueError):
            given = float(value)  # YAML reads 1e4 as text
    allowed = (bool, types.NoneType) if bool in kinds else PLAIN
    with suppress(ValidationError):
        if all(type(item) in allowed for item in listed):
            return TypeAdapter(hint, config=CONFIG).validate_python(given)
    raise ValueError(f"{path} takes {type_name(hint)}; got {value!r}")
