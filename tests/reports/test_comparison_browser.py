"""The page of a comparison in a real browser: sorting, enlarging, keys, widths, colours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import BROWSER, Chromium
from compared import GAINS, gained, level, save_folder

from stepalign.evaluation.compare import compare_folders, write_comparison
from stepalign.reports.comparison import gallery

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the PATH")

# By the second scorer only prompt 3 differs, and the third model loses.
ODD = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
ORDER = "[...document.querySelectorAll('#prompts > li:not([hidden])')].map((card) => Number(card.dataset.number))"
GAIN = "[...document.querySelectorAll('#prompts > li:not([hidden]) .gain')].map((gain) => gain.innerText)"
ZOOMED = """(() => {
  const image = document.querySelector('#zoom img');
  const canvas = document.createElement('canvas');
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
})()"""
"""The first pixel of the enlarged image: model, prompt and image."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name: "three" models with two scorers; "some" of their prompts; "many" prompts; "wide" names."""
    root = tmp_path_factory.mktemp("pages")
    models = (
        ("base", {"first": level, "second": level}),
        ("tuned", {"first": gained, "second": lambda number, image: level(number, image) + ODD[number]}),
        ("worse", {"first": level, "second": lambda number, image: level(number, image) - ODD[number]}),
    )
    given = {"num_images": 2, "category": lambda number: "photo"}
    three = [save_folder(root / name, scores=own, colour=n, **given) for n, (name, own) in enumerate(models, 1)]
    write_comparison(compare_folders(three), root / "three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "MOST_PROMPTS", 4)
        write_comparison(compare_folders(three[:2]), root / "some")
    changed = (level, lambda number, image: level(number, image) + number - 15)
    many = [save_folder(root / f"m{n}", scores={"first": own}, num_prompts=30) for n, own in enumerate(changed)]
    write_comparison(compare_folders(many), root / "many")
    long = "Supercalifragilisticexpialidocious" * 3
    scorers = {f"{long}-{number}": gained for number in range(2)}
    texts = {
        "prompt": lambda number: f"{long} {number}",
        "category": lambda number: long,
        "size": 300,
        "num_prompts": 3,
    }
    wide = [save_folder(root / f"w{n}", scores=scorers, generation={long: f"{n} {long}"}, **texts) for n in range(4)]
    write_comparison(compare_folders(wide, names=[f"{long}{n}" for n in range(4)]), root / "wide")
    return {name: root / name / "report.html" for name in ("three", "some", "many", "wide")}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    chromium = Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture
def tab(browser: Chromium, pages: dict[str, Path]) -> Iterator[Chromium]:
    """The page of three models; a test may not leave a complaint of the console."""
    browser.open(pages["three"])
    yield browser
    assert browser.complaints == []


def choose(tab: Chromium, control: str, value: str) -> None:
    """Choose an option as a person does, which tells the page."""
    tab.run(
        f"(() => {{ const control = document.getElementById('{control}'); control.value = '{value}';"
        "control.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def test_the_largest_gains_and_losses_come_first(tab: Chromium) -> None:
    by_gain = sorted(range(6), key=lambda number: -GAINS[number])
    assert by_gain == [5, 2, 0, 3, 1, 4]
    assert tab.run(ORDER) == [5, 4, 2, 1, 0, 3], "from both ends in turn"
    assert tab.run("document.getElementById('status').textContent") == (
        "6 prompts, largest gains and losses first: first, tuned minus base."
    )


def test_a_long_page_shows_a_few_prompts_and_more_on_request(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["many"])
    height = browser.run("document.documentElement.scrollHeight")
    text = "document.getElementById('more').textContent"
    assert (len(browser.run(ORDER)), browser.run(text)) == (12, "Show 12 more")
    assert browser.run("document.getElementById('status').textContent").startswith("12 of 30 prompts, ")
    first = browser.run(ORDER)
    browser.click("#more")
    assert (len(browser.run(ORDER)), browser.run(text)) == (24, "Show 6 more")
    assert browser.run(ORDER)[:12] == first
    assert browser.run("document.activeElement.closest('li').dataset.number") == str(browser.run(ORDER)[12])
    browser.click("#more")
    assert sorted(browser.run(ORDER)) == list(range(30))
    assert browser.run("document.getElementById('more').hidden")
    assert browser.run("document.documentElement.scrollHeight") > height
    choose(browser, "order", "original")
    assert browser.run(ORDER) == list(range(12)), "another order begins with its first prompts"
    assert browser.complaints == []


def test_prompts_are_sorted_by_gain_and_by_loss(tab: Chromium) -> None:
    choose(tab, "order", "gains")
    assert tab.run(ORDER) == sorted(range(6), key=lambda number: -GAINS[number]) == [5, 2, 0, 3, 1, 4]
    assert tab.run(GAIN)[:2] == ["photo · first +1.2", "photo · first +0.9"]
    choose(tab, "order", "losses")
    assert tab.run(ORDER) == [4, 1, 3, 0, 2, 5]
    choose(tab, "order", "original")
    assert tab.run(ORDER) == [0, 1, 2, 3, 4, 5]


def test_the_scorer_and_the_models_decide_the_order(tab: Chromium) -> None:
    choose(tab, "order", "gains")
    choose(tab, "scorer", "1")
    assert tab.run(ORDER) == [3, 0, 1, 2, 4, 5]
    assert tab.run("document.querySelectorAll('#prompts .chosen').length") == 2 * 3 * 12, "a name and a score each"
    assert tab.run("document.querySelector('#prompts .chosen').textContent") == "second"
    choose(tab, "pair", "0 2")
    assert tab.run(ORDER) == [0, 1, 2, 4, 5, 3]
    assert tab.run("document.querySelector('#prompts > li:last-child .gain').className") == "gain worse"
    assert tab.run("document.getElementById('status').textContent").endswith("second, worse minus base.")


def test_random_order_is_the_same_every_time(tab: Chromium, pages: dict[str, Path]) -> None:
    choose(tab, "order", "random")
    first = tab.run(ORDER)
    assert sorted(first) == list(range(6))
    assert first != list(range(6))
    tab.open(pages["three"])
    choose(tab, "order", "random")
    assert tab.run(ORDER) == first


def test_random_order_leaves_out_what_was_chosen_for_its_scores(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["some"])
    assert len(browser.run(ORDER)) == 4
    choose(browser, "order", "random")
    drawn = "[...document.querySelectorAll('#prompts > li')].filter((card) => card.dataset.random !== '')"
    assert len(browser.run(ORDER)) == 2
    assert browser.run(ORDER) == browser.run(f"{drawn}.map((card) => Number(card.dataset.number))")
    choose(browser, "order", "original")
    assert len(browser.run(ORDER)) == 4


def test_a_real_key_changes_a_choice(tab: Chromium) -> None:
    tab.run("document.getElementById('order').focus()")
    tab.press("ArrowDown")
    assert tab.run("document.getElementById('order').value") == "gains"
    assert tab.run(ORDER)[:2] == [5, 2]


def test_a_click_enlarges_that_very_image_and_escape_closes_it(tab: Chromium) -> None:
    choose(tab, "order", "gains")
    tab.click("#prompts > li:nth-child(2) .row:nth-of-type(2) figure:nth-child(2) button")
    assert tab.run("document.getElementById('zoom').open")
    assert tab.run(ZOOMED) == [2, 2, 1]
    assert tab.run("document.getElementById('zoom-prompt').textContent") == "prompt 2"
    assert "tuned" in tab.run("document.getElementById('zoom-figure').innerText")
    tab.press("Escape")
    assert not tab.run("document.getElementById('zoom').open")


def test_keys_alone_open_flip_through_and_close(tab: Chromium) -> None:
    choose(tab, "order", "original")
    tab.run("document.querySelector('#prompts button.open').focus()")
    tab.press("Enter")
    assert tab.run(ZOOMED) == [1, 0, 0]
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        tab.press(key)
        seen.append(tab.run(ZOOMED)[0])
    assert seen == [2, 3, 1, 3]
    tab.press("Escape")
    assert not tab.run("document.getElementById('zoom').open")
    assert tab.run("document.activeElement === document.querySelector('#prompts button.open')"), "focus comes back"


def test_buttons_and_the_backdrop_do_the_same(tab: Chromium) -> None:
    choose(tab, "order", "original")
    tab.click("#prompts button.open")
    tab.click("#after")
    assert tab.run(ZOOMED) == [2, 0, 0]
    tab.click("#before")
    assert tab.run(ZOOMED) == [1, 0, 0]
    tab.click("#close")
    assert not tab.run("document.getElementById('zoom').open")
    choose(tab, "order", "original")
    tab.click("#prompts button.open")
    tab.click_at(5, 5)
    assert not tab.run("document.getElementById('zoom').open")


@pytest.mark.parametrize("width", [360, 800, 1400])
@pytest.mark.parametrize("name", ["three", "wide"])
def test_nothing_is_wider_than_the_window(browser: Chromium, pages: dict[str, Path], name: str, width: int) -> None:
    browser.open(pages[name], width=width)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.run("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    browser.click("#prompts button.open")
    left, right = browser.run(
        "(({left, right}) => [left, right])(document.getElementById('zoom').getBoundingClientRect())"
    )
    assert left >= 0
    assert right <= width
    assert browser.run("document.getElementById('zoom').scrollWidth <= document.getElementById('zoom').clientWidth")
    assert browser.complaints == []


def test_dark_pages_are_dark(browser: Chromium, pages: dict[str, Path]) -> None:
    colours = []
    for dark in (False, True):
        browser.open(pages["three"], dark=dark)
        colours.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(247, 247, 245)", "rgb(21, 23, 26)"]


def test_the_policy_stops_a_script_that_is_not_the_pages(browser: Chromium, pages: dict[str, Path], tmp_path) -> None:
    """The test of the test: a complaint would be seen."""
    source = pages["three"].read_text(encoding="utf-8")
    (tmp_path / "report.html").write_text(source.replace("</main>", "<script>document.title = 'x'</script></main>"))
    browser.open(tmp_path / "report.html")
    assert browser.run("document.title") == "3 models compared"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)
    browser.complaints.clear()


def test_without_scripts_everything_is_there_but_the_controls(pages: dict[str, Path], browser: Chromium) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["three"])
        nodes = {}
        root = browser.ask("DOM.getDocument")["root"]["nodeId"]
        for name, selector in (("cards", "#prompts > li"), ("hidden", "#controls[hidden]"), ("told", "noscript p")):
            nodes[name] = len(browser.ask("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"])
        assert nodes == {"cards": 6, "hidden": 1, "told": 1}
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
