"""Exports answer in another runtime as the model that they were made of, or nobody gets them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssclass.errors import FailedError, InputError
from ssclass.model.backbones import import_keras
from ssclass.serving import exporting
from ssclass.serving.checked import PAGE, Check
from ssclass.serving.exporting import check_choice, convert, open_export
from ssclass.serving.tfjs import page
from ssclass.settings import CHECKOUT
from tests.support.browsing import PHONE, Browser, fits, violations

SIZE = 40
CLASSES = ("sandwich", "sushi", "soup & salad")


def network(extra: Any = None) -> Any:
    """What exports have trouble with: a second resize, a flip, a cast, a head inside, and the einsums of `bilinear`."""
    keras = import_keras()
    layers = keras.layers
    keras.utils.set_random_seed(1)
    maps = keras.Input((1, 6, 6, 8), dtype="float16", name="maps")
    places = layers.Reshape((36, 8))(maps)
    weighed = layers.EinsumDense("npd,p->npd", (36, 8))(layers.Dense(8)(places))
    pairs = layers.Dot((1, 1))([weighed, weighed])
    step = layers.EinsumDense("nab,bc->nac", (8, 8), bias_axes="ac")(pairs)
    head = keras.Model(maps, layers.Dense(3, activation="softmax")(layers.Flatten()(layers.UnitNormalization()(step))))
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    photo = layers.Resizing(SIZE, SIZE, antialias=True)(images)
    small = layers.Resizing(26, 26, antialias=True)(photo)
    scaled = layers.Rescaling(1 / 127.5, offset=-1)
    both = layers.Concatenate()([scaled(small), scaled(keras.ops.flip(small, axis=2))])
    seen = layers.Conv2D(8, 3, strides=4, activation="relu6")(both)
    seen = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(seen))
    if extra is not None:
        seen = extra(seen)
    model = keras.Model(images, head(keras.ops.cast(layers.Reshape((1, 6, 6, 8))(seen), "float16")))
    model.trainable = False
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return network()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    draw = np.random.default_rng(0)
    smooth = draw.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8).repeat(5, axis=1).repeat(5, axis=2)
    return np.concatenate([smooth, draw.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)])


@pytest.mark.parametrize(
    ("kind", "dtype", "apart"),
    [
        ("litert", "float32", 1e-3),  # float16 inside the network rounds what differs in the last bit
        ("litert", "float16", 2e-2),
        ("litert", "int8", 0.1),
        ("onnx", "float32", 1e-3),
        ("savedmodel", "float32", 1e-3),
        ("tfjs", "float32", 1e-3),
        ("tfjs", "float16", 2e-2),
        ("tfjs", "int8", 0.2),
    ],
)
def test_another_runtime_answers_alike(
    model: Any, images: np.ndarray, tmp_path: Path, kind: str, dtype: str, apart: float
) -> None:
    path = convert(model, SIZE, kind, dtype, tmp_path)
    run = open_export(path, kind)
    found = np.stack([run(image) for image in images])
    expected = np.asarray(model(images))
    assert np.ptp(expected, axis=0).max() > 10 * 1e-3, "the answers tell the photos apart"
    np.testing.assert_allclose(found, expected, atol=apart)


def test_half_precision_and_whole_numbers_take_less_room(tmp_path: Path) -> None:
    keras = import_keras()
    images = keras.Input((None, None, 3), dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Resizing(SIZE, SIZE, antialias=True)(images))
    wide = keras.Model(images, keras.layers.Dense(2, activation="softmax")(keras.layers.Dense(64)(flat)))
    sizes = {}
    for dtype in exporting.DTYPES:
        (tmp_path / dtype).mkdir()
        sizes[dtype] = convert(wide, SIZE, "litert", dtype, tmp_path / dtype).stat().st_size
    assert sizes["float32"] > 1.8 * sizes["float16"] > 1.8 * 1.8 * sizes["int8"]


def test_what_no_converter_knows_is_refused_with_the_reason(tmp_path: Path) -> None:
    import tensorflow as tf

    keras = import_keras()

    @keras.saving.register_keras_serializable("tests")
    class Odd(keras.layers.Layer):
        def call(self, given: Any) -> Any:
            return tf.image.rgb_to_hsv(given[..., :3] * 0 + 0.5)[..., :1] + given

    with pytest.raises(FailedError, match="cannot be converted to litert"):
        convert(network(Odd()), SIZE, "litert", "float32", tmp_path)


@pytest.mark.parametrize(("kind", "dtype"), [("onnx", "int8"), ("onnx", "float16"), ("savedmodel", "int8")])
def test_a_choice_that_is_not_to_be_had_says_what_is(kind: str, dtype: str) -> None:
    with pytest.raises(InputError, match="choose --dtype float32"):
        check_choice(kind, dtype)


def test_a_point_of_accuracy_is_the_limit() -> None:
    def wrong(right: int, difference: float = 0.1) -> bool:
        return Check(200, right, 190, difference, 1.0, 1).wrong is not None

    assert [wrong(right) for right in (187, 188, 190, 192, 193)] == [True, False, False, False, True]
    assert wrong(190, float("inf"))


# -- the page ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """An export for browsers with its page, on a server; TensorFlow.js is not beside it."""
    folder = tmp_path_factory.mktemp("site")
    convert(model, SIZE, "tfjs", "float32", folder)
    (folder / PAGE).write_text(page("version 7", SIZE, CLASSES), encoding="utf-8")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_page_says_what_is_missing_and_how_to_get_it(site: tuple[Path, str], chromium: Browser) -> None:
    folder, url = site
    for address, needed in ((url, "npm pack @tensorflow/tfjs@"), ((folder / PAGE).as_uri(), "python3 -m http.server")):
        with chromium.page(PHONE, strict=False) as opened:
            opened.goto(address)
            opened.get_by_text(needed).wait_for()
            assert opened.locator("#file").is_disabled()
            assert violations(opened) == []
            assert fits(opened)


def test_the_page_answers_as_the_model_on_a_file_and_on_the_camera(
    site: tuple[Path, str], model: Any, images: np.ndarray, chromium: Browser, tmp_path: Path
) -> None:
    """Of photos in the model's own size nothing is resized: what comes out is the network's answer, in the browser."""
    from PIL import Image

    runtime = Path(os.environ.get("TFJS") or CHECKOUT / "node_modules/@tensorflow/tfjs/dist/tf.min.js")
    if not runtime.is_file():
        pytest.skip("no TensorFlow.js: `npm install --no-save @tensorflow/tfjs`, or TFJS=path of its tf.min.js")
    folder, url = site
    (folder / "tf.min.js").write_bytes(runtime.read_bytes())
    expected = np.asarray(model(images))
    with chromium.page(PHONE, permissions=["camera"]) as opened:
        opened.goto(url)
        opened.get_by_text("Ready.").wait_for()
        for number, (image, odds) in enumerate(zip(images, expected, strict=True)):
            Image.fromarray(image).save(tmp_path / f"{number}.png")
            opened.locator("#file").set_input_files(tmp_path / f"{number}.png")
            best = int(odds.argmax())
            opened.get_by_role("status").get_by_text(f"{CLASSES[best]}, {100 * odds[best]:.1f} %").wait_for()
            rows = dict(row.split("\t") for row in opened.locator("#answer tbody").inner_text().splitlines())
            for name, value in zip(CLASSES, odds, strict=True):
                assert float(rows[name].removesuffix(" %")) == pytest.approx(100 * value, abs=0.2)
        turned = Image.Exif()
        turned[0x0112] = 6  # a quarter turn clockwise makes it upright
        Image.fromarray(np.rot90(images[0])).save(tmp_path / "turned.jpg", exif=turned, quality=100, subsampling=0)
        opened.locator("#file").set_input_files(tmp_path / "turned.jpg")
        opened.get_by_role("status").get_by_text(CLASSES[int(expected[0].argmax())]).wait_for()
        (tmp_path / "no.jpg").write_bytes(b"no photo")
        opened.locator("#file").set_input_files(tmp_path / "no.jpg")
        opened.get_by_text("cannot open it as a photo").wait_for()
        assert violations(opened) == []
        opened.get_by_role("button", name="Use the camera").click()
        opened.get_by_role("button", name="Stop the camera").wait_for()
        opened.get_by_role("status").get_by_text(" %").wait_for()
        opened.get_by_role("button", name="Stop the camera").click()
        opened.get_by_role("button", name="Use the camera").wait_for()
        chromium.shoot(opened, "camera")
