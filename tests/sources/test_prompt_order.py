"""The order prompts come in."""

from __future__ import annotations

import pytest

from stepalign.core.seeding import EpochOrder, Purpose
from stepalign.sources.prompt_order import PromptStream


def epoch(stream: PromptStream, number: int) -> list[str]:
    size = len(stream.prompts)
    return [stream[position] for position in range(number * size, (number + 1) * size)]


def test_every_epoch_has_every_prompt_once_in_an_order_of_its_own() -> None:
    prompts = [str(number) for number in range(20)]
    stream = PromptStream(prompts, seed=0)
    epochs = [epoch(stream, number) for number in range(4)]
    assert all(sorted(order) == sorted(prompts) for order in epochs)
    assert len({tuple(order) for order in [prompts, *epochs]}) == 5


def test_the_order_is_decided_by_the_seed() -> None:
    prompts = [str(number) for number in range(20)]
    orders = [epoch(PromptStream(prompts, seed=seed), 1) for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


def test_the_order_does_not_depend_on_what_was_read_before() -> None:
    prompts = [str(number) for number in range(20)]
    onward, jumping = PromptStream(prompts, seed=0), PromptStream(prompts, seed=0)
    for number in range(3):
        epoch(onward, number)
    assert [jumping[position] for position in (79, 5, 61, 60)] == [onward[position] for position in (79, 5, 61, 60)]


def test_a_stream_of_no_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="prompts: none were given"):
        PromptStream([], seed=0)


def test_an_order_of_rows_is_an_endless_row_of_epochs_that_seed_and_purpose_decide() -> None:
    """The ninth epoch of seven rows is the same whether others were asked for before or not."""
    order = EpochOrder(7, seed=0, purpose=Purpose.JUDGE_ORDER)
    epochs = [[order[position] for position in range(start, start + 7)] for start in range(0, 63, 7)]
    assert all(sorted(rows) == list(range(7)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) > 7
    jumping = EpochOrder(7, seed=0, purpose=Purpose.JUDGE_ORDER)
    assert [jumping[position] for position in (56, 3, 62, 0)] == [
        epochs[8][0],
        epochs[0][3],
        epochs[8][6],
        epochs[0][0],
    ]
    for seed, purpose in ((1, Purpose.JUDGE_ORDER), (0, Purpose.PROMPT_ORDER)):
        other = EpochOrder(7, seed=seed, purpose=purpose)
        assert [[other[position] for position in range(start, start + 7)] for start in range(0, 63, 7)] != epochs


def test_prompts_come_in_the_order_of_their_rows() -> None:
    order = EpochOrder(20, seed=5, purpose=Purpose.PROMPT_ORDER)
    stream = PromptStream([str(number) for number in range(20)], seed=5)
    assert [stream[position] for position in range(45)] == [str(order[position]) for position in range(45)]
