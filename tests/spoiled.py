"""Changes of a part's content: one weight, some text, one bit."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file


def scale_a_weight(path: Path) -> None:
    weights = load_file(path)
    weights[max(weights)] *= 1.01
    save_file(weights, path, metadata={"format": "pt"})


def edit(path: Path, old: str, new: str) -> None:
    """Replace the first of a text that must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def flip(path: Path) -> None:
    """Change a bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
