"""Small files with something wrong in them, for the command lines of `wrong_inputs`."""

from __future__ import annotations

from pathlib import Path

LAUGHS = "a: &a [ha, ha]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = {
    "good.txt": "a large red circle on a navy background\na small blue square on a white background\n",
    "one.txt": "a large red circle on a navy background\n",
    "empty.txt": "\n \n",
    "list.json": '{"a": "b"}',
    "deep.json": "[" * 100_000,
    "rows.jsonl": '"a"\n{"other": "b"}\n',
    "half.jsonl": '{"prompt": "a"}\n{"prompt": "b \\ud83d c"}\n',
    "half.json": '["b \\ud83d c"]',
    "numbers.json": "[1, 2]",
    "prompts.rtf": "a cat",
    "bad.yaml": "a: [1",
    "deep.yaml": "a: " + "[" * 5000,
    "laughs.yaml": LAUGHS,
    "circle.yaml": "a: &a [*a]",
    "list.yaml": "- a\n",
    "nothing.yaml": "",
    "unknown.yaml": "recipe: gradspo-sd51\n",
    "start.yaml": "recipe: [a, b]\n",
    "date.yaml": "recipe: gradspo-miniature\nprompts: 2026-13-40\n",
    "field.yaml": "recipe: gradspo-miniature\nlerning_rate: 1\n",
    "kind.yaml": "recipe: gradspo-miniature\ntraining: 3\n",
    "keys.yaml": "recipe: gradspo-miniature\n1: 2\n",
    "inside.yaml": "recipe: gradspo-miniature\nbase: {guidance_scale: {a: 1}}\n",
    "object.yaml": "recipe: !!python/object:os.system {}\n",
    "bytes.yaml": "recipe: gradspo-miniature\nname: !!binary aGk=\n",
    "away.yaml": "recipe: gradspo-miniature\nname: ../../away\n",
    "sweep.yaml": "recipe: gradspo-miniature\nseeds: [0]\ntables: {t: {a: {}, b: {seed: 1}}}\n",
    "sweep-seeds.yaml": "recipe: gradspo-miniature\nseeds: [a]\ntables: {t: {a: {}}}\n",
    "sweep-tables.yaml": "recipe: gradspo-miniature\nseeds: [0]\ntables: []\n",
    "sweep-row.yaml": "recipe: gradspo-miniature\nseeds: [0]\ntables: {t: {a: {lerning_rate: 1}}}\n",
    "sweep-changes.yaml": "recipe: gradspo-miniature\nseeds: [0]\nchanges: 3\ntables: {t: {a: {}}}\n",
    "sweep-more.yaml": "recipe: gradspo-miniature\nseeds: [0]\ntabels: {t: {a: {}}}\n",
    "sweep-start.yaml": "recipe: gradspo-sd51\nseeds: [0]\ntables: {t: {a: {}}}\n",
    "sweep-away.yaml": "recipe: gradspo-miniature\nseeds: [0]\ntables: {t: {a: {name: ../../away}}}\n",
    "judge.yaml": "model: miniature\n",
    "text.safetensors": "no tensors",
    "text.bin": "no tensors",
    "thesis/chapter.tex": "precious",
    "damaged/generation.json": "{",
    "deep/generation.json": "[" * 100_000,
    "typed/generation.json": '{"settings": 3}',
    "wrongimages/manifest.jsonl": '{"prompt": "a", "file": "0.png"}\n{"prompt": 3, "file": "1.png"}\n',
    "halfimages/manifest.jsonl": '{"prompt": "a \\ud83d", "file": "0.png"}\n',
    "outside/manifest.jsonl": '{"prompt": "a", "file": "../good.txt"}\n',
    "deepimages/manifest.jsonl": "[" * 100_000 + "\n",
    "gone/manifest.jsonl": '{"prompt": "a", "file": "0.png"}\n',
    "text/manifest.jsonl": '{"prompt": "a", "file": "0.png"}\n',
    "text/0.png": "no image",
    "pairs.jsonl": '{"prompt": "a"}\n',
    "pairs.json": "[]",
    "nopairs.jsonl": "\n",
    "deepconfig.json": '{"a":' * 100_000,
    "config.json": "[]",
    "judge/config.json": "{}",
    "oldrun/recipe.yaml": "name: x\n",
    "brokenrun/recipe.yaml": "name: x\n",
    "brokenrun/summary.json": "{",
    "deeprun/recipe.yaml": LAUGHS,
}


def write_files(folder: Path) -> None:
    """Write all the files that the command lines name."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "latin.txt").write_bytes("ein Bücherregal\n".encode("latin-1"))
    (folder / "utf16.txt").write_bytes("a cat\n".encode("utf-16"))
    (folder / "folder.yaml").mkdir()
    (folder / "folder.txt").mkdir()
