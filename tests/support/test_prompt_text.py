"""Prompts that no tokenizer takes, and syntax of other programs that is only text here."""

from __future__ import annotations

import pytest

from stepalign.support.prompt_text import MAX_PROMPT, check_prompt, weighting_note


@pytest.mark.parametrize("prompt", ["a cat", " ", "é" * MAX_PROMPT, "a\nb", "\ufeff", "🙂"])
def test_a_prompt_is_returned_as_it_is(prompt: str) -> None:
    if prompt.strip():
        assert check_prompt(prompt, "here") == prompt
    else:
        with pytest.raises(ValueError, match=r"^here is empty"):
            check_prompt(prompt, "here")


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (None, "here is of type NoneType, not text"),
        (["a"], "here is of type list, not text"),
        ("", "here is empty"),
        ("a" * (MAX_PROMPT + 1), "here has 10,001 characters; at most 10,000 are read"),
        ("a\0b", "here holds a NUL character, at position 1"),
        ("a \ud83d", "here holds half of a character"),
    ],
)
def test_what_is_no_prompt_is_named(prompt: object, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        check_prompt(prompt, "here")


@pytest.mark.parametrize(
    ("prompt", "place"),
    [
        ("a (red:1.3) cat", "(red:1.3)"),
        ("a (very red: .5) cat", "(very red: .5)"),
        ("a (dog:-1) cat", "(dog:-1)"),
        ("a ((red)) cat", "((red))"),
        ("a (((red))) cat", "((red))"),
        ("a [red] cat", "[red]"),
        ("a [cat:dog:0.5]", "[cat:dog:0.5]"),
        ("a cat <lora:style_v2:0.8>", "<lora:style_v2:0.8>"),
        ("a cat <hypernet:x>", "<hypernet:x>"),
        ("a cat BREAK a dog", "BREAK"),
        ("a cat AND a dog", "AND"),
        ("a red++ cat", "red++"),
        ("a (red cat)+", "(red cat)+"),
    ],
)
def test_syntax_of_other_programs_is_counted_and_quoted(prompt: str, place: str) -> None:
    note = weighting_note(["a cat", prompt, "a (red:2) dog"])
    assert note is not None
    assert note.startswith(f"2 of 3 prompts have prompt-weighting syntax, the first {place!r}; it is taken literally")


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat (sitting on a mat), photo",
        "a sign that says STOP AND GO".upper(),
        "oil on canvas, 1:1, f/1.8 :)",
        "array[0] of 3 [1]",
        "a < b > c, <3",
        "C++ code on a screen",
        "command and break",
        "a (photo) of a (dog)",
        "ratio (16:9)",
    ],
)
def test_ordinary_punctuation_is_no_syntax(prompt: str) -> None:
    assert weighting_note([prompt]) is None
