"""Hugging Face hub: recognition of hub ids, and one bounded attempt to reach the hub before any request.

After a failed attempt the process continues as with HF_HUB_OFFLINE=1, with the content of the cache.
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
"""Result of the attempt, once it was made."""
PATIENCE = 3.0
"""Seconds for the hub to answer; the environment variable HF_HUB_ETAG_TIMEOUT can extend them."""


def is_hub_id(name: str) -> bool:
    """Whether a name can be a hub id: exactly owner/name, and not a path on this machine."""
    if HUB_ID.fullmatch(name) is None or name.lower().endswith(FILE_ENDINGS):
        return False
    return not Path(name).parent.is_dir()  # runs/mine where there is a folder runs


def split_hub_file(name: str) -> tuple[str, str] | None:
    """Repository and file of owner/name/file on the hub; None for other names."""
    repository, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    if not file or not is_hub_id(repository) or ".." in file.split("/") or "\\" in file:
        return None
    return repository, file


def reach_hub() -> str:
    """Check once that the hub answers, and go offline if not; returns the result of `out_of_reach`, and raises nothing,
    since the cache works without the hub."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answers:
        return out_of_reach()
    _answers.append(reason := _ask())
    if reason:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries imported later
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return reason


def check_folder(name: str, field: str) -> None:
    """Raise ValueError for a name that is neither a folder on this machine nor a possible hub id."""
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"{field}: {name!r} is a single file; give a folder with a config.json, or a hub id")
    if not path.is_dir() and not is_hub_id(name):
        raise ValueError(f"{field}: there is no folder {name!r}, and it is not a hub id (owner/name)")


def ask_hub(name: str, what: str) -> None:
    """Prepare a look-up; raises ValueError for a name that is neither a `what` on this machine nor a hub id."""
    if not is_hub_id(name):
        raise ValueError(f"there is no {what} {name!r}, and it is not a hub id (owner/name)")
    reach_hub()


def not_on_hub(name: str, what: str) -> str:
    """The message for a name that is not on this machine and could not be loaded from the hub."""
    hub = out_of_reach() or "the hub cannot be reached or does not have it"
    return f"{name!r} is no {what} on this machine, and {hub}"


def out_of_reach() -> str:
    """The message that the hub cannot be reached, with the reason; "" where it can."""
    return _answers[0] if _answers else ""


def _ask() -> str:
    """The reason why the hub does not answer, or ""."""
    from huggingface_hub import constants, get_session

    patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE)
    found: list[str] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=patience, follow_redirects=False)
            found.append("")
        except Exception as error:  # errors of the network, of any kind
            found.append(str(error).strip() or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)  # the look-up of an address has no timeout
    thread.start()
    thread.join(patience)
    reason = found[0] if found else f"no answer in {patience:g} seconds"
    return f"the hub cannot be reached at {constants.ENDPOINT} ({reason})" if reason else ""
