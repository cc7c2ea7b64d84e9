"""report.html in a browser: what is clicked, typed, narrowed and darkened; Chromium, headless, no network."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import HOSTILE
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from support import page_of

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)

pytestmark = pytest.mark.skipif(
    not (CHROMIUM.is_file() and DRIVER.is_file()),
    reason=f"needs {CHROMIUM} and {DRIVER} (Debian: apt-get install chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser with a new profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


class Window:
    """A page that is open, and its first browser of outputs."""

    def __init__(self, chrome: webdriver.Chrome, folder: Path, *, width: int = 1280, scheme: str = "light") -> None:
        self.chrome = chrome
        self.items = page_of(folder).items("s1-0")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        chrome.get((folder / "report.html").as_uri())
        self.form = chrome.find_element(By.ID, "browser-s1-0")

    def control(self, name: str) -> WebElement:
        return self.form.find_element(By.NAME, name)

    def choose(self, name: str, text: str) -> None:
        Select(self.control(name)).select_by_visible_text(text)

    def said(self, css: str) -> str:
        return self.form.find_element(By.CSS_SELECTOR, css).text

    def count(self) -> int:
        shown, _, rest = self.said(".count").partition(" of ")
        assert rest == f"{len(self.items['items'])} questions"
        return int(shown)

    def outcome(self, item: dict[str, Any], arm: str) -> str:
        return str(self.items["outcomes"][item["answers"][self.items["arms"].index(arm)][0]])

    def shown_ids(self) -> list[str]:
        """The ids that are met on the way from the first match to the last."""
        ids = [self.said(".id")]
        while self.control("next").is_enabled():
            self.control("next").click()
            ids.append(self.said(".id"))
        return ids

    def errors(self) -> list[Any]:
        return [entry for entry in self.chrome.get_log("browser") if entry["level"] != "INFO"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pair if pair in (("", ""), ("right", "wrong")) else pytest.param(*pair, marks=pytest.mark.thorough)
        for pair in product(["", "right", "wrong"], repeat=2)
    ],
)
def test_filters_show_the_questions_that_fit_them(
    first: str, second: str, chrome: webdriver.Chrome, hostile_study: Path
) -> None:
    window = Window(chrome, hostile_study)
    wanted = {"": {True, False}, "right": {True}, "wrong": {False}}
    fit = [
        item
        for item in window.items["items"]
        if (window.outcome(item, "constant") == "correct") in wanted[first]
        and (window.outcome(item, "lora") == "correct") in wanted[second]
    ]
    window.choose("first", "constant")
    window.choose("second", "lora")
    window.choose("first-is", first or "right or wrong")
    window.choose("second-is", second or "right or wrong")
    assert window.count() == len(fit)
    if fit:
        assert len(window.shown_ids()) == len(fit)
    else:
        assert window.said(".item") == "No question fits."
    assert window.errors() == []


def test_the_four_counts_are_all_questions_and_choose_a_filter(chrome: webdriver.Chrome, hostile_study: Path) -> None:
    window = Window(chrome, hostile_study)
    counts = [int(window.said(f".crosstab button:nth-child({n}) b")) for n in range(1, 5)]
    assert sum(counts) == len(window.items["items"])
    for n, count in enumerate(counts, 1):
        chrome.find_element(By.CSS_SELECTOR, f"#browser-s1-0 .crosstab button:nth-child({n})").click()
        assert window.count() == count
        pressed = chrome.find_elements(By.CSS_SELECTOR, "#browser-s1-0 .crosstab [aria-pressed=true]")
        assert len(pressed) == 1
    window.form.find_element(By.CSS_SELECTOR, "[type=reset]").click()
    WebDriverWait(chrome, 5).until(lambda _: window.count() == len(window.items["items"]))


def test_an_outcome_of_one_arm_or_of_any(chrome: webdriver.Chrome, page_study: Path) -> None:
    window = Window(chrome, page_study)
    arms = window.items["arms"]
    for outcome in window.items["outcomes"]:
        window.choose("outcome", outcome.replace("_", " "))
        window.choose("third", "some arm")
        hits = [{arm for arm in arms if window.outcome(item, arm) == outcome} for item in window.items["items"]]
        assert window.count() == sum(bool(hit) for hit in hits)
        window.choose("third", "lora")
        assert window.count() == sum("lora" in hit for hit in hits)


@pytest.mark.parametrize("searched", ["MONEY", "how many", " 5", "nothing has this"])
def test_search_finds_questions_and_outputs_in_any_case(
    searched: str, chrome: webdriver.Chrome, page_study: Path
) -> None:
    window = Window(chrome, page_study)
    wanted = searched.strip().lower()
    fit = 0
    for item in window.items["items"]:
        said = [text for answer in item["answers"] for text in answer[1:3] if text is not None]
        fit += any(wanted in text.lower() for text in (item["id"], item["question"], item["gold"], *said))
    window.control("search").send_keys(searched)
    WebDriverWait(chrome, 5).until(lambda _: window.count() == fit)


def test_next_previous_a_number_and_the_arrow_keys_go_through_the_questions(
    chrome: webdriver.Chrome, page_study: Path
) -> None:
    window = Window(chrome, page_study)
    ids = [item["id"] for item in window.items["items"]]
    assert not window.control("previous").is_enabled()
    assert window.shown_ids() == ids
    window.control("previous").click()
    assert window.said(".id") == ids[-2]
    window.control("previous").send_keys("\ue012")
    assert window.said(".id") == ids[-3]
    chrome.execute_script(
        "arguments[0].value = 2; arguments[0].dispatchEvent(new Event('change', {bubbles: true}))",
        window.control("position"),
    )
    assert window.said(".id") == ids[1]


def test_every_arm_stands_beside_the_others_with_what_it_said(chrome: webdriver.Chrome, page_study: Path) -> None:
    window = Window(chrome, page_study)
    item = window.items["items"][0]
    assert window.said(".question") == " ".join(item["question"].split("\n"))
    assert window.said("p .gold") == item["gold"]
    cards = chrome.find_elements(By.CSS_SELECTOR, "#browser-s1-0 .answer")
    assert len(cards) == len(window.items["arms"])
    for card, arm, (_, extracted, output, _) in zip(cards, window.items["arms"], item["answers"], strict=True):
        assert card.find_element(By.CSS_SELECTOR, "h4 bdi").text == arm
        assert window.outcome(item, arm).replace("_", " ") in card.find_element(By.TAG_NAME, "h4").text
        assert card.find_element(By.TAG_NAME, "p").text == f"Answer: {'none' if extracted is None else extracted}"
        assert card.find_element(By.TAG_NAME, "pre").get_property("textContent") == output


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("study", ["page_study", "hostile_study", "rich_study"])
def test_the_page_never_scrolls_sideways(
    study: str, width: int, scheme: str, chrome: webdriver.Chrome, request: pytest.FixtureRequest
) -> None:
    window = Window(chrome, request.getfixturevalue(study), width=width, scheme=scheme)
    for _ in range(8):
        scrolled, client = chrome.execute_script(
            "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
        )
        assert scrolled <= client
        window.control("next").click()
    assert window.errors() == []


CONTRASTS = """
const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const colour = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
function ground(element) {
  for (; element; element = element.parentElement) {
    const found = colour(getComputedStyle(element).backgroundColor);
    if (found[3] === 1) return found;
  }
  return [255, 255, 255, 1];
}
const low = [];
for (const element of document.querySelectorAll("body *")) {
  const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!words || !element.checkVisibility() || element.closest("script, :disabled")) continue;
  const style = getComputedStyle(element);
  const [a, b] = [light(colour(element.closest("svg") ? style.fill : style.color)), light(ground(element))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (!(contrast >= 4.5)) low.push([element.tagName, element.textContent.slice(0, 40), contrast]);
}
return low;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast_in_light_and_dark(scheme: str, chrome: webdriver.Chrome, rich_study: Path) -> None:
    Window(chrome, rich_study, scheme=scheme)
    assert chrome.execute_script(CONTRASTS) == []
    ground = chrome.execute_script("return getComputedStyle(document.body).backgroundColor")
    red = int(ground.removeprefix("rgb(").split(",")[0])
    assert red < 50 if scheme == "dark" else red > 240
    line = chrome.execute_script("return getComputedStyle(document.querySelector('.wide .chart text')).fill")
    assert line == chrome.execute_script("return getComputedStyle(document.body).color")


def test_only_the_chart_that_fits_is_shown(chrome: webdriver.Chrome, page_study: Path) -> None:
    for width, shown in ((1280, "wide"), (390, "narrow")):
        Window(chrome, page_study, width=width)
        for kind in ("wide", "narrow"):
            charts = chrome.find_elements(By.CSS_SELECTOR, f"figure .{kind}")
            assert len(charts) == 6
            assert all(chart.is_displayed() == (kind == shown) for chart in charts)


CUT = """
const cut = [];
for (const chart of document.querySelectorAll("svg.chart")) {
  const frame = chart.getBoundingClientRect();
  if (!frame.width) continue;
  const texts = [...chart.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  for (const [words, box] of texts) {
    if (box.left < -1 || box.right > document.documentElement.clientWidth + 1) cut.push(["beyond the page", words]);
    if (box.height < 11) cut.push(["too small", words]);
  }
  for (const [i, [words, a]] of texts.entries())
    for (const [others, b] of texts.slice(i + 1))
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 3 &&
          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 5) cut.push(["covers", words, others]);
}
return cut;
"""


@pytest.mark.parametrize(("width", "kind"), [(1280, "wide"), (390, "narrow")])
def test_every_chart_is_seen_whole_and_no_words_cover_others(
    width: int, kind: str, chrome: webdriver.Chrome, rich_study: Path
) -> None:
    Window(chrome, rich_study, width=width)
    charts = chrome.find_elements(By.CSS_SELECTOR, f"figure .{kind} svg")
    assert len(charts) == 7
    for chart in charts:
        assert 300 < chart.rect["width"] <= width
        assert chart.rect["height"] > 100
    assert chrome.execute_script(CUT) == []


def test_no_hostile_text_runs(chrome: webdriver.Chrome, hostile_study: Path) -> None:
    window = Window(chrome, hostile_study)
    assert chrome.title == f"{HOSTILE[0]} - finetrap report"
    window.shown_ids()
    for item_tag in ("img", "script", "svg", "b"):
        assert chrome.find_elements(By.CSS_SELECTOR, f".item {item_tag}") == []
    assert chrome.title == f"{HOSTILE[0]} - finetrap report"
    assert window.errors() == []


def test_the_policy_stops_what_got_in_all_the_same(chrome: webdriver.Chrome, page_study: Path) -> None:
    window = Window(chrome, page_study)
    chrome.execute_script(
        "document.body.insertAdjacentHTML('beforeend', "
        "'<img src=data:image/png;base64,AA== onerror=\"document.title=1\"><p style=color:red id=red>x</p>')"
    )
    WebDriverWait(chrome, 5).until(lambda _: window.errors())
    assert chrome.title == "words - finetrap report"
    assert chrome.execute_script("return getComputedStyle(document.getElementById('red')).color") != "rgb(255, 0, 0)"


def test_without_javascript_the_verdict_the_tables_and_the_charts_are_there(
    chrome: webdriver.Chrome, page_study: Path
) -> None:
    chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        Window(chrome, page_study)
        assert chrome.find_element(By.CLASS_NAME, "headline").is_displayed()
        assert chrome.find_element(By.TAG_NAME, "table").is_displayed()
        assert chrome.find_element(By.CSS_SELECTOR, ".wide svg").is_displayed()
        assert chrome.find_element(By.CLASS_NAME, "without-script").is_displayed()
        assert not chrome.find_element(By.ID, "browser-s1-0").is_displayed()
    finally:
        chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
