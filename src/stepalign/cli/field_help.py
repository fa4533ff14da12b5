"""Help on the fields of settings: the name, type and value of each, and the string under it in the code."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from docstring_parser import parse_from_object

from stepalign.support.config import type_name

MAX_WIDTH = 100


class FieldHelp(argparse.Action):
    """`--help`: the arguments of a command, then every field of the settings that the command takes."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, *, settings: Callable[[argparse.Namespace], Any], help: str
    ) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)
        self._settings = settings

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        parser.print_help()
        if (settings := self._settings(namespace)) is not None:
            print(f"\n{describe_fields(settings)}")
        parser.exit()


def describe_fields(settings: Any) -> str:
    """Every field of a nested dataclass as text: its flag and type, its value, its meaning."""
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    lines = ["fields, with their values:"]
    for flag, kind, value, meaning in _fields(settings):
        lines.append(f"  --{flag} {kind}  ({value})")
        lines += [f"        {line}" for line in textwrap.wrap(meaning, width - 8, break_on_hyphens=False)]
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
