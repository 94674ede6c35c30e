"""Pages: one template for all, nothing from outside, text that others wrote stays text; the report of a decision."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ssclass.cli import cli
from ssclass.pages import charts, report
from ssclass.pages.page import Page, Picture
from ssclass.pages.vector import chart
from ssclass.tracking import publish
from ssclass.upkeep.finish import finish_forgetting
from ssclass.upkeep.forget import forget
from ssclass.workspace.workspace import Workspace
from tests.support.browsing import PHONE, WIDE, fits, violations
from tests.support.shops import Shop, open_shop

TEXT_SIZES = """Math.min(...[...document.querySelectorAll("svg text")].map(
  (text) => parseFloat(getComputedStyle(text).fontSize) * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b)))"""
COLUMNS_IN_SIGHT = """[...document.querySelectorAll("[role=columnheader]")].filter((column) => {
  const box = column.getBoundingClientRect();
  return column.contains(document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2));
}).sort((a, b) => a.getBoundingClientRect().left - b.getBoundingClientRect().left)
  .map((column) => column.innerText.trim())"""
EVIL = "<script>alert(1)</script> $x^2$ `a` \u202eabc"


class Outline(HTMLParser):
    """What a page is made of: tags with their attributes, ids, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.tags if "id" in attributes]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def shop(s3_endpoint, tmp_path_factory) -> Iterator[Shop]:
    """A shop with two champions and a candidate that was rejected, each with its report."""
    with open_shop(tmp_path_factory.mktemp("pages"), s3_endpoint, 60) as shop, pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "report", report.report)  # the real one
        shop.first()
        assert shop.retrain().decision == "PROMOTED"
        shop.send("second")
        assert shop.retrain().decision == "PROMOTED"
        shop.deliver("third", [*shop.photos(1), {**shop.photos(1)[0], "data": b"no photo", "sha256": None}])
        assert shop.retrain().decision == "REJECTED"
        yield shop


def logged(shop: Shop, key: str, path: Path) -> str:
    """The report among the artifacts of a decision's run; empty where there is none."""
    run = shop.run(key)
    with shop.tracking.named():
        if "report.html" not in {each.path for each in shop.tracking.client.list_artifacts(run.info.run_id)}:
            return ""
        return Path(shop.tracking.client.download_artifacts(run.info.run_id, "report.html", str(path))).read_text()


def keys(shop: Shop) -> list[str]:
    return list(shop.state.decisions)


def told(shop: Shop, *args: object) -> str:
    done = CliRunner().invoke(cli, ["report", *map(str, args), "--workspace", str(shop.workspace.root)])
    assert done.exit_code == 0, done.output
    return done.output


def test_every_decision_has_its_report_on_its_run_and_the_command_makes_the_same(shop, tmp_path):
    for name, key in (("1", keys(shop)[0]), ("champion", keys(shop)[1]), (None, keys(shop)[2])):
        html = logged(shop, key, tmp_path)
        body = shop.state.decisions[key].body
        assert body["reason"][1:] in html
        told(shop, *([name] if name else []), "--out", tmp_path / "made.html")
        made = (tmp_path / "made.html").read_text()
        assert Outline(made).of("h2") == Outline(html).of("h2")
        assert made == html, "the same photos and the same answers"
    run_id = shop.state.decisions[keys(shop)[0]].body["run_id"]
    assert json.loads(told(shop, run_id, "--json", "--out", tmp_path / "run.html"))["key"] == keys(shop)[0]


def test_the_report_says_what_was_decided_and_why_and_what_went_into_it(shop, tmp_path):
    text = Outline(logged(shop, keys(shop)[1], tmp_path)).text
    assert "The new model is champion 2" in text
    assert "Of 10 held-out photos the new model has 8 right, 1 more than the champion" in text
    assert "right on 1 that the champion got wrong, and wrong on 0 that the champion got right" in text
    assert "new since the decision before: second" in text
    assert f"git checkout run/{keys(shop)[1]}" in text
    rejected = Outline(logged(shop, keys(shop)[2], tmp_path)).text
    assert "The champion stays" in rejected
    assert "needs at least 1 more" in rejected
    assert re.search(r"third 1 0 1 \w[\w ]+ 0 / 0", rejected), "one photo is new, one was refused, with its reason"


def test_the_photos_that_one_model_has_right_alone_are_shown_without_metadata(shop, tmp_path):
    import base64

    html = logged(shop, keys(shop)[1], tmp_path)
    part = html.split(">Only the candidate is right<")[2].split("<h2")[0]  # the first is the list of contents
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', part)
    assert len(shown) == 1
    data = base64.b64decode(shown[0])
    assert b"fake " not in data, "the comment of the photo as it was sent"
    assert len(data) < 20_000


def test_a_page_needs_nothing_else_and_has_what_a_reader_of_screens_needs(shop, tmp_path):
    outline = Outline(logged(shop, keys(shop)[1], tmp_path))
    assert not outline.of("script")
    assert [link["href"] for link in outline.of("link")] == ["data:,"]
    assert all(str(image["src"]).startswith("data:") and image["alt"] for image in outline.of("img"))
    assert len(outline.of("main")) == len(outline.of("h1")) == 1
    assert len(outline.ids) == len(set(outline.ids)), "charts of one page do not share ids"
    referred = {str(link["href"])[1:] for link in outline.of("a")}
    referred |= {str(use.get("xlink:href", "#"))[1:] for use in outline.of("use")}
    assert referred <= set(outline.ids)
    wide = [each for _, each in outline.tags if each.get("role") == "region"]
    assert all(each["tabindex"] == "0" for each in wide)
    assert len({each["aria-label"] for each in wide}) == len(wide) > 3


def test_what_others_wrote_stays_text_wherever_a_page_has_it():
    page = Page(EVIL)
    page.verdict(EVIL, EVIL)
    page.heading(EVIL)
    page.text(EVIL)
    page.table((EVIL, "n"), [(EVIL, 1)])
    page.show({EVIL: Picture(b"\x89PNG", EVIL)})
    labels = np.array([0, 1, 1])
    page.draw(*charts.of_answers((EVIL, "b"), labels, {EVIL: np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])}))
    outline = Outline(page.html())
    assert not outline.of("script")
    assert "\u202e" not in page.html()
    assert outline.text.count("alert(1)") > 8


def test_no_label_of_a_chart_is_cut_off() -> None:
    """The learning rate's was: its numbers are long, and the margin was that of short ones."""
    chance = np.random.default_rng(0)
    answers, labels = chance.dirichlet((1, 1), 40), chance.integers(0, 2, 40)
    history = {"T1 learning_rate": [0.001] * 5, "T1 loss": chance.random(5) * 1000, "T1 accuracy": chance.random(5)}
    made = charts.of_answers(("a", "b"), labels, {"candidate": answers, "champion": answers[::-1]})
    drawn = {each.title: each.figure for each in (*made, *charts.curves(history))}
    drawn |= {"the error": charts.calibration(answers, labels == 1, 0.123)}
    assert len(drawn) == 7
    for title, figure in drawn.items():
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, (title, box.extents)


def test_charts_follow_the_scheme_of_the_reader():
    labels = np.array([0, 1, 1, 0])
    answers = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    for made in charts.of_answers(("a", "b"), labels, {"candidate": answers, "champion": answers[::-1]}):
        assert "<text" in made.svg, "text stays text"
        assert not re.findall(r"#[0-9a-f]{6}\b", made.svg), "every colour has a value for dark pages too"
        assert made.words
        assert made.width < 480, "a phone shows it without making its text small"


def test_the_report_is_clean_for_axe_wide_and_on_a_phone_in_light_and_dark(shop, tmp_path, chromium):
    path = tmp_path / "report.html"
    path.write_text(logged(shop, keys(shop)[1], tmp_path))
    for size in (WIDE, PHONE):
        for scheme in ("light", "dark"):
            with chromium.page(size, scheme, bypass_csp=True) as page:
                page.goto(path.as_uri())
                chromium.shoot(page, f"report-{scheme}-{size[0]}")
                assert violations(page) == []
                assert fits(page)
                paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
                smallest = page.evaluate(TEXT_SIZES)
                assert smallest >= 8.5, "the text of charts is legible, in pixels on the screen"


def test_whatever_is_too_wide_for_a_phone_is_reached_and_moved_by_keyboard(tmp_path, chromium):
    """A page as `study`, `explain` and `data suspects` make them, with a table and a chart that are wide."""
    from matplotlib.figure import Figure

    page = Page("A page")
    page.heading("Wide")
    page.table([f"column {n}" for n in range(20)], [[f"value {n}" for n in range(20)]])
    figure = Figure(figsize=(9, 3))
    figure.subplots().plot([1, 2, 3])
    page.draw(chart("wide", figure, "A chart", "It rises."))
    (tmp_path / "page.html").write_text(page.html())
    with chromium.page(PHONE, bypass_csp=True) as opened:
        opened.goto((tmp_path / "page.html").as_uri())
        assert violations(opened) == []
        assert fits(opened)
        for _ in range(2):
            opened.keyboard.press("Tab")
            region = opened.evaluate_handle("document.activeElement")
            assert opened.evaluate("r => r.scrollWidth > r.clientWidth && r.scrollLeft === 0", region)
            opened.keyboard.press("ArrowRight")
            opened.wait_for_function("r => r.scrollLeft > 0", arg=region)


def test_two_charts_are_the_same_when_made_again():
    from matplotlib.figure import Figure

    def make() -> str:
        figure = Figure()
        figure.subplots().plot([1, 2])
        return str(chart("one", figure, "title", "words").svg)

    assert make() == make()


def test_a_report_of_what_is_no_decision_is_refused(shop):
    done = CliRunner().invoke(cli, ["report", "nothing", "--workspace", str(shop.workspace.root)])
    assert "no run and no champion" in str(done.exception)


@pytest.fixture
def mlflow_server(shop) -> Iterator[str]:
    """MLflow's own server and UI, on the shop's database."""
    from mlflow.server import app, handlers
    from werkzeug.serving import make_server

    uri = f"sqlite:///{shop.folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "_tracking_store", None)
        patch.setattr(handlers, "_model_registry_store", None)
        handlers.initialize_backend_stores(uri, uri, str(shop.folder / "artifacts"))
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_why_a_model_was_not_promoted_is_two_clicks_away_in_mlflow(shop, mlflow_server, chromium):
    """From the run table, whose address every command gives, at 1280 pixels: one on the run, which begins with its
    decision; or one that closes what MLflow offers at first, and the columns say it."""
    body = shop.state.decisions[keys(shop)[2]].body
    with chromium.page(WIDE, strict=False) as page:
        page.goto(shop.tracking.page(mlflow_server))
        page.evaluate("window.clicks = 0; addEventListener('click', () => { window.clicks += 1; }, true)")
        run = page.get_by_role("link", name=re.compile("^REJECTED")).first
        run.wait_for()
        offered = page.get_by_text("Welcome to MLflow Assistant")
        if offered.is_visible():
            page.get_by_role("button", name="Close").last.click()
            offered.wait_for(state="hidden")
        page.get_by_text(body["reason"]).first.wait_for()
        chromium.shoot(page, "mlflow-runs")
        seen = list(dict.fromkeys(page.evaluate(COLUMNS_IN_SIGHT)))  # a header is in another of its name
        ours = ["decision", "reason", "candidate", "champion", "gain"]
        assert [name for name in seen if name in ours] == ours, seen
        assert set(seen[: seen.index("decision")]) - {"", "Tags"} == {"Run Name", "Created", "Duration"}, "MLflow's own"
        run.click()
        page.wait_for_url(re.compile("/runs/"))
        page.get_by_text(body["reason"]).first.wait_for()
        chromium.shoot(page, "mlflow-why")
        assert 1 <= page.evaluate("window.clicks") <= 2


def test_where_the_answers_are_gone_they_are_asked_for_again(shop, tmp_path):
    import shutil

    key = keys(shop)[1]
    shutil.copytree(shop.workspace.private / "results", tmp_path / "kept")
    shutil.rmtree(shop.workspace.private / "results" / key)
    store = shop.workspace.store
    for listed in list(store.list(f"results/{key}/")):
        store.delete(listed.key)
    told(shop, key, "--out", tmp_path / "again.html")
    text = Outline((tmp_path / "again.html").read_text()).text
    assert "Only the candidate is right" in text
    assert "8 of 10 7 of 10" in text
    shutil.copytree(tmp_path / "kept", shop.workspace.private / "results", dirs_exist_ok=True)


def test_a_forgotten_photo_leaves_every_report_and_comes_into_no_new_one(shop, tmp_path):
    """Last: it changes the shop."""
    key = keys(shop)[1]
    body = shop.state.decisions[key]
    before = logged(shop, key, tmp_path)
    part = before.split(">Only the candidate is right<")[2].split("<h2")[0]
    (photo,) = {sha for sha in shop.sent["first"] if sha[:16] in part}
    forget(shop.workspace, [photo], "asked by mail")
    assert [logged(shop, each, tmp_path) for each in keys(shop)] == ["", "", ""], "all three were judged by it"

    assert f"on run {body.body['run_id']}" in told(shop, key, "--log", "--out", tmp_path / "new.html")
    after = logged(shop, key, tmp_path)
    assert photo[:16] not in after
    assert "A photo that is no longer in the data set." in after
    finish_forgetting(Workspace(shop.workspace.settings))  # as every retrain of the next days does
    assert logged(shop, key, tmp_path) == after, "it shows no forgotten photo, so it stays"
