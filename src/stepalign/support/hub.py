"""Names on the Hugging Face hub: which ones are, and one bounded attempt to reach it before anything is asked of it.

A hub that does not answer is asked once and not again: the process goes on as with HF_HUB_OFFLINE=1, with what the
cache has.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
FILE_ENDINGS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".zip", ".tar", ".gz", ".png", ".jpg"),
    *(".json", ".jsonl", ".parquet", ".arrow", ".txt", ".csv", ".tsv", ".yaml", ".yml", ".caption"),
)
_answers: list[str] = []
"""What came of asking, once it has been."""
PATIENCE = 3.0
"""Seconds in which the hub has to answer; the environment variable HF_HUB_ETAG_TIMEOUT gives it more."""


def is_hub_id(name: str) -> bool:
    """Whether a name can be one of the hub, exactly owner/name; what looks like a path on this machine is none."""
    if HUB_ID.fullmatch(name) is None or name.lower().endswith(FILE_ENDINGS):
        return False
    return not Path(name).parent.is_dir()  # runs/mine where there is a folder runs


def split_hub_file(name: str) -> tuple[str, str] | None:
    """Repository and file of owner/name/file on the hub; None for a name that cannot be one."""
    repository, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    if not file or not is_hub_id(repository) or ".." in file.split("/") or "\\" in file:
        return None
    return repository, file


def reach_hub() -> str:
    """Make sure that the hub answers, or that it is not asked; returns what `out_of_reach` does, and raises nothing, as
    what is in the cache can be had without the hub."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answers:
        return out_of_reach()
    _answers.append(reason := _ask())
    if reason:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported later
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return reason


def check_folder(name: str, field: str) -> None:
    """Raise ValueError for a name that is no folder on this machine and cannot be one of the hub."""
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"{field}: {name!r} is a single file; give a folder with a config.json, or a hub id")
    if not path.is_dir() and not is_hub_id(name):
        raise ValueError(f"{field}: there is no folder {name!r}, and it is not a hub id (owner/name)")


def ask_hub(name: str, what: str) -> None:
    """Make ready for a look-up; raises ValueError for a name that is no `what` on this machine and none of the hub."""
    if not is_hub_id(name):
        raise ValueError(f"there is no {what} {name!r}, and it is not a hub id (owner/name)")
    reach_hub()


def not_on_hub(name: str, what: str) -> str:
    """What to say of a name that is nothing on this machine and could not be had from the hub."""
    hub = out_of_reach() or "the hub cannot be reached or does not have it"
    return f"{name!r} is no {what} on this machine, and {hub}"


def out_of_reach() -> str:
    """That the hub, which has been asked for, cannot be reached, and why; nothing where it can."""
    return _answers[0] if _answers else ""


def _ask() -> str:
    """That the hub does not answer, and why, or nothing."""
    from huggingface_hub import constants, get_session

    patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE)
    found: list[str] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=patience, follow_redirects=False)
            found.append("")
        except Exception as error:  # the network's, of any kind
            found.append(str(error).strip() or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)  # looking up an address takes as long as it likes
    thread.start()
    thread.join(patience)
    reason = found[0] if found else f"no answer in {patience:g} seconds"
    return f"the hub cannot be reached at {constants.ENDPOINT} ({reason})" if reason else ""
