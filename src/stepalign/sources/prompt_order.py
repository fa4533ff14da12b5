"""The order in which a run goes through its prompts."""

from __future__ import annotations

import hashlib
import json

from stepalign.core.seeding import EpochOrder, Purpose


class PromptStream:
    """Endless epochs over prompts, each in an order of its own that the seed and the epoch decide."""

    def __init__(self, prompts: list[str], *, seed: int) -> None:
        if not prompts:
            raise ValueError("prompts: none were given")
        self.prompts = prompts
        self.digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        self._order = EpochOrder(len(prompts), seed=seed, purpose=Purpose.PROMPT_ORDER)

    def __getitem__(self, position: int) -> str:
        return self.prompts[self._order[position]]
