"""Prompts as scorers' tokenizers are given them, and how many an encoder cuts."""

from __future__ import annotations

import html
import re

import ftfy
import pytest
import regex
import torch
from drawn import an_image
from transformers import CLIPModel, CLIPTokenizer

from stepalign.data.prompt_sets import load_prompt_set
from stepalign.models.clip import num_cut, tokenize
from stepalign.scorers.clip_features import clean
from stepalign.scorers.clip_score import CLIPScore
from stepalign.scorers.hps import HPS
from stepalign.scorers.pickscore import PickScore

HARD = [
    "",
    "  a \t cat\n on  a mat ",
    "A Cat",
    "\u201ca cat\u201d and the dog\u2019s \u2018ball\u2019",
    "a cat\uff0ca dog\uff0ca bird\uff01",
    "\uff21 \uff23\uff21\uff34",
    "cat &amp; dog",
    "cat &amp;amp; dog &amp;lt;3",
    "&lt;b&gt; bold &lt;/b&gt;",
    "<b> &amp; </b>",
    "a\u00a0cat\u2003on\u3000a\u2028mat\x85",
    "a cat \U0001f431\u200d\U0001f4bb \u2764\ufe0f",
    "cafe\u0301 and cafe\u0301s, A\u030angstro\u0308m",
    "e&#769;",
    "na\u00efve caf\u00e9",
    "na\u00c3\u00afve caf\u00c3\u00a9",
    "\ufb01ne \ufb02owers",
    "\u039f\u0394\u039f\u03a3 \u03a3\u03a3",
    "\u0130stanbul \u1e9e",
    "\x1b[31ma cat\x1b[0m",
    "a\x1ccat\x1d.",
    "\ufeffa cat",
    "\u732b\u3068\u72ac",
    "it's, we'll, I'd",
    "<|endoftext|> a cat",
]


PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTED]
BYTES = {byte: chr(byte) for byte in PRINTED} | {byte: chr(256 + index) for index, byte in enumerate(OTHERS)}
"""A letter for every byte, as the tokenizers of GPT-2 and CLIP write them."""


def published(text: str) -> str:
    """`basic_clean`, `whitespace_clean` and the lower case of the tokenizers of OpenAI's CLIP, open_clip and HPS."""
    text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    text = text.strip()
    text = re.sub(r"\s+", " ", text)
    return text.strip().lower()


def test_prompts_are_cleaned_as_published() -> None:
    prompts = HARD + load_prompt_set("geneval").prompts
    assert len(prompts) == len(HARD) + 553
    assert [clean(prompt) for prompt in prompts] == [published(prompt) for prompt in prompts]


def test_cleaned_prompts_are_split_as_published(tokenizer: CLIPTokenizer) -> None:
    """By transformers' tokenizer as by the pattern of OpenAI's; the bytes of each piece are merged alike after that."""
    pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
    backend = tokenizer.backend_tokenizer
    for prompt in (*HARD[:-1], *load_prompt_set("geneval").prompts):  # the last is a token of its own in both
        text = backend.normalizer.normalize_str(clean(prompt))
        assert text == clean(prompt)
        pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        assert pieces == ["".join(BYTES[byte] for byte in piece.encode()) for piece in pattern.findall(clean(prompt))]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("\u201ccat\u201d, dog\u2019s", '"cat", dog\'s'),
        ("a cat\uff0c a dog", "a cat, a dog"),
        ("cat &amp;amp; dog", "cat & dog"),
        ("A\u00a0 Cat ", "a cat"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"),
    ],
)
def test_cases_by_hand(given: str, expected: str) -> None:
    assert clean(given) == expected


def test_geneval_s_prompts_get_the_same_tokens_with_and_without(tokenizer: CLIPTokenizer) -> None:
    """They are plain; transformers' tokenizer makes them lower case itself."""
    prompts = load_prompt_set("geneval").prompts
    assert tokenizer([clean(prompt) for prompt in prompts]).input_ids == tokenizer(prompts).input_ids


def test_only_the_scorers_whose_originals_clean_do_so(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    curly, straight = "a \u201cred\u201d ring", 'a "red" ring'
    ids = [tokenize(tokenizer, tiny_clip.config, [prompt])[0].tolist() for prompt in (curly, straight)]
    assert ids[0] != ids[1]
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for scorer, same in (
        (HPS(tiny_clip, tokenizer, version="v2.1"), True),
        (CLIPScore(tiny_clip, tokenizer), True),
        (PickScore(tiny_clip, tokenizer), False),
    ):
        exact = [scorer.score([an_image(32, 32)], [prompt]).item() for prompt in (curly, straight)]
        reward = [scorer(image, [prompt]).item() for prompt in (curly, straight)]
        assert [exact[0] == exact[1], reward[0] == reward[1]] == [same, same]
        assert ("ftfy" in scorer.record.libraries) == same
        assert ("mended by ftfy" in scorer.record.preprocessing) == same


# Prompts that are cut


def test_prompts_of_more_tokens_than_the_encoder_takes_are_counted(tokenizer: CLIPTokenizer) -> None:
    """A word is one token here, and there is one at either end: of n words n + 2."""
    prompts = ["", "red", "red red", "red red red", "red " * 100]
    assert len(tokenizer(["red red red"]).input_ids[0]) == 5
    assert [num_cut(tokenizer, prompts, length) for length in (2, 3, 4, 5, 102)] == [4, 3, 2, 1, 0]
    assert num_cut(tokenizer, [], 5) == 0


def test_a_scorer_counts_prompts_as_it_reads_them(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Escaped signs are one character to HPS and many to PickScore."""
    length = tiny_clip.config.text_config.max_position_embeddings
    prompts = ["&amp;" * (length - 2), "a dot", "a red ring " * length]
    assert HPS(tiny_clip, tokenizer, version="v2.0").num_cut(prompts) == 1
    assert PickScore(tiny_clip, tokenizer).num_cut(prompts) == 2
