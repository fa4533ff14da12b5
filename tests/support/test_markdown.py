"""Text of anybody in Markdown is text."""

from __future__ import annotations

import pytest

from stepalign.support.markdown import code_block, code_span, markdown_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat", "a cat"),
        ("hps-v2.1, PickScore_v1, 5.25 (+0.1)", "hps-v2.1, PickScore_v1, 5.25 (+0.1)"),
        ("a | b", r"a \| b"),
        ("**bold** _slanted_ `code` ~~no~~", r"\*\*bold\*\* \_slanted\_ \`code\` \~\~no\~\~"),
        ("[here](https://example.org)", r"\[here\](https://example.org)"),
        ("![](https://example.org/a.png)", r"!\[\](https://example.org/a.png)"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("Q&A &lt;", "Q&amp;A &amp;lt;"),
        ("one\n# two\r\n\tthree", "one # two three"),
        ("\x1b[31mred\x1b[0m\a", r"\\x1b\[31mred\\x1b\[0m\\x07"),
        ("left\u202eright", r"left\\u202eright"),
        ("$x$ \\ back", r"\$x\$ \\ back"),
        ("Bär 熊 🐻", "Bär 熊 🐻"),
    ],
)
def test_nothing_in_a_text_is_markup(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "`a|b`"),
        ("a `b` c", "``a `b` c``"),
        ("`", "`` ` ``"),
        ("a``b", "```a``b```"),
        ("a\nb\x1b", "`a b\\x1b`"),
    ],
)
def test_code_ends_where_it_ends(text: str, shown: str) -> None:
    assert code_span(text) == shown


def test_a_block_is_longer_fenced_than_what_it_holds() -> None:
    assert code_block("a: 1\n", "yaml") == "```yaml\na: 1\n```"
    assert code_block("a\n````\nb") == "`````\na\n````\nb\n`````"
