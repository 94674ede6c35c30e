"""Files that people write, in every state that they can be in; files that we write, whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssclass.data.submit import submit_corrections
from ssclass.errors import BatchError, InputError, ParamsError, WorkspaceError
from ssclass.files import PARTIAL, whole, write_whole
from ssclass.params import Params, load_params, parse_params
from ssclass.settings import Settings, load_settings
from ssclass.store import Store

# -- what people write --------------------------------------------------------------------------------------

PARAMS = "dataset: {classes: [sandwich, sushi]}\n"
TOML = 'bucket = "b"\n'
STATES: dict[str, Callable[[Path, str], object]] = {
    "a folder": lambda path, text: path.mkdir(),
    "a pipe": lambda path, text: os.mkfifo(path),
    "a link to itself": lambda path, text: path.symlink_to(path),
    "UTF-16": lambda path, text: path.write_bytes(text.encode("utf-16")),
    "Latin-1": lambda path, text: path.write_bytes(text.encode() + b"# \xe9\n"),
    "NUL bytes": lambda path, text: path.write_text(text + "\0\0"),
    "all NUL": lambda path, text: path.write_bytes(bytes(4096)),
    "control characters": lambda path, text: path.write_text(text + "\x1b[2J"),
    "too large": lambda path, text: path.write_bytes(b"#" * 2_000_000),
    "a picture": lambda path, text: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    "nested": lambda path, text: path.write_text("a = " + "[" * 5000),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("file", ["params.yaml", "ssclass.toml", "started.toml"])
def test_a_settings_file_in_any_state_is_one_line_that_names_it(file: str, state: str, tmp_path: Path) -> None:
    path = tmp_path / file
    if file == "started.toml":
        (tmp_path / "ssclass.toml").write_text(TOML)
        path = tmp_path / ".ssclass" / file
        path.parent.mkdir()
    STATES[state](path, PARAMS if file == "params.yaml" else TOML)
    with pytest.raises((ParamsError, WorkspaceError)) as caught:
        load_params(path) if file == "params.yaml" else load_settings(tmp_path)
    said = str(caught.value)
    assert str(tmp_path) in said
    if not isinstance(caught.value, WorkspaceError):  # a folder called ssclass.toml makes no workspace
        assert file in said
    assert said.isprintable()
    assert "; " in said, "a remedy"
    assert len(said) < 2500


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbf" + PARAMS.encode())
    assert load_params(tmp_path / "params.yaml").dataset.classes == ("sandwich", "sushi")
    (tmp_path / "ssclass.toml").write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    assert load_settings(tmp_path).bucket == "b"


@pytest.mark.parametrize("state", sorted(set(STATES) - {"a pipe", "nested"}))
def test_a_manifest_of_corrections_in_any_state(state: str, s3: Store, tmp_path: Path) -> None:
    path = tmp_path / "corrections.json"
    STATES[state](path, '{"schema": 1}')
    with pytest.raises(BatchError) as caught:
        submit_corrections(s3, path, "b1")
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert list(s3.list("incoming/")) == []


VALUES = {
    "train: {seed: 2024-13-45}": "month must be in 1..12",
    "train: {seed: !!int abc}": "abc",
    "train: {seed: !!float abc}": "abc",
    "train: {seed: !!timestamp x}": "not readable as YAML",
    "train: {seed: !!bool maybe}": "not readable as YAML",
    "train: {seed: !!int ''}": "not readable as YAML",
    "train: {seed: !!binary x}": "not readable as YAML",
    "train: {seed: !!python/object/apply:os.system [ls]}": "not readable as YAML",
    "train: {seed: " + "9" * 5000 + "}": "not readable as YAML",
    "? [a]\n: b": "not readable as YAML",
    "? {a: b}\n: b": "not readable as YAML",
    "[" * 3000: "not readable as YAML",
    "train: {seed: *nowhere}": "not readable as YAML",
    "3: 4": "3: ",
    "train: 3": "train: ",
    "train: null": "train: ",
    "schema: 2": "use a newer ssclass",
    "schema: [1]": "use a newer ssclass",
    "train: {seed: -1}": "train.seed: ",
    "train: {seed: 4294967296}": "train.seed: ",
    "augment: {seed: -1}": "augment.seed: ",
    "train: {learning_rate: .inf}": "train.learning_rate: ",
    "train: {learning_rate: .nan}": "train.learning_rate: ",
    "train: {learning_rate: 1e300}": "train.learning_rate: ",
    "train: {learning_rate: 0}": "train.learning_rate: ",
    "train: {tune_learning_rate: .inf}": "train.tune_learning_rate: ",
    "train: {epochs: 1000000000}": "train.epochs: ",
    "features: {sizes: []}": "features.sizes: ",
    "features: {sizes: [320, 320]}": "features.sizes: ",
    "features: {sizes: 320}": "features.sizes: ",
    "dataset: {classes: [a, b], sources: []}": "dataset.sources",
    "dataset: {classes: [a, b], sources: [a/b]}": "dataset.sources",
    "dataset: {classes: [a, b], holdout_fraction: .nan}": "dataset.holdout_fraction: ",
    "ingest: {growth: .nan}": "ingest.growth: ",
    "ingest: {implausible: .inf}": "ingest.implausible: ",
    "model: {members: []}": "model.members: ",
    "gate: {floor_margin: .nan}": "gate.floor_margin: ",
    "dataset: {classes: [yes, no]}": "quotation marks",
    "dataset: {classes: ['..', sushi]}": "'..'",
    "dataset: {classes: [.hidden, sushi]}": "'.hidden'",
    'dataset: {classes: ["a\\nb", sushi]}': "'a\\nb'",
    'dataset: {classes: ["a\\e[2J", sushi]}': "'a\\x1b[2J'",
    'dataset: {classes: ["a\\u202eb", sushi]}': "'a\\u202eb'",
    "dataset: {classes: [" + "x" * 300 + ", sushi]}": "at most 200 bytes",
    "dataset: {classes: [" + "寿" * 100 + ", sushi]}": "at most 200 bytes",
    "dataset: {classes: [Sushi, sushi]}": "'Sushi' and 'sushi'",
    "dataset: {classes: [STRASSE, straße]}": "'STRASSE' and 'straße'",
    "dataset: {classes: [caf\u00e9, cafe\u0301]}": "two different classes",
    "dataset: {classes: [sushi]}": "two different classes",
    "dataset: {classes: [a/b, sushi]}": "no slash",
    "dataset: {classes: [' a', sushi]}": "no blanks around it",
    "dataset: {classes: ['', sushi]}": "not empty",
    "- 1": "the whole file: ",
    "3": "the whole file: ",
}


@pytest.mark.parametrize("text", VALUES, ids=lambda text: text[:60])
def test_params_that_cannot_be_used_are_refused_where_they_stand(text: str) -> None:
    given = text if text.startswith(("dataset", "- ", "3")) and text != "3: 4" else PARAMS + text
    with pytest.raises(ParamsError) as caught:
        parse_params(given, "params.yaml")
    said = str(caught.value)
    assert said.startswith("params.yaml: ")
    assert VALUES[text] in said
    assert said.isprintable()
    assert "; " in said, "a remedy"


@pytest.mark.parametrize("name", ["fish & chips", "crème brûlée", "寿司", "100%", "a:b", "O'Hara", "می\u200cخواهم"])
def test_classes_that_people_have(name: str) -> None:
    assert Params.model_validate({"dataset": {"classes": [name, "other"]}}).dataset.classes[0] == name


def test_classes_are_composed() -> None:
    given = {"dataset": {"classes": ["cafe\u0301", "sushi"]}}
    assert Params.model_validate(given).dataset.classes == ("caf\u00e9", "sushi")


SETTINGS = {
    'sweep = "often"': "sweep: ",
    "sweep = inf": "sweep: ",
    "sweep = 0": "sweep: ",
    "patience = nan": "patience: ",
    'bucket = ""': "bucket: ",
    "bucket = 3": "bucket: ",
    's3_endpoint = "localhost:9000"': "no address like http://host:port",
    's3_endpoint = "http://"': "no address like http://host:port",
    's3_endpoint = "http://host:port"': "no address like http://host:port",
    's3_endpoint = "\\u001b[2J"': "'\\x1b[2J' is no address",
    'prefect_url = "prefect"': "no address like http://host:port",
    'sqs = "queue"': "no address like http://host:port",
    "colour = 1": "colour: ",
    '"\\u001b[2J" = 1': "\\x1b[2J: ",
    "[bucket]\na = 1": "bucket: ",
    "bucket": "not readable as TOML",
    'bucket = "a"\nbucket = "b"': "not readable as TOML",
    "x = 2024-13-45": "not readable as TOML",
}


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_that_cannot_be_used_name_their_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "ssclass.toml").write_text(text)
    with pytest.raises(ParamsError) as caught:
        load_settings(tmp_path)
    said = str(caught.value)
    assert str(tmp_path / "ssclass.toml") in said
    assert SETTINGS[text] in said
    assert said.isprintable()
    assert "; " in said, "a remedy"


def test_a_setting_is_blamed_on_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssclass.toml").write_text(TOML)
    (tmp_path / ".ssclass").mkdir()
    (tmp_path / ".ssclass" / "started.toml").write_text('sweep = "often"')
    with pytest.raises(ParamsError, match=r"started\.toml: sweep"):
        load_settings(tmp_path)
    monkeypatch.setenv("SSCLASS_SWEEP", "never")
    with pytest.raises(ParamsError, match=r"^SSCLASS_SWEEP in the environment: sweep"):
        load_settings(tmp_path)


# -- what we write ------------------------------------------------------------------------------------------


def test_a_file_or_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_whole(path, "one")

    def half() -> Iterator[Path]:
        with whole(path) as new:
            new.write_text("tw")
            yield new
            raise OSError("the disk is full")

    writing = half()
    new = next(writing)
    assert path.read_text() == "one"
    assert new.name.startswith(".")
    assert new.name.endswith(PARTIAL)
    with pytest.raises(OSError, match="full"):
        next(writing)
    assert [each.name for each in path.parent.iterdir()] == ["file"]
    assert path.read_text() == "one"
    with whole(tmp_path / "folder") as new:
        (new / "inside").mkdir(parents=True)
    assert [each.name for each in (tmp_path / "folder").iterdir()] == ["inside"]
    with pytest.raises(FileNotFoundError), whole(tmp_path / "other") as new:
        (new / "a" / "b").mkdir()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["deep", "folder"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole(path) as one, whole(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one", "the one that ended last"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    write_whole(tmp_path / "secret", "x", mode=0o600)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    mask = os.umask(0o022)
    try:
        write_whole(tmp_path / "open", b"x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o644
    write_whole(tmp_path / ("寿" * 80), "a name as long as names may be")


def test_settings_given_by_a_call_need_no_file(tmp_path: Path) -> None:
    assert Settings(workspace=tmp_path).bucket == "ssclass"
    assert issubclass(ParamsError, InputError)
