"""Digests of what a short run of every command writes, to see that a change of the code changes no result.

python benchmarks/same_results.py --output build/before        # before the change
python benchmarks/same_results.py --output build/after --against build/before/digests.json

Everything is compared byte for byte but what two runs of the same program do not repeat: seconds, checkpoints (which
hold seconds), and the records of files made of these. Exit status 1 names the files that differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

SMALL = "--base.num_steps 8 --training.num_rounds 2 --training.prompts_per_round 4 --evaluation.num_prompts 6"
GENERATE = "generate miniature --prompts miniature --num-prompts 6 --num_steps 8"
COMMANDS = (
    f"train gradspo-miniature {SMALL} --guard.every 1 --guard.num_prompts 4 --output {{out}}/gradspo",
    f"train spo-miniature {SMALL} --training.comparisons_per_update 16 --output {{out}}/spo",
    "train-judge spm-miniature --data.num_rows 200 --evaluation.num_pairs 40 --training.num_steps 4 "
    "--data.cache {out}/cache --output {out}/spm",
    f"{GENERATE} --output {{out}}/base",
    f"{GENERATE} --adapters {{out}}/gradspo/adapter --output {{out}}/aligned",
    "evaluate {out}/base --scorers miniature-aesthetic miniature-alignment miniature-pickscore --wrong-prompts",
    "evaluate {out}/aligned --scorers miniature-aesthetic miniature-alignment miniature-pickscore --wrong-prompts",
    "compare {out}/base {out}/aligned --output {out}/comparison",
)
LEFT_OUT = re.compile(r"(^|/)(\.|cache/|files\.json$|stepalign\.json$|.*checkpoint\.pt$)")
"""Files that hold seconds, digests of such files, or the place of the directory."""
SECONDS = re.compile(
    r'("[a-z_]*seconds": |"loaded": )[\d.e-]+|\b[\d.]+ (s|seconds|minutes|min)\b|timing seconds</th>.*?</tr>', re.DOTALL
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="new directory for the results and digests.json")
    parser.add_argument("--against", type=Path, default=None, help="digests.json of another run")
    parser.add_argument("--program", default="stepalign.cli", help="module that is run (%(default)s)")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True)
    for command in COMMANDS:
        words = command.format(out=output).split()
        subprocess.run([sys.executable, "-m", arguments.program, *words], check=True, stdout=subprocess.DEVNULL)
    digests = {name: digest(output, name) for name in names(output)}
    (output / "digests.json").write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    print(f"{len(digests)} files")
    if arguments.against is None:
        return 0
    before = json.loads(arguments.against.read_text(encoding="utf-8"))
    differ = sorted(name for name in before.keys() | digests.keys() if before.get(name) != digests.get(name))
    print("\n".join(f"differs: {name}" for name in differ) or "all equal")
    return int(bool(differ))


def names(folder: Path) -> list[str]:
    """Files of a folder that two runs should write alike."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in found if not LEFT_OUT.search(name)]


def digest(folder: Path, name: str) -> str:
    """SHA-256 of a file; of text without seconds and without the folder's own path."""
    content = (folder / name).read_bytes()
    if Path(name).suffix in (".html", ".json", ".jsonl", ".md", ".yaml"):
        text = content.decode("utf-8").replace(str(folder), "")
        content = SECONDS.sub(r"\1", text).encode()
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
