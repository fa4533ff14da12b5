"""Help on the fields of a recipe: the name, type and value of each, and the string under it in the code."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from docstring_parser import parse_from_object

from stepalign.support.config import type_name

MAX_WIDTH = 100


def describe_recipe(program: str, recipe: Any) -> str:
    """Every field of a recipe as text: its flag and type, its value in this recipe, its meaning."""
    lines = [f"usage: {program} {recipe.name} [--output DIR] [--field value ...]", ""]
    lines += [f"Fields of {recipe.name}, with their values; the same names, nested, are those of a YAML file.", ""]
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    for flag, kind, value, meaning in _fields(recipe):
        lines.append(f"  --{flag} {kind}  ({value})")
        lines += textwrap.wrap(
            meaning, width, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False
        )
    return "\n".join(lines)


def _fields(value: Any, prefix: str = "", kinds: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Flag, type, value and meaning of every field; `kinds` are the choices of `kind` where the value is one of several
    dataclasses."""
    hints, meanings = typing.get_type_hints(type(value)), _meanings(type(value))
    for field in dataclasses.fields(value):
        path, hint, item = f"{prefix}{field.name}", hints[field.name], getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            members = typing.get_args(hint)
            yield from _fields(item, f"{path}.", "|".join(type_name(_kind_of(member)) for member in members))
        else:
            kind = kinds if field.name == "kind" and kinds else type_name(hint)
            yield path, kind, _plain(item), meanings.get(field.name, "")


def _kind_of(member: type) -> Any:
    """The type of the field by which a member of a union of dataclasses is chosen."""
    return typing.get_type_hints(member)["kind"]


def _meanings(kind: type) -> dict[str, str]:
    """The string under each field of a dataclass, inherited fields included."""
    return {
        field.arg_name: " ".join((field.description or "").split())
        for base in reversed(kind.__mro__)
        if dataclasses.is_dataclass(base)
        for field in parse_from_object(base).params
    }


def _plain(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
