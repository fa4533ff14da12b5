"""Text, JSON and YAML from untrusted files: UTF-8 only, every fault a ValueError that names the file.

Lines end in \\n, \\r\\n or \\r; a byte order mark at the start is dropped.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from stepalign.support.local_files import file_size

MAX_BYTES = 2**28
"""Largest size of a text file."""
MAX_LINE = 2**20
"""Most characters in a line of JSON."""
WIDE_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Byte order marks of UTF-16 and UTF-32."""
MAX_DEPTH = 50
"""Most levels of lists and mappings in YAML; a recipe has 3, a sweep 6."""
MAX_VALUES = 100_000
"""Most values in YAML with its aliases expanded; nine lines of aliases can expand to a billion."""
NOTHING = ("none", "null", "~")
"""Words for a missing optional value, in any case of letters."""


def is_nothing(value: object) -> bool:
    """Whether a value is None or a word for it: null, None, none or ~."""
    return value is None or (isinstance(value, str) and value.lower() in NOTHING)


def read_text(path: Path, what: str) -> str:
    """The text of a file; raises ValueError, beginning with `what`, if the file is missing, not regular, longer than
    `MAX_BYTES` or not UTF-8."""
    try:
        size = file_size(path)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if size > MAX_BYTES:
        raise ValueError(f"{what}: {path} has {size:,} bytes; at most {MAX_BYTES:,} are read as text")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{what}: {str(path)!r} cannot be read: {error.strerror}") from error
    if is_wide(content):
        raise ValueError(f"{what}: {path} is UTF-16 or UTF-32 text; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: {path} is not UTF-8 text: {error}; save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_wide(content: bytes) -> bool:
    """Whether a text is UTF-16 or UTF-32, by its byte order mark or its first character."""
    return content.startswith(WIDE_MARKS) or (len(content) > 1 and 0 in content[:2])


def parse_json(text: str | bytes, what: str) -> Any:
    """The value of a JSON text; raises ValueError beginning with `what`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply to be read as JSON") from None
    except ValueError as error:  # also for a number of thousands of digits, and for bytes that are not UTF-8
        raise ValueError(f"{what} is not valid JSON: {error}") from error


def json_lines(text: str, what: str, *, longest: int = MAX_LINE) -> Iterator[tuple[str, Any]]:
    """The location of each line of a JSONL text, such as "FILE line 3", and its value; blank lines are skipped.

    Raises ValueError naming a line that is not JSON or has more than `longest` characters.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{what} line {number}"
        if len(line) > longest:
            raise ValueError(f"{where} has {len(line):,} characters; at most {longest:,} are read")
        yield where, parse_json(line, where)


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text; raises ValueError, beginning with `what`, also for one that expands beyond memory."""
    try:
        _check_depth(text, what)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _num_values(node, {}) > MAX_VALUES:
                raise ValueError(f"{what} has more than {MAX_VALUES} values once its aliases are written out")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, KeyError, OverflowError) as error:  # such as the date 2026-13-40
        text = str(error)
        raise ValueError(text if text.startswith(what) else f"{what} is not valid YAML: {text}") from error


def check_text(text: str, what: str) -> str:
    """The text itself; raises ValueError, beginning with `what`, where it holds half of a character.

    JSON writes an emoji as two halves, so that a text cut in its middle is no text any more: nothing can encode it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(
            f"{what} holds half of a character, \\u{ord(half):04x} at position {error.start}: "
            f"{text[max(0, error.start - 40) : error.start + 40]!a}; it was cut in the middle of one, restore it "
            "or take it out"
        ) from None
    return text


def _check_depth(text: str, what: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"{what} is nested more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values under a node with aliases expanded; raises ValueError for an alias inside its own value."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise ValueError("an alias refers to what it is part of")
        return known[id(node)]
    known[id(node)] = 0
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_num_values(item, known) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_num_values(part, known) for pair in node.value for part in pair)
    known[id(node)] = total
    return total
