"""After a promotion the champion's exports lie beside it in MLflow, checked, or the reason does; nothing waits for it.

Real git, DVC, S3, MLflow, converter and LiteRT, and a process of its own for each export.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ssclass.cli import cli
from ssclass.errors import ParamsError, TrackingError
from ssclass.serving import attached, checked
from ssclass.serving.exporting import open_export
from ssclass.settings import Settings, load_settings
from ssclass.tracking import exports
from ssclass.tracking.exports import ATTEMPTS, TAG, pending, wanted
from ssclass.upkeep.settled import look
from ssclass.upkeep.verify.tracking import exports as findings
from ssclass.workspace.workspace import Workspace
from tests.support.serving import Served, network, two_champions

LITE, FULL = "litert-float16", "litert-float32"


@pytest.fixture(scope="module")
def served(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with two_champions(s3_endpoint, tmp_path_factory.mktemp("attached"), second=10) as made:
        yield made


@pytest.fixture
def fresh(served: Served) -> Iterator[Served]:
    """The shop, whose champion has no export and no word of one."""
    yield served
    tracking = served.shop.tracking
    with tracking.named():
        for number in served.shop.versions():
            for name in tags(served, number):
                if name.startswith(TAG):
                    tracking.client.delete_model_version_tag(tracking.name, number, name)


def asking(served: Served, names: str = LITE) -> Workspace:
    return Workspace(served.shop.workspace.settings.model_copy(update={"exports": names}))


def here(workspace: Workspace, number: str, name: str) -> tuple[int, str]:
    """What the process does, in this one: once is enough for the process itself."""
    attached.make(workspace, number, name)
    return 0, ""


def tags(served: Served, number: str | None = None) -> dict[str, str]:
    """The tags of a version, by default the champion's."""
    tracking = served.shop.tracking
    with tracking.named():
        found = tracking.client.get_model_version(tracking.name, number or tracking.alias())
    return dict(found.tags)


def files(served: Served, name: str = LITE) -> Path:
    """Where the champion's attached export lies."""
    tracking = served.shop.tracking
    with tracking.named():
        run = tracking.client.get_run(served.shop.state.decisions[served.shop.state.champion].body["run_id"])
    return Path(run.info.artifact_uri.removeprefix("file://")) / "exports" / name


# -- what is made --------------------------------------------------------------------------------------------------


def test_a_promotion_brings_the_export_that_answers_as_the_champion_and_once(
    fresh: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = fresh.shop
    monkeypatch.setenv("SSCLASS_EXPORTS", LITE)
    shop.send("third", 10)
    done = shop.retrain()
    assert (done.decision, done.version) == ("PROMOTED", shop.tracking.alias())
    told = tags(fresh)[TAG + LITE]
    assert told.startswith("attached: 0.0 MB, accuracy +0.0 points on 10 held-out photos, probabilities within")
    about = json.loads((files(fresh) / "model.json").read_text())
    assert (about["decision_key"], about["format"], about["dtype"]) == (shop.state.champion, "litert", "float16")
    run = open_export(files(fresh) / about["file"], "litert")
    expected = np.asarray(network(fresh.skill(shop.state.champion))(fresh.images))
    np.testing.assert_allclose(np.stack([run(image) for image in fresh.images]), expected, atol=5e-3)
    assert TAG + LITE not in tags(fresh, "1"), "former champions are left as they are"

    assert attached.attach_exports(asking(fresh)) == []
    said = look(load_settings(shop.workspace.root))
    assert said is not None
    assert said.decision == "SKIPPED", "nothing is left to do"

    made = files(fresh) / about["file"]
    with monkeypatch.context() as patch:
        patch.setattr(checked, "convert", lambda *_: pytest.fail("the attached one is taken"))
        command = ["export-model", "--format", "litert", "--dtype", "float16", "--to", str(tmp_path / "to")]
        given = CliRunner().invoke(cli, [*command, "--workspace", str(shop.workspace.root)])
    assert given.exit_code == 0, given.output
    assert (tmp_path / "to" / about["file"]).read_bytes() == made.read_bytes()
    assert json.loads((tmp_path / "to" / "model.json").read_text()) == about

    whole = made.read_bytes()
    made.write_bytes(whole[:-1] + b"?")
    (made.parent / "leftover.bin").write_bytes(b"of a try that was killed")
    assert attached.attached_to(asking(fresh), "champion", LITE, tmp_path / "damaged") is None
    assert not (tmp_path / "damaged").exists()
    (finding,) = findings(asking(fresh))
    assert "files are others" in finding.wrong
    assert finding.mend is not None
    monkeypatch.setattr(attached, "_in_a_process", here)
    finding.mend()
    assert list(findings(asking(fresh))) == []
    assert not (made.parent / "leftover.bin").exists()
    assert open_export(made, "litert")(fresh.images[0]) == pytest.approx(expected[0], abs=5e-3)


def test_what_was_killed_half_way_is_made_by_the_next_retrain(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, number = fresh.shop, str(fresh.shop.tracking.alias())

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attached, "_say", killed)
        with pytest.raises(KeyboardInterrupt):
            attached.make(asking(fresh), number, FULL)
    assert TAG + FULL not in tags(fresh)
    monkeypatch.setenv("SSCLASS_EXPORTS", FULL)
    assert look(load_settings(shop.workspace.root)) is None, "there is something left to do"
    monkeypatch.setattr(attached, "_in_a_process", here)
    assert shop.retrain().decision == "SKIPPED"
    assert tags(fresh)[TAG + FULL].startswith("attached: ")
    assert list(findings(asking(fresh, FULL))) == []


def test_one_that_answers_otherwise_is_refused_with_the_reason_and_not_tried_again(
    fresh: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that answers no numbers stands for a conversion that went wrong."""
    real = checked.convert
    monkeypatch.setattr(checked, "convert", lambda keras, *rest: real(network(float("nan")), *rest))
    attached.make(asking(fresh), str(fresh.shop.tracking.alias()), FULL)
    assert tags(fresh)[TAG + FULL].startswith("refused: ")
    assert "held-out photos right, the model" in tags(fresh)[TAG + FULL]
    assert attached.attach_exports(asking(fresh, FULL)) == []
    assert list(findings(asking(fresh, FULL))) == []


# -- what does not work -----------------------------------------------------------------------------------------------


def test_where_the_runtime_is_not_installed_it_says_so_and_waits_for_it(
    fresh: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(exports, "find_spec", lambda name: None)
        assert attached.attach_exports(asking(fresh)) == [LITE]
        told = tags(fresh)[TAG + LITE]
        assert told.startswith("skipped: ai-edge-litert is not installed; `pip install ai-edge-litert`")
        assert attached.attach_exports(asking(fresh)) == []
        assert list(findings(asking(fresh))) == []
    assert pending(asking(fresh).settings, tags(fresh)) == [LITE]


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", f"(exit code -{int(signal.SIGKILL)})"),
        ("raise ValueError('a flaw')", "ValueError: a flaw (exit code 1)"),
        ("import time; time.sleep(600)", "not done within 0 s"),
    ],
)
def test_a_process_that_dies_or_hangs_costs_no_decision_and_is_given_up_in_the_end(
    fresh: Served, monkeypatch: pytest.MonkeyPatch, program: str, told: str
) -> None:
    monkeypatch.setattr(attached, "PROGRAM", (sys.executable, "-c", program))
    if "600" in program:
        monkeypatch.setattr(attached, "LIMIT", 0.2)
    for times in range(1, ATTEMPTS + 1):
        assert attached.attach_exports(asking(fresh)) == [LITE]
        assert tags(fresh)[TAG + LITE].startswith(f"failed {times} time")
        assert told in tags(fresh)[TAG + LITE]
    assert attached.attach_exports(asking(fresh)) == []


def test_a_service_that_is_away_is_no_word_on_the_export(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "PROGRAM", (sys.executable, "-c", f"import sys; sys.exit({attached.AWAY})"))
    assert attached.attach_exports(asking(fresh)) == [LITE]
    assert TAG + LITE not in tags(fresh)
    monkeypatch.undo()
    monkeypatch.setattr(os, "nice", lambda by: 0)
    monkeypatch.setattr(attached, "make", lambda *_: (_ for _ in ()).throw(TrackingError("MLflow is away")))
    assert attached.main(str(fresh.shop.workspace.root), "1", LITE) == attached.AWAY


def test_a_retrain_ends_as_decided_whatever_becomes_of_the_exports(
    fresh: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSCLASS_EXPORTS", LITE)

    tried: list[str] = []

    def away(*given: Any) -> Any:
        tried.append(given[-1])
        raise OSError("no more processes")

    monkeypatch.setattr(attached, "_attach", away)
    assert fresh.shop.retrain().decision == "SKIPPED"
    assert tried == [LITE]


# -- the setting -----------------------------------------------------------------------------------------------------


def test_one_setting_says_which_and_none_turns_it_off(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSCLASS_EXPORTS")
    assert wanted(Settings(workspace=tmp_path)) == [LITE]
    assert wanted(Settings(workspace=tmp_path, exports=f"{LITE}, onnx-float32,{LITE}")) == [LITE, "onnx-float32"]
    assert wanted(Settings(workspace=tmp_path, exports="")) == []
    assert attached.attach_exports(asking(served, "")) == []
    (tmp_path / "ssclass.toml").write_text('exports = "onnx-int8"\n')
    with pytest.raises(ParamsError, match=r"ssclass\.toml: exports: "):
        load_settings(tmp_path)


def test_the_process_of_a_retrain_that_was_killed_is_not_joined_by_another(fresh: Served, capfd: Any) -> None:
    """Both wrote into one folder, and the sum of one stood beside the files of the other."""
    from filelock import FileLock

    with FileLock(fresh.shop.workspace.private / "export.lock"):
        code, said = attached._in_a_process(asking(fresh), str(fresh.shop.tracking.alias()), LITE)
    assert (code, said) == (attached.AWAY, "another process still exports; the next retrain looks again")
    assert TAG + LITE not in tags(fresh)
