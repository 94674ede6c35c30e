"""The review: who gets in, what a person sees of a held batch, what becomes of what they decide; in a real browser."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import httpx
import pytest

from ssclass.environment import free_port
from ssclass.errors import InputError
from ssclass.history.batches import story
from ssclass.retrain.ingest import ingest, waiting
from ssclass.review import desk as desks
from ssclass.review.application import application
from ssclass.review.desk import Desk
from ssclass.review.entry import Entry
from ssclass.review.steps import Step, Steps
from ssclass.serving import collected
from ssclass.upkeep.finish import finish_forgetting
from ssclass.upkeep.forget import forget
from tests.support.browsing import PHONE, fits, in_a_thread, violations
from tests.support.shops import Shop, open_shop


@pytest.fixture(scope="module")
def shop(s3_endpoint, tmp_path_factory) -> Iterator[Shop]:
    """A shop with a champion, a batch whose labels are flipped and which is held for it, and a refused file."""
    with open_shop(tmp_path_factory.mktemp("review"), s3_endpoint, 120) as shop:
        shop.first(train=30)
        assert shop.retrain().decision == "PROMOTED"
        flipped = [{**entry, "split": "train"} for entry in shop.photos(16, (0.1,), flipped=True)]
        good = [{**entry, "split": "train"} for entry in shop.photos(4, (0.1,))]
        broken = {**shop.photos(1)[0], "data": b"no photo", "sha256": None, "key": "sushi/<b>broken</b>.jpg"}
        shop.deliver("day-2", [*good, *flipped, broken])
        shop.retrain()
        assert {batch for batch, _ in shop.state.held} == {"day-2"}
        yield shop


@pytest.fixture
def desk(shop, tmp_path) -> Iterator[Desk]:
    made = Desk(shop.workspace, tmp_path)
    made.refresh()
    yield made
    made.jobs.close()
    made.steps.path.unlink(missing_ok=True)


class Running:
    """The review as it is served, and a client that came in by the printed address."""

    def __init__(self, desk: Desk, entry: Entry, address: str) -> None:
        self.desk, self.entry, self.address = desk, entry, f"{address}{entry.root}"
        self.opening = f"{self.address}/"

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.opening, follow_redirects=True, timeout=60) as client:
            assert client.get("").status_code == 200
            yield client


@pytest.fixture
def running(desk) -> Iterator[Running]:
    entry, port = application(desk), free_port()
    with in_a_thread(entry, port):
        yield Running(desk, entry, f"http://127.0.0.1:{port}")


def ready(desk: Desk, batch: str = "day-2") -> Any:
    """A held batch once it has been read."""
    job = desk.begin_held(batch)
    while desk.jobs.state(job) == "running":
        time.sleep(0.02)
    assert desk.jobs.state(job) == "done", desk.jobs.said(job)
    return desk.held_batch(batch)


def test_nobody_gets_in_without_the_address_and_no_other_site_can_ask(running):
    forms = {"kind": "drop", "target": "day-2"}
    site = running.address.removesuffix(running.entry.root)
    with httpx.Client(base_url=site, timeout=60) as client:
        for path in ("/", "/decided", "/review.js", "/wrong/", f"{running.entry.root[:-1]}/", running.entry.root):
            answer = client.get(path)
            assert answer.status_code == 403, path
            assert "day-2" not in answer.text
        assert client.post("/step", data=forms).status_code == 403
    with running.client() as client:
        assert not client.cookies, "browsers would send them to every port of this machine"
        assert client.post("step", data=forms).status_code == 403, "a form of another page lacks the secret"
        ours = {**forms, "form": running.entry.form}
        assert client.post("step", data=ours, headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get("", headers={"Host": "evil.example"}).status_code == 403, "a name that leads to loopback"
        assert len(running.desk.steps) == 0
        assert client.post("step", data=ours).status_code == 200
    assert [step.kind for step in running.desk.steps.all] == ["drop"]


def test_a_held_batch_shows_what_the_champion_disagrees_with_first_and_what_would_be_refused(running):
    held = ready(running.desk)
    assert held.disputed == 16
    assert [item.disagrees for item in held.items] == [True] * 16 + [False] * 4
    with running.client() as client:
        page = client.get("held/day-2").text
    assert "the champion disagrees with 16, which come first" in page
    assert page.count("data:image/jpeg;base64,") == 20
    assert "&lt;b&gt;broken&lt;/b&gt;.jpg" in page
    assert "<b>broken" not in page
    assert "not an image" in page


def test_every_step_can_be_taken_back_before_it_is_sent_and_is_there_after_a_restart(desk, shop):
    photos = shop.sent["first"]
    first, second = list(photos)[:2]
    for label in ("sushi", "sandwich"):
        desk.decide("relabel", first, label)
    desk.decide("remove", second)
    assert [step.words for step in Steps(shop.workspace).standing().values()] == [
        "new label: sandwich",
        "to be removed",
    ]
    assert desk.steps.undo() == Step("remove", second)
    desk.steps.undo()
    assert desk.steps.standing()[first].label == "sushi", "what was decided before stands again"
    desk.steps.take_back(first)
    assert len(Steps(shop.workspace)) == 0
    with pytest.raises(InputError, match="nothing is decided"):
        desk.send()


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (("relabel", "first", "pizza"), "no class"),
        (("relabel", "f" * 64, "sushi"), "no such photo"),
        (("admit", "day-9"), "not a held batch"),
    ],
)
def test_a_step_that_fits_nothing_is_refused(desk, shop, step, said):
    kind, target, *label = step
    target = next(iter(shop.sent["first"])) if target == "first" else target
    with pytest.raises(InputError, match=said):
        desk.decide(kind, target, *label)
    assert len(desk.steps) == 0


def test_a_damaged_file_of_steps_is_named_with_a_remedy(shop):
    path = shop.workspace.private / "review" / "steps.json"
    path.parent.mkdir(exist_ok=True)
    for damaged in ("[{", '[{"kind": "explode", "target": "x"}]', "[1]", '{"a": 1}', '[{"kind": "keep", "target": 1}]'):
        path.write_text(damaged)
        with pytest.raises(InputError, match="delete it"):
            Steps(shop.workspace)
    path.unlink()


def test_a_forgotten_photo_leaves_the_steps_that_were_not_sent(desk, shop):
    """The steps of photos that are in the data set stay, and what was decided of batches."""
    (gone, *_, stays) = [sha for sha, label in shop.sent["first"].items()][10:]
    for photo in (gone, stays):
        desk.decide("remove", photo)
    desk.decide("admit", "day-2")
    forget(shop.workspace, [gone], "asked by mail")
    finish_forgetting(shop.workspace)
    left = Steps(shop.workspace).standing()
    assert set(left) == {stays, "day-2"}
    assert gone not in desk.steps.path.read_text()


def test_the_pages_are_clean_for_axe_at_phone_width_and_in_the_dark(running, chromium, shop):
    ready(running.desk)
    (doubted,) = kept(shop, 1)
    running.desk.decide("remove", next(iter(running.desk.workspace.at().dataset.by_sha256)))
    for size, scheme in (((1280, 900), "light"), (PHONE, "dark")):
        with chromium.page(size, scheme, bypass_csp=True) as page:
            page.goto(running.opening)
            for path in ("/", "/held/day-2", "/photos/mistakes", "/photos/doubtful", "/decided", "/photos/suspicious"):
                page.goto(running.address + path)
                chromium.shoot(page, f"review{path.replace('/', '-')}-{scheme}")
                assert violations(page) == [], path
                assert fits(page), path
    shop.workspace.store.erase(f"collect/{collected.today().isoformat()}/{doubted}")


def test_a_label_is_mended_by_keyboard_alone_and_the_next_data_version_and_the_story_have_it(running, chromium, shop):
    """Held batch: four labels are set right by a key each, one step is undone, one photo is removed; admitted, sent."""
    held = ready(running.desk)
    right = {item.sha256: item.says for item in held.items[:4]}
    with chromium.page() as page:
        page.goto(running.opening)
        keys = page.keyboard

        def tab_to(text: str) -> None:
            for _ in range(200):
                keys.press("Tab")
                if text in page.evaluate("(e => e.matches('a, button') ? e.textContent : '')(document.activeElement)"):
                    return
            raise AssertionError(f"the keyboard does not reach {text}")

        tab_to("day-2")
        keys.press("Enter")
        page.wait_for_selector(".photo")
        for item in held.items[:4]:
            keys.press("2" if item.says == "sushi" else "1")
        for key in "xux":  # typed faster than the answers come
            keys.press(key)
        page.evaluate("() => last.then(() => null)")
        assert page.text_content("[data-count]") == "5"
        removed = held.items[4].sha256
        assert "to be removed" in page.text_content(f"#photo-{removed}")
        chromium.shoot(page, "review-held-decided")
        page.reload()
        page.wait_for_selector(".photo")
        assert page.locator('.photo[data-kind="relabel"]').count() == 4, "it is there after a reload"

        page.goto(running.address + "/decided")
        assert "not admitted: 5 corrections" in page.text_content("main")
        page.go_back()
        page.evaluate("document.body.focus(); document.activeElement.blur()")
        tab_to("Admit the batch")
        keys.press("Enter")
        page.wait_for_selector("text=day-2: to be admitted")
        tab_to("Decided")
        keys.press("Enter")
        page.wait_for_selector("text=1 batch decided on, 5 corrections")
        tab_to("Send")
        keys.press("Enter")
        page.wait_for_selector("text=5 corrections are batch review-")
        chromium.shoot(page, "review-sent")
    assert len(running.desk.steps) == 0

    for ref in waiting(shop.workspace.store, shop.workspace.newest().state):
        done = ingest(shop.workspace, ref)
        assert done.outcome == "INGESTED", done
    labels = shop.labels()
    assert {photo: labels[photo] for photo in right} == right
    assert removed not in labels
    (corrections,) = [batch for batch in shop.state.ingested if batch.startswith("review-")]
    told = story(shop.workspace, corrections).receipt
    assert told is not None
    assert told["relabel"] == right
    assert told["remove"] == [removed]
    assert story(shop.workspace, "day-2").status == "ingested"

    with running.client() as client:
        client.get("")
        assert "review-" in client.get("").text
        path = f"sent/{corrections}/back"
        assert "is out since data/" in client.post(path, data={"form": running.entry.form}).text
        assert "no corrections" in client.post(path, data={"form": running.entry.form}).text
    labels = shop.labels()
    assert {photo: labels[photo] for photo in right} != right, "labels are as they were"
    assert removed in labels


def test_so_many_corrections_are_held_as_anybodys_are_and_the_page_shows_and_admits_them(desk, shop):
    rows = list(shop.workspace.newest().dataset.by_sha256.values())[-9:]
    for row in rows:
        desk.decide("relabel", row.sha256, "sushi" if row.label == "sandwich" else "sandwich")
    batch = re.search(r"review-[\w-]+", desk.send()[0])[0]
    for ref in waiting(shop.workspace.store, shop.state):
        assert "many corrections" in ingest(shop.workspace, ref).reason
    desk.refresh()
    held = ready(desk, batch)
    assert (held.relabelled, held.removed, held.items) == (9, 0, ())
    desk.decide("admit", batch)
    assert desk.send() == [f"{batch} joins with the next retrain."]
    for ref in waiting(shop.workspace.store, shop.state):
        assert ingest(shop.workspace, ref).outcome == "INGESTED"
    labels = shop.labels()
    assert all(labels[row.sha256] != row.label for row in rows)


def test_refused_files_are_shown_with_their_reasons_and_opened_by_the_guard_alone(running, shop, monkeypatch):
    """After day-2 was taken in, its broken file lies in quarantine."""
    if "day-2" not in shop.state.ingested:  # it was admitted in a browser, where there is one
        running.desk.decide("admit", "day-2")
        running.desk.send()
        assert take_in(shop) == ["INGESTED"]
    with running.client() as client:
        page = client.get("refused/day-2").text
        assert "&lt;b&gt;broken&lt;/b&gt;.jpg" in page
        assert "none</td>" in page, "what cannot be opened has no picture"
        assert "Not taken in of this batch: 1 file," in page
    opened = []
    monkeypatch.setattr("ssclass.review.pictures.thumbnail", lambda data, side: opened.append(data))
    assert running.desk.pictures.of_quarantine("day-2", "sushi/<b>broken</b>.jpg") == ""
    assert opened == [], "what the guard refuses is not opened in this process"


def test_what_was_sent_and_not_taken_in_is_taken_back_too(desk, shop):
    photo = next(iter(shop.workspace.newest().dataset.by_sha256))
    desk.decide("remove", photo)
    done = desk.send()
    batch = re.search(r"review-[\w-]+", done[0])[0]
    assert json.loads(shop.workspace.store.get(f"incoming/{batch}/manifest.json"))["remove"] == [{"sha256": photo}]
    assert "stays out" in desk.take_back(batch)
    assert waiting(shop.workspace.store, shop.workspace.newest().state) == []


def test_a_hundred_photos_are_a_page_or_three_and_each_costs_one_key(desk, shop, monkeypatch):
    items = desk.queue("mistakes")
    assert items, "the fake champion has the hardest held-out photos wrong"
    assert all(item.disagrees for item in items)
    monkeypatch.setattr(desks, "PAGE", 2)
    shown = [desk.show(items, page) for page in range(1, 9)]
    assert shown[0].pages == -(-len(items) // 2)
    seen = {item.sha256 for page in shown for item, picture, _ in page.items if picture}
    assert seen == {item.sha256 for item in items}


# -- photos that `ssclass serve` kept ---------------------------------------------------------------------------


def kept(shop: Shop, count: int, day: date | None = None, flipped: bool = False) -> dict[str, str]:
    """So many photos in collect/, kept since a day (today): sha256 → what they truly show."""
    made = shop.photos(count, (0.1,), flipped)
    for entry in made:
        photo = collected.keep(shop.workspace.store, entry["data"], entry["sha256"])
        if day is not None:
            shop.workspace.store.delete(photo.key)
            shop.workspace.store.put(f"collect/{day.isoformat()}/{photo.sha256}", entry["data"])
    return {entry["sha256"]: entry["label"] for entry in made}


def waiting_for_labels(desk: Desk) -> list[str]:
    return [item.sha256 for item in desk.queue("doubtful")]


def take_in(shop: Shop) -> list[str]:
    return [ingest(shop.workspace, ref).outcome for ref in waiting(shop.workspace.store, shop.workspace.newest().state)]


def test_doubtful_photos_get_their_labels_by_keyboard_and_are_in_the_next_data_version(running, chromium, shop):
    truth = kept(shop, 5)
    broken = b"no photo at all"
    junk = collected.keep(shop.workspace.store, broken, hashlib.sha256(broken).hexdigest()).sha256
    shown = waiting_for_labels(running.desk)
    assert set(shown) == {*truth, junk}
    before = set(shop.state.ingested)
    with chromium.page() as page:
        page.goto(running.opening)
        page.get_by_role("link", name="Doubtful photos of the service").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".photo")
        assert page.locator(".photo img").count() == 5, "what the guard refuses has no picture"
        for sha256 in shown:
            page.keyboard.press("x" if sha256 == junk else "2" if truth[sha256] == "sushi" else "1")
        page.wait_for_selector('[data-count]:text-is("6")')
        chromium.shoot(page, "review-doubtful")
        page.goto(running.address + "/decided")
        page.get_by_text("5 labelled, 1 to be deleted").wait_for()
        page.get_by_role("button", name="Send").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("text=5 photos with their labels are batch review-photos-")
    assert waiting_for_labels(running.desk) == [], "sent, and not taken in yet"
    assert [photo.sha256 for photo in collected.collected(shop.workspace.store)].count(junk) == 0
    assert take_in(shop) == ["INGESTED"]
    labels = shop.labels()
    assert {photo: labels[photo] for photo in truth} == truth
    assert {row.split for row in shop.workspace.at().dataset.rows if row.sha256 in truth} == {"train"}
    (batch,) = set(shop.state.ingested) - before
    assert batch.startswith("review-photos-")
    assert waiting_for_labels(running.desk) == []
    assert "is out since data/" in running.desk.take_back(batch)
    running.desk.refresh()
    assert set(waiting_for_labels(running.desk)) == set(truth), "taken back, they wait again while they are kept"


def test_what_is_no_longer_kept_is_neither_shown_nor_sent(desk, shop):
    days = shop.workspace.settings.collect_days
    today = collected.today()
    old = kept(shop, 1, today - timedelta(days=days + 1))
    (last,) = kept(shop, 1, today - timedelta(days=days))
    assert last in waiting_for_labels(desk)
    assert not set(old) & set(waiting_for_labels(desk))
    place = next(item.held for item in desk.queue("doubtful") if item.sha256 == last)
    with pytest.raises(InputError, match="no such photo"):
        desk.decide("relabel", next(iter(old)), "sushi", f"collect/{today - timedelta(days=days + 1)}")
    with pytest.raises(InputError, match="no label yet"):
        desk.decide("keep", last, "", place)
    with pytest.raises(InputError, match="no class"):
        desk.decide("relabel", last, "pizza", place)
    desk.decide("relabel", last, "sushi", place)
    shop.workspace.store.erase(f"{place}/{last}")
    assert desk.send() == ["No longer kept, so not sent: 1 of the photos."]
    assert waiting(shop.workspace.store, shop.workspace.newest().state) == []
    assert len(desk.steps) == 0


def test_a_photo_that_the_data_set_has_or_that_is_kept_twice_is_asked_about_once_at_most(desk, shop):
    (there,) = shop.photos(1)
    for day in (collected.today(), collected.today() - timedelta(days=3)):
        shop.workspace.store.put(f"collect/{day.isoformat()}/{there['sha256']}", there["data"])
    assert waiting_for_labels(desk).count(there["sha256"]) == 1
    shop.deliver("has-it", [{**there, "split": "train"}])
    assert take_in(shop) == ["INGESTED"]
    desk.refresh()
    assert there["sha256"] not in waiting_for_labels(desk)


def test_what_was_sent_and_refused_is_not_asked_about_again(desk, shop):
    """Its labels are wrong, so the batch is held: admitted or dropped, its photos come up again only once it is out."""
    wrong = kept(shop, 12, flipped=True)
    for item in desk.queue("doubtful"):
        if item.sha256 in wrong:
            desk.decide("relabel", item.sha256, wrong[item.sha256], item.held)
    (said,) = desk.send()
    batch = re.search(r"review-photos-[\w-]+", said)[0]
    assert take_in(shop) == ["HELD"]
    desk.refresh()
    assert not set(wrong) & set(waiting_for_labels(desk))
    assert ready(desk, batch).disputed == 12, "it is looked at as any held batch"
    desk.decide("drop", batch)
    desk.send()
    desk.refresh()
    assert set(wrong) <= set(waiting_for_labels(desk))


def test_a_batch_of_a_stranger_that_is_called_like_ours_does_not_close_the_page(running, shop):
    """Its photos have no sha256, or its manifest is none: the first page was an error for ever."""
    kept(shop, 1)
    store = shop.workspace.store
    store.put(
        "incoming/review-photos-a/manifest.json", b'{"schema": 1, "photos": [{"key": "a.jpg", "label": "sushi"}]}'
    )
    store.put("incoming/review-photos-b/manifest.json", b"[]")
    try:
        with running.client() as client:
            assert "Doubtful photos of the service" in client.get("").text
    finally:
        for batch in "ab":
            store.delete(f"incoming/review-photos-{batch}/manifest.json")


def test_a_batch_that_was_sent_again_is_not_admitted_as_the_one_that_was_seen(running, shop):
    """What a person saw and decided on may lie for days; the batch by that name may be another one by then."""
    desk = running.desk
    seen = [{**entry, "split": "train"} for entry in shop.photos(12, (0.1,), flipped=True)]
    shop.deliver("twice", seen)
    assert take_in(shop) == ["HELD"]
    desk.refresh()
    ready(desk, "twice")
    with running.client() as client:
        page = client.get("held/twice").text
        (before,) = set(re.findall(r'name="held" value="([0-9a-f]{32})"', page))
        desk.decide("admit", "twice", held=before)
        shop.deliver("twice", [{**entry, "split": "train"} for entry in shop.photos(12, (0.1,), flipped=True)])
        assert take_in(shop) == ["HELD"]
        with pytest.raises(InputError, match="sent again since it was looked at"):
            desk.send()
        assert "twice" in {batch for batch, _ in shop.state.held}
        assert len(desk.steps) == 0
        told = {"kind": "admit", "target": "twice", "held": before, "form": running.entry.form}
        assert client.post("step", data=told).status_code == 422
    with pytest.raises(InputError, match="sent again since it was looked at"):
        desk.decide("drop", "twice", held=before)
    desk.decide("drop", "twice")
    assert desk.send() == ["twice stays out."]
