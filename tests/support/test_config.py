"""Plain values into frozen dataclasses: what fits, what is refused, and what the refusals say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from stepalign.support.config import override, parse_flags, to_plain
from stepalign.support.errors import nearest


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    steps: int = 3
    window: tuple[int, int] = (0, 750)
    names: tuple[str, ...] = ()
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"inner.steps must be at least 1, got {self.steps}")


@dataclass(frozen=True)
class Plain:
    kind: Literal["plain"] = "plain"
    beta: float = 1.0


@dataclass(frozen=True)
class Scaled:
    kind: Literal["scaled"] = "scaled"
    beta: float = 2.0
    scale: int = 3


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    mode: Literal["fast", "slow"] = "fast"
    region: Literal["clamp", "rms"] | None = "rms"
    loud: bool = False
    path: str | None = None
    inner: Inner = field(default_factory=Inner)
    loss: Plain | Scaled = Plain(beta=5.0)


def changed(**changes: Any) -> Outer:
    return override(Outer(), changes)


# override


def test_nothing_changed_is_the_same_value() -> None:
    assert changed() == Outer()


def test_nested_fields_change_and_the_rest_stays() -> None:
    value = changed(name="y", inner={"steps": 9})
    assert value == Outer(name="y", inner=Inner(steps=9))
    assert Outer() == Outer(name="x", inner=Inner(steps=3))


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        *(("rate", 1, 1.0), ("rate", "1e-4", 1e-4), ("steps", 4.0, 4), ("steps", "4", 4), ("steps", "1e3", 1000)),
        *(("window", [0, 250], (0, 250)), ("names", ["a", "b"], ("a", "b")), ("names", "a", ("a",)), ("names", [], ())),
        ("limit", 2, 2.0),
    ],
)
def test_values_become_what_their_field_holds(name: str, given: Any, kept: Any) -> None:
    value = getattr(changed(inner={name: given}).inner, name)
    assert value == kept
    assert type(value) is type(kept)


def test_text_may_look_like_a_number() -> None:
    assert changed(name=5).name == "5"


@pytest.mark.parametrize(
    ("changes", "loss"),
    [
        ({"beta": 3}, Plain(beta=3.0)),
        ({"kind": "plain"}, Plain(beta=5.0)),
        ({"kind": "scaled"}, Scaled(beta=2.0)),
        ({"kind": "scaled", "scale": 4}, Scaled(scale=4)),
    ],
    ids=str,
)
def test_the_kind_decides_the_member_of_a_union(changes: dict[str, Any], loss: Plain | Scaled) -> None:
    assert changed(loss=changes).loss == loss


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rat": 1}, "there is no field rat"),
        ({"inner": {"stepz": 1}}, r"there is no field inner\.stepz \(nearest: inner\.steps"),
        ({"inner": {"rate": "quick"}}, r"inner\.rate takes NUMBER; got 'quick'"),
        ({"inner": {"rate": True}}, r"inner\.rate takes NUMBER; got True"),
        ({"inner": {"rate": "nan"}}, r"inner\.rate takes NUMBER; got 'nan'"),
        ({"inner": {"steps": 2.5}}, r"inner\.steps takes INTEGER; got 2\.5"),
        ({"inner": {"steps": True}}, r"inner\.steps takes INTEGER; got True"),
        ({"inner": {"steps": float("inf")}}, r"inner\.steps takes INTEGER; got inf"),
        ({"inner": {"window": [1, 2, 3]}}, r"inner\.window takes INTEGER INTEGER; got \[1, 2, 3\]"),
        ({"inner": {"window": 1}}, r"inner\.window takes INTEGER INTEGER; got 1"),
        ({"inner": {"window": ["a", 2]}}, r"inner\.window takes INTEGER INTEGER; got \['a', 2\]"),
        ({"inner": {"names": [True]}}, r"inner\.names takes TEXT \.\.\.; got \[True\]"),
        ({"inner": 3}, r"inner has fields of its own, such as inner\.rate; got 3"),
        ({"mode": "quick"}, r"mode takes fast\|slow; got 'quick'"),
        ({"region": "clmp"}, r"region takes clamp\|rms\|none; got 'clmp'"),
        ({"loud": "yes"}, r"loud takes true\|false; got 'yes'"),
        ({"loud": 1}, r"loud takes true\|false; got 1"),
        ({"loss": {"scale": 1}}, r"there is no field loss\.scale"),
        ({"loss": {"kind": "x"}}, r"loss\.kind takes plain\|scaled; got 'x'"),
        ({"loss": "scaled"}, r"loss has fields of its own, such as loss\.kind; got 'scaled'"),
        ({"name": None}, r"name takes TEXT; got None"),
        ({"name": ["a"]}, r"name takes TEXT; got \['a'\]"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_naming_the_field(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        override(Outer(), changes)


def test_a_dataclasss_own_checks_apply() -> None:
    with pytest.raises(ValueError, match=r"inner\.steps must be at least 1, got 0"):
        changed(inner={"steps": 0})


def test_unknown_fields_name_the_nearest() -> None:
    assert nearest("lerning_rate", ["weight_decay", "learning_rate"]).startswith(" (nearest: learning_rate")
    assert nearest("zzzz", ["learning_rate", "weight_decay"]) == ""


def test_a_value_made_plain_and_read_again_is_the_same() -> None:
    value = Outer(region=None, path="p", inner=Inner(window=(1, 2), names=("a",), limit=1e-4))
    plain = to_plain(value)
    assert plain["inner"]["window"] == [1, 2]
    assert override(Outer(), plain) == value


# parse_flags


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("", {}),
        ("--name y", {"name": "y"}),
        ("--name=y", {"name": "y"}),
        ("--name=a=b", {"name": "a=b"}),
        ("--inner.rate 1e-4 --inner.steps 7", {"inner": {"rate": "1e-4", "steps": 7}}),
        ("--inner.window 0 250", {"inner": {"window": [0, 250]}}),
        ("--inner.rate -1.5", {"inner": {"rate": -1.5}}),
        ("--loud true --region null", {"loud": True, "region": None}),
        ("--inner.num-steps 3", {"inner": {"num_steps": 3}}),
        ("--path /a/b:c", {"path": "/a/b:c"}),
        ("--path [a", {"path": "[a"}),
    ],
)
def test_flags_are_nested_by_their_dots(line: str, changes: dict[str, Any]) -> None:
    assert parse_flags(line.split()) == changes


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("name y", "expected --field value, got 'name'"),
        ("-n y", "expected --field value, got '-n'"),
        ("--name", "--name needs a value"),
        ("--name --loud true", "--name needs a value"),
        ("-- 3", "expected --field value, got '--'"),
        ("--inner 1 --inner.rate 2", r"--inner\.rate sets a field of --inner, which already has a value"),
    ],
)
def test_flags_that_make_no_sense_are_refused(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_flags(line.split())


def test_flags_change_fields() -> None:
    line = "--inner.rate 1e-4 --inner.window 0 250 --inner.limit null --loud true --mode slow"
    assert override(Outer(), parse_flags(line.split())) == Outer(
        mode="slow", loud=True, inner=Inner(rate=1e-4, window=(0, 250), limit=None)
    )


@pytest.mark.parametrize("word", ["none", "None", "null", "NULL", "~"])
def test_nothing_has_many_names_in_yaml_and_in_flags(word: str) -> None:
    words = f"--region {word} --inner.limit {word} --inner.names {word}".split()
    for values in (parse_flags(words), {"region": word, "inner": {"limit": word, "names": word}}):
        found = override(Outer(inner=Inner(limit=1.0, names=("a",))), values)
        assert (found.region, found.inner.limit, found.inner.names) == (None, None, ())


def test_half_of_a_character_is_refused_with_its_field() -> None:
    with pytest.raises(ValueError, match=r"^name holds half of a character"):
        override(Outer(), {"name": "a\ud83d"})
