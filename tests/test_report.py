"""The report: in a real browser, its numbers are Python's at every threshold, and names stay text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.browser import asked, browser_tests, chromium, open_page, resize
from tests.images import encode, picture
from tyre_lightning.config import DataConfig, OperatingPointConfig
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.bounds import Interval, interval_ends
from tyre_lightning.decision.operating_point import OperatingPoint, measure_rates
from tyre_lightning.decision.tyres import Tyres
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.evaluation.judgement import fit_calibration
from tyre_lightning.evaluation.report import decisions
from tyre_lightning.evaluation.report.charts import rate_curves
from tyre_lightning.evaluation.report.decisions import LISTED, STEPS, interval_table, sides
from tyre_lightning.evaluation.report.page import Facts, build_page
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.lake.texts import column
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.inspector import Inspector

HOSTILE = '</script><img src=x onerror="document.title=`owned`">&amp;'
CLASSES = ["bulge", HOSTILE, "flat_spot", "good"]
GOOD = 3
LONG = "a_very_long_file_name_without_any_place_to_break_it_" * 4
PROMISE = OperatingPointConfig(0.2, 0.9)
BAND = OperatingPointConfig(0.2, 0.9, 0.1)


def scores(count: int, seed: int) -> Scores:
    """What a fair model might say of ``count`` images; the names of some are attacks, and some show the same tyre."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, len(CLASSES), count)[np.arange(count) // 2]  # a tyre's two pictures show the same
    logits = draw.normal(0, 1, (count, len(CLASSES))) + 2 * np.eye(len(CLASSES))[labels]
    keys = column([f"v1/test/{index}/{HOSTILE if index % 2 else LONG}.jpg" for index in range(count)])
    tyres = column([f"tyre {HOSTILE} {index // 2}" for index in range(count)])
    return Scores(keys, labels, logits, tyres, tyres)


def somewhere(found: Scores, seed: int) -> Scores:
    """The same scores, of images at random distances from what good tyres look like."""
    return replace(found, far=np.random.default_rng(seed).exponential(size=len(found)))


def inspector(wanted: OperatingPointConfig | None, good: str | None = "good", *, tells: bool = False) -> Inspector:
    """A small model with random weights whose judgement comes from other images; it may tell novelty."""
    torch.manual_seed(0)
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32))
    network = Network("efficientnet_lite0", len(CLASSES), preprocessing.mean, preprocessing.std).eval()
    made = Inspector(network, "efficientnet_lite0", CLASSES, preprocessing, good)
    if wanted is not None:
        made.calibration = fit_calibration(somewhere(scores(300, 1), 1) if tells else scores(300, 1), GOOD)
        made.promise(wanted)
    return made


def read(keys: Sequence[str]) -> list[bytes | UnreadableImage]:
    """A picture for every key; one in ten cannot be read."""
    numbers = [int(key.split("/")[2]) for key in keys]
    return [b"<html>" if number % 10 == 7 else encode(picture(number % 50), "JPEG") for number in numbers]


def facts(**others: Any) -> Facts:
    counts = {usage: dict.fromkeys(CLASSES, 30) for usage in ("train", "val", "test")}
    curves = {"Loss": {"training": [(1.0, 1.2), (2.0, 0.7)], "validation": [(1.0, 1.3), (2.0, 0.9)]}}
    known: dict[str, Any] = {"name": HOSTILE, "id": "0123", "started": "2026", "reported": "2026", "root": LONG}
    return Facts(**{**known, "counts": counts, "curves": curves, **others})


@dataclass(frozen=True)
class Page:
    """A report and what it was made of."""

    path: Path
    scores: Scores
    inspector: Inspector

    def rates(self, threshold: float) -> tuple[Interval, Interval, Interval, dict[str, Interval]]:
        """What Python says of a threshold: escape, overkill, review, and escape by class."""
        point = self.inspector.point
        assert point is not None
        band = point.reject_from > point.threshold
        reject_from = max(threshold, point.reject_from) if band else threshold
        at = OperatingPoint(threshold, reject_from, point.promised, point.novel_rate)
        assert self.inspector.calibration is not None
        found = measure_rates(at, self.tyres(), self.inspector.calibration, CLASSES, "good")
        return found.escape, found.overkill, found.review, found.escape_by_class

    def tyres(self) -> Tyres:
        return self.scores.counted(GOOD, self.inspector.temperature)


def write(folder: Path, count: int, wanted: OperatingPointConfig) -> Page:
    found, model = scores(count, 2), inspector(wanted)
    path = folder / "report.html"
    path.write_text(build_page(model, found, "test", wanted, facts(), read), encoding="utf-8")
    return Page(path, found, model)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return write(tmp_path_factory.mktemp("page"), 240, PROMISE)


@pytest.fixture(scope="module")
def banded(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return write(tmp_path_factory.mktemp("banded"), 240, BAND)


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Of a model that tells novelty: a quarter of the good tyres is reviewed for that."""
    wanted = replace(PROMISE, max_novel_rate=0.25)
    found, model = somewhere(scores(240, 2), 2), inspector(wanted, tells=True)
    path = tmp_path_factory.mktemp("novel") / "report.html"
    path.write_text(build_page(model, found, "test", wanted, facts(), read), encoding="utf-8")
    return Page(path, found, model)


def embedded(html: str) -> dict[str, Any]:
    """The data in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_says_on_which_images_it_is_measured() -> None:
    model = inspector(None)
    html = build_page(model, scores(60, 2), "val", PROMISE, facts(), read)
    assert "60 validation images" in html and "there is no test folder" in html
    assert "The model has no operating point" in html
    assert embedded(html)["start"] == 0.5


def test_the_page_says_that_training_saw_some_tyres() -> None:
    html = build_page(inspector(PROMISE), scores(60, 2), "test", PROMISE, facts(shared=7), read)
    assert "7 of them are of tyres that training saw too" in html
    assert "took no part in the training" not in html


def test_curves_have_the_ends_of_the_intervals_beside_them(page: Page) -> None:
    point = page.inspector.point
    assert point is not None
    escape, overkill, *_ = page.rates(point.threshold)
    defective, good = sides(page.scores, GOOD, page.inspector.calibration)
    trade, roc, recall = rate_curves(defective, good, 1.0, PROMISE.confidence)
    curve, low, high = trade.lines
    assert (escape.share, overkill.share) in curve.points
    assert min(math.dist((escape.low, overkill.low), at) for at in low.points) < 1e-9
    assert min(math.dist((escape.high, overkill.high), at) for at in high.points) < 1e-9
    assert min(math.dist((overkill.high, 1 - escape.high), at) for at in roc.lines[-1].points) < 1e-9
    caught, false = escape.total - escape.count, overkill.count
    hit, worse = recall.lines[0], recall.lines[1]
    place = min(
        range(len(hit.points)), key=lambda i: math.dist(hit.points[i], (1 - escape.share, caught / (caught + false)))
    )
    assert worse.points[place][0] == pytest.approx(1 - escape.high)
    assert worse.points[place][1] < hit.points[place][1]


def test_the_curves_and_the_gallery_know_what_is_novel(novel: Page) -> None:
    html, point, calibration = (
        novel.path.read_text(encoding="utf-8"),
        novel.inspector.point,
        novel.inspector.calibration,
    )
    assert point is not None and calibration is not None
    found = embedded(html)["unlike"]
    far = novel.scores.distances()
    order = np.argsort(-far)[:48]
    assert found["keys"] == novel.scores.keys.take(order).to_pylist() and len(found["pictures"]) == 48
    assert found["novelty"] == pytest.approx(calibration.novelty(far[order]), abs=1e-4)
    assert "novelty: review of 25 % of good tyres on average" in html
    escape, overkill, review, _ = novel.rates(point.threshold)
    assert review.count > 3
    defective, good = sides(novel.scores, GOOD, calibration, point.novel_rate)
    trade = rate_curves(defective, good, 1.0, PROMISE.confidence)[0].lines[0]
    not_accepted = good.total - int(((good.scores < point.threshold) & ~good.novel).sum())
    assert overkill.count < not_accepted and (escape.share, not_accepted / good.total) in trade.points


def test_without_a_good_class_there_is_no_threshold() -> None:
    html = build_page(inspector(None, None), scores(60, 2), "test", PROMISE, facts(), read)
    assert "No class is known to be the good one" in html
    assert "Confusion matrix" in html
    assert "<script" not in html


def test_a_page_of_one_image_is_written() -> None:
    one = scores(1, 2)
    html = build_page(inspector(PROMISE), one, "test", PROMISE, facts(curves={}), read)
    assert len(embedded(html)["defective"]["scores"]) == int(one.labels[0] != GOOD)


def test_a_page_of_many_tyres_is_no_larger_than_one_of_some() -> None:
    many, some = (sides(scores(count, 2), GOOD, None)[0].to_dict() for count in (120_000, 30_000))
    assert len(many["keys"]) == LISTED and len(many["scores"]) <= LISTED + STEPS
    assert len(json.dumps(many)) < 1.1 * len(json.dumps(some))


@pytest.mark.parametrize("total", [0, 1, 9_999, 10_001, 437_500])
def test_between_the_counts_of_a_table_of_intervals_a_line_is_as_good(total: int) -> None:
    found = interval_table(total, 0.9)
    assert len(found["counts"]) <= LISTED + 1
    counts = np.unique(np.random.default_rng(0).integers(0, total + 1, 3000))
    for ends, exact in zip((found["low"], found["high"]), interval_ends(counts, total, 0.9), strict=True):
        np.testing.assert_allclose(np.interp(counts, found["counts"], ends), exact, atol=1e-6)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page in a window of some width; afterwards nothing went wrong in it, nor over the network."""
    opened: list[str] = []

    def go(page: Page, width: int = 1280) -> Any:
        opened.append(page.path.as_uri())
        resize(browser, width)
        browser.get_log("performance")
        open_page(browser, opened[-1])
        return browser

    yield go
    assert browser.get_log("browser") == []
    assert {url for url in asked(browser) if not url.startswith("data:image/jpeg;base64,")} == {*opened}


def text(driver: Any, selector: str) -> str:
    return str(driver.execute_script("return document.querySelector(arguments[0]).textContent", selector))


def move(driver: Any, control: str, value: float) -> None:
    """Put a control where a user would."""
    script = (
        "const c = document.getElementById(arguments[0]); c.value = arguments[1]; c.dispatchEvent(new Event('input'))"
    )
    driver.execute_script(script, control, repr(value))


def assert_shows(shown: str, value: float) -> None:
    """A percentage with one or two decimals, as near as it can be."""
    number = re.fullmatch(r"(\d+\.(\d+)) %", shown)
    assert number is not None, shown
    assert float(number[1]) == pytest.approx(100 * value, abs=0.5001 * 10 ** -len(number[2]))


def assert_tile(driver: Any, name: str, found: Interval) -> None:
    assert_shows(text(driver, f"#{name}"), found.share)
    detail = re.match(r"(\d+) of (\d+) .*; 90 % interval (.* %) to (.* %)", text(driver, f"#{name}-detail"))
    assert detail is not None
    assert (int(detail[1]), int(detail[2])) == (found.count, found.total)
    assert_shows(detail[3], found.low)
    assert_shows(detail[4], found.high)


def assert_python_agrees(driver: Any, page: Page, threshold: float) -> None:
    escape, overkill, review, by_class = page.rates(threshold)
    assert_tile(driver, "escape", escape)
    assert_tile(driver, "overkill", overkill)
    assert text(driver, "#escapes .count") == str(escape.count)
    assert text(driver, "#overkills .count") == str(overkill.count)
    if review.count:
        assert_tile(driver, "review", review)
    rows = driver.execute_script(
        "return [...document.querySelectorAll('#defects tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert [row[0] for row in rows] == CLASSES[:GOOD]
    for name, images, escapes, rate, ends in rows:
        assert (int(images), int(escapes)) == (by_class[name].total, by_class[name].count)
        assert_shows(rate, by_class[name].share)
        assert_shows(ends.split(" to ")[1], by_class[name].high)


@pytest.mark.parametrize("kind", ["page", "banded", "novel"])
class TestThreshold:
    pytestmark = browser_tests

    def test_numbers_are_python_s(self, kind: str, request: pytest.FixtureRequest, visit: Callable[..., Any]) -> None:
        page: Page = request.getfixturevalue(kind)
        driver = visit(page)
        point = page.inspector.point
        assert point is not None
        assert_python_agrees(driver, page, point.threshold)
        on_a_score = float(np.sort(page.tyres().scores)[50])  # a tyre exactly at the threshold is rejected
        for control, value in (("slider", 0.0), ("slider", 0.25), ("number", on_a_score), ("number", 1.0)):
            move(driver, control, value)
            assert_python_agrees(driver, page, value)
        driver.find_element("id", "reset").click()
        assert_python_agrees(driver, page, point.threshold)


class TestPage:
    pytestmark = browser_tests

    def test_the_keyboard_moves_the_threshold(self, page: Page, visit: Callable[..., Any]) -> None:
        driver = visit(page)
        move(driver, "slider", 0.3)
        driver.find_element("id", "slider").send_keys("\ue014")  # arrow right
        assert_python_agrees(driver, page, 0.301)

    def test_galleries_show_the_worst_first(self, page: Page, visit: Callable[..., Any]) -> None:
        driver = visit(page)
        tyres = page.tyres()
        scores, labels = tyres.scores, tyres.labels
        move(driver, "number", 0.6)
        keys = np.array(page.scores.keys.to_pylist())[tyres.deciding]
        escaped, overkilled = (labels != GOOD) & (scores < 0.6), (labels == GOOD) & (scores >= 0.6)
        for name, hit, order in (("escapes", escaped, scores), ("overkills", overkilled, -scores)):
            expected = keys[hit][np.argsort(order[hit], kind="stable")].tolist()
            shown = [item.text for item in driver.find_elements("css selector", f"#{name} .key")]
            assert shown == expected[:24]
        move(driver, "slider", 1.0)
        driver.find_element("css selector", "#escapes button[data-step='1']").click()
        expected = keys[labels != GOOD][np.argsort(scores[labels != GOOD], kind="stable")].tolist()
        assert [item.text for item in driver.find_elements("css selector", "#escapes .key")] == expected[24:48]
        assert "it is not an image file" in text(driver, "#escapes .cards")

    def test_what_the_model_looked_at_is_shown_on_demand(self, page: Page, visit: Callable[..., Any]) -> None:
        driver = visit(page)
        move(driver, "slider", 1.0)
        first = "return document.querySelector('#escapes img').src"
        plain = driver.execute_script(first)
        driver.find_element("id", "heat").click()
        heat = driver.execute_script(first)
        assert heat != plain
        driver.find_element("css selector", "#escapes .view").click()
        assert driver.execute_script(first) == plain

    def test_names_are_only_text(self, page: Page, visit: Callable[..., Any]) -> None:
        driver = visit(page)
        move(driver, "slider", 1.0)
        assert driver.title == f"Inspection report: {HOSTILE}"
        assert text(driver, "h1") == HOSTILE
        assert HOSTILE in text(driver, "#escapes .cards")
        assert driver.execute_script("return document.querySelectorAll('[onerror], img[src=x]').length") == 0

    @pytest.mark.parametrize("width", [320, 390, 1280])
    def test_nothing_is_wider_than_the_window(self, banded: Page, visit: Callable[..., Any], width: int) -> None:
        driver = visit(banded, width)
        move(driver, "slider", 1.0)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width

    def test_a_print_shows_the_threshold_and_no_slider(self, page: Page, visit: Callable[..., Any]) -> None:
        driver = visit(page)
        move(driver, "slider", 0.25)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        try:
            assert not driver.find_element("id", "slider").is_displayed()
            assert driver.find_element("id", "state").text == "0.25"
        finally:
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})

    def test_of_many_tyres_counts_are_to_the_next_step(
        self, tmp_path: Path, visit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decisions, "LISTED", 20)
        monkeypatch.setattr(decisions, "STEPS", 60)
        page = write(tmp_path, 1000, BAND)
        defective, good = sides(page.scores, GOOD, page.inspector.calibration)
        assert defective.step == 6 and good.step == 2
        driver, point = visit(page), page.inspector.point
        assert point is not None and len(embedded(page.path.read_text(encoding="utf-8"))["good"]["scores"]) < 90
        assert_python_agrees(driver, page, point.threshold)  # it counts to the promised threshold itself
        for value in (0.05, 0.3, 0.6, 0.97):
            move(driver, "slider", value)
            escape, overkill, *_ = page.rates(value)
            assert 0 <= int(text(driver, "#escapes .count")) - escape.count < 6
            assert 0 <= int(text(driver, "#overkills .count")) - overkill.count < 2
        assert "(the first 20 are listed)" in text(driver, "#escapes .range")
        body = driver.find_element("tag name", "body").text
        assert "they are counted to the next of every 6." in body

    def test_ten_thousand_images(self, tmp_path: Path, visit: Callable[..., Any]) -> None:
        page = write(tmp_path, 10_000, PROMISE)
        assert page.path.stat().st_size < 20e6
        driver = visit(page)
        for value in (0.2, 0.9):
            move(driver, "slider", value)
            assert_python_agrees(driver, page, value)
        assert "1 to 24 of" in text(driver, "#escapes .range")
