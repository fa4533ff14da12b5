"""Generators that integers decide."""

from __future__ import annotations

from itertools import product

import pytest

from stepalign.core.seeding import Purpose, generator_for


@pytest.mark.parametrize("purpose", Purpose)
def test_keys_of_any_length_have_generators_of_their_own(purpose: Purpose) -> None:
    """SeedSequence alone takes (5) and (5, 0) for the same."""
    keys = [key for length in range(4) for key in product((0, 1, 2, 5), repeat=length)]
    seeds = [generator_for(0, purpose, *key).initial_seed() for key in keys]
    assert len(set(seeds)) == len(keys) == 1 + 4 + 16 + 64


def test_seeds_and_purposes_are_told_apart() -> None:
    seeds = [generator_for(seed, purpose, 3).initial_seed() for seed in range(3) for purpose in Purpose]
    assert len(set(seeds)) == len(seeds)
