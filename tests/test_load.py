"""`ssclass serve` as a process, for long: promotions and rollbacks, nonsense, ten thousand requests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from tests.support.load import BAD, asked_by, meanwhile, says_nothing, sends, stalls, streams
from tests.support.running import eventually
from tests.support.serving import Served, answering, network, served_process, turn_to, two_champions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def served(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with two_champions(s3_endpoint, tmp_path_factory.mktemp("load"), second=10) as made:
        yield made


@pytest.fixture(scope="module")
def process(served: Served) -> Iterator[tuple[str, psutil.Process]]:
    with served_process(served) as found:
        yield found


def test_a_hundred_promotions_and_rollbacks_fail_and_mix_no_answer(
    served: Served, process: tuple[str, psutil.Process]
) -> None:
    """The first is a promotion by a retrain; then three champions take turns, each opened again and again."""
    url, running = process
    shop = served.shop
    with asked_by(served, url, 4) as seen:
        shop.send("third", 10)
        third = next(iter({"1", "2", "3"} - set(served.expected)))
        event = shop.retrain()
        assert event.decision == "PROMOTED"
        served.expected[third] = np.asarray(network(served.skill(event.event["key"]))(served.images))
        eventually("the new champion answers", lambda: answering(url) == third)
        sizes = []
        for turn in range(99):
            turn_to(served, url, str(1 + turn % 3))
            if turn % 10 == 9:
                sizes.append(running.memory_info().rss)
    assert seen.failed == []
    assert set(seen.statuses) == {200}
    assert set(seen.versions) == {"1", "2", "3"}
    grown = (sizes[-1] - sizes[2]) / MEGABYTE
    assert grown < 100, f"{grown:.0f} MB more after 60 more champions were opened"


def test_memory_is_flat_over_ten_thousand_requests(served: Served, process: tuple[str, psutil.Process]) -> None:
    url, running = process
    with asked_by(served, url, 8) as seen:
        eventually("it is warm", lambda: seen.count > 2_000, 1200)
        before = running.memory_info().rss
        eventually("ten thousand more are answered", lambda: seen.count > 12_000, 2400)
        after = running.memory_info().rss
    assert (seen.failed, set(seen.statuses)) == ([], {200})
    assert after - before < 40 * MEGABYTE, f"{(after - before) / MEGABYTE:.0f} MB more"


def test_nonsense_of_every_kind_ends_in_4xx_while_others_are_served(
    served: Served, process: tuple[str, psutil.Process]
) -> None:
    url, _ = process
    slow = [(stalls, url)] * 40
    with asked_by(served, url, 4) as seen:
        with meanwhile(*slow, *[(says_nothing, url)] * 20) as waiting:
            for kind, body, status in BAD * 5:
                assert sends(url, body, kind) == status
            assert sends(url, bytes(70 * MEGABYTE), "image/jpeg") == 413
            assert streams(url, 70) == 413
            before = seen.count
        assert [each.result() for each in waiting] == [408] * 40 + [0] * 20
        assert seen.count > before, "others were answered while the slow ones were waited for"
    assert (seen.failed, set(seen.statuses)) == ([], {200})
