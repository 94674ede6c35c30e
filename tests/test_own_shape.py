"""Photos in their own shape: decoded, learnt from and answered alike, whatever their shape and company."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssclass.data.decoders import Decoders
from ssclass.data.images import decode
from ssclass.data.shapes import CELL, LONGEST, OwnShape, by_shape
from ssclass.errors import InputError, NotFoundError, ParamsError
from ssclass.model.augmentation import augmented_copy
from ssclass.model.classifier import Classifier
from ssclass.model.engine import FOLDED, open_engine
from ssclass.model.extraction import OUTSIDE, extract, make_extractor
from ssclass.model.features import FeatureMemo, Features, shard_features
from ssclass.model.heads import bilinear
from ssclass.model.spec import FeatureSpec, feature_spec
from ssclass.model.training import plan, train_planned
from ssclass.params import AugmentParams, FeatureParams, IngestParams, Params, parse_params
from ssclass.tracking.photo_model import PhotoModel, pixels_of
from tests.support.models import needed_weights, pictures, shard_of

SIDE = 96
PARAMS = {
    "dataset": {"classes": ["a", "b"]},
    "features": {"sizes": [SIDE], "shape": "own"},
    "model": {"head": "bilinear"},
    "train": {"folds": 2},
}


def of_shapes() -> list[tuple[str, bytes]]:
    """Photos of several shapes, two of each, as (sha256, bytes)."""
    cut = {}
    for name, data in pictures().items():
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        for width, height in ((240, 90), (200, 150), (150, 200), (180, 180)):
            written = io.BytesIO()
            picture.resize((width, height)).save(written, "PNG")
            cut[f"{name} {width} {height}"] = written.getvalue()
    return shard_of(cut)[1]


@pytest.fixture(scope="module")
def spec() -> FeatureSpec:
    needed_weights()
    return feature_spec(FeatureParams(sizes=(SIDE,), shape="own"), maps=True)


@pytest.fixture(scope="module")
def features(spec: FeatureSpec) -> Features:
    return Features(*extract(spec, of_shapes(), make_extractor(spec)))


@pytest.fixture(scope="module", params=["bilinear", "members"])
def classifier(request: pytest.FixtureRequest, features: Features) -> Classifier:
    needed_weights("efficientnet_lite0")
    model: dict[str, Any] = {"head": request.param}
    if request.param == "members":
        model = {"members": ["mobilenet/T1", "efficientnet_lite0/bilinear"]}
    params = Params.model_validate(PARAMS | {"model": model, "train": {"folds": 2, "epochs": 3}})
    labels, groups = np.array([0, 1] * (len(features) // 2)), list(features.sha256s)

    def features_of(spec: FeatureSpec) -> Features:
        return Features(*extract(spec, of_shapes(), make_extractor(spec)))

    return train_planned(features_of, labels, groups, plan(params), params).classifier


@pytest.mark.parametrize("side", [64, 224, 260, 320])
def test_a_photo_keeps_its_shape_and_about_as_many_pixels(side: int) -> None:
    own = OwnShape(side)
    for width, height in ((1000, 1000), (1000, 750), (750, 1000), (1000, 563), (99, 1000), (1000, 1), (3, 4)):
        wide, high = own.fitted(width, height)
        assert wide % CELL == high % CELL == 0
        assert (wide, high) in own.shapes
        assert own.fitted(height, width) == (high, wide)
        assert 0.6 * side**2 < wide * high <= own.places * CELL**2 < 1.8 * side**2
        assert max(wide, high) / min(wide, high) <= LONGEST
    assert own.fitted(500, 500) == (own.fitted(2, 2))
    assert len(set(own.shapes)) == len(own.shapes)


def test_whatever_the_photo_its_shape_is_one_of_those_that_are_named() -> None:
    own = OwnShape(320)
    assert {own.fitted(width, 1000) for width in range(50, 20000)} == set(own.shapes)


def test_the_decode_squeezes_nothing_and_turns_by_the_exif_orientation() -> None:
    picture = Image.new("RGB", (400, 300), "white")
    picture.paste("black", (100, 50, 300, 250))  # a square
    exif = Image.Exif()
    exif[0x0112] = 6
    for options, upright in (({}, (400, 300)), ({"exif": exif}, (300, 400))):
        written = io.BytesIO()
        picture.save(written, "JPEG", quality=95, **options)
        found = decode(written.getvalue(), OwnShape(320))
        assert found.shape[1::-1] == OwnShape(320).fitted(*upright)
        dark = found[..., 0] < 128
        high, wide = dark.any(axis=1).sum(), dark.any(axis=0).sum()
        assert wide / high == pytest.approx(1, abs=0.13)
    square = decode(written.getvalue(), 320)
    assert square.shape == (320, 320, 3)


def test_the_decoders_process_gives_the_same_pixels() -> None:
    decoders = Decoders()
    try:
        for _, data in of_shapes()[:4]:
            for size in (OwnShape(SIDE), SIDE):
                np.testing.assert_array_equal(decoders.decode(data, size, IngestParams(min_side=1)), decode(data, size))
    finally:
        decoders.close()


def test_features_do_not_depend_on_a_photos_company(spec: FeatureSpec, features: Features) -> None:
    photos = of_shapes()
    for at in (0, 5, 10):
        alone = Features(*extract(spec, [photos[at]], make_extractor(spec)))
        for name, array in features.arrays.items():
            np.testing.assert_allclose(alone.arrays[name][0], array[at], rtol=0.01, atol=2e-3, err_msg=name)


def test_places_lie_as_the_pixels_do_and_the_rest_is_outside(spec: FeatureSpec, features: Features) -> None:
    place, maps = features.arrays[f"{SIDE}.out.place"], features.arrays[f"{SIDE}.out.map"]
    assert place.shape[:3] == maps.shape[:3]
    means = features.arrays[f"{SIDE}.out.mean"]
    for (_, data), at, shown, mean in zip(of_shapes(), place, maps, means, strict=True):
        height, width = (side // CELL for side in decode(data, spec.photo_size).shape[:2])
        count = height * width
        found = at[0, :count].reshape(height, width, 2).transpose(2, 0, 1)
        expected = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert (at[0, count:] == OUTSIDE).all()
        assert not shown[0, count:].any()
        np.testing.assert_allclose(shown[0, :count].mean(axis=0, dtype=float), mean[0], atol=5e-3)


def test_what_fills_up_a_map_changes_nothing(features: Features) -> None:
    maps, place = features.arrays[f"{SIDE}.out.map"], features.arrays[f"{SIDE}.out.place"]
    rows = np.arange(len(maps))
    axes = bilinear.find_axes(maps, rows, 0, place)
    more = ((0, 0), (0, 0), (0, 7), (0, 0))
    filled, where = np.pad(maps, more), np.pad(place, more, constant_values=OUTSIDE)
    again = bilinear.find_axes(filled, rows, 0, where)
    np.testing.assert_array_equal(again.axes, axes.axes)
    np.testing.assert_allclose(
        bilinear.pool(filled, rows, axes, where), bilinear.pool(maps, rows, axes, place), atol=1e-6
    )


def test_a_square_photo_is_pooled_as_a_square_map_is() -> None:
    """The places of a square, given as places, weigh what they weigh as a square."""
    maps = np.maximum(np.random.default_rng(0).normal(size=(4, 1, 3, 3, 8)), 0).astype(np.float16)
    rows = np.arange(4)
    down, across = np.meshgrid(*[np.linspace(-1, 1, 3)] * 2, indexing="ij")
    place = np.tile(np.stack([down, across], axis=-1).reshape(1, 1, 9, 2), (4, 1, 1, 1)).astype(np.float32)
    axes = bilinear.find_axes(maps, rows, 0)
    np.testing.assert_allclose(
        bilinear.pool(maps.reshape(4, 1, 9, 8), rows, axes, place), bilinear.pool(maps, rows, axes), atol=1e-6
    )


def test_every_way_to_the_answer_gives_the_answer_of_training(classifier: Classifier, tmp_path: Path) -> None:
    """Features, the saved classifier, the exported model, its engine, the registered model, and a mixed batch."""
    from ssclass.model.backbones import import_keras
    from ssclass.serving.model import open_folder

    photos = of_shapes()
    remembered = {spec: Features(*extract(spec, photos, make_extractor(spec))) for spec in classifier.specs}
    expected = classifier.predict(remembered.__getitem__)
    classifier.save(tmp_path)
    loaded = Classifier.load(tmp_path)
    assert loaded.specs == classifier.specs
    assert loaded.size == OwnShape(SIDE)
    np.testing.assert_array_equal(loaded.predict(remembered.__getitem__), expected)

    (tmp_path / "model").mkdir()
    classifier.export(tmp_path / "model" / "model.keras")
    network = import_keras().models.load_model(tmp_path / "model" / "model.keras")
    images = [decode(data, classifier.size) for _, data in photos]
    engine = open_engine(network, classifier.size)
    assert engine.name == FOLDED
    np.testing.assert_allclose(engine.predict(images), expected, atol=2e-4)
    np.testing.assert_allclose(engine.predict(images[3][None])[0], expected[3], atol=2e-4)
    assert engine.predict([]).shape == (0, 2)

    about = {"classes": ["a", "b"], "size": SIDE, "shape": "own"}
    (tmp_path / "model" / "model.json").write_text(json.dumps(about))
    opened = open_folder("it", tmp_path / "model")
    assert opened.size == OwnShape(SIDE)
    np.testing.assert_allclose(opened.predict(images), expected, atol=2e-4)
    np.testing.assert_allclose(opened.predict_few(images[0][None])[0], expected[0], atol=2e-4)
    answered = PhotoModel(engine, ("a", "b")).answer([data for _, data in photos])
    np.testing.assert_allclose([row["b"] for row in answered["probabilities"]], expected[:, 1], atol=2e-4)


def test_the_registered_model_says_that_photos_keep_their_shape(classifier: Classifier, tmp_path: Path) -> None:
    import mlflow
    from mlflow.models import Model

    from ssclass.serving.model import open_folder
    from ssclass.tracking import packaged

    if len(classifier.members) == 1:
        pytest.skip("once is enough: packing takes seconds")
    packaged.write_model(tmp_path / "it", classifier, {"decision_key": "k" * 16}, Model())
    assert open_folder("it", tmp_path / "it").size == OwnShape(SIDE)
    photos = of_shapes()[:5]
    expected = classifier.predict(lambda spec: Features(*extract(spec, photos, make_extractor(spec))))
    answered = mlflow.pyfunc.load_model(str(tmp_path / "it")).predict([data for _, data in photos])
    np.testing.assert_allclose([row["b"] for row in answered["probabilities"]], expected[:, 1], atol=2e-4)


def test_pixels_are_brought_into_the_shape_that_the_photo_has() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    np.testing.assert_array_equal(pixels_of(pixels, OwnShape(SIDE)), decode(written.getvalue(), OwnShape(SIDE)))


def test_the_memo_remembers_them_and_squares_keep_their_fingerprint(spec: FeatureSpec, tmp_path: Path) -> None:
    square = feature_spec(FeatureParams(sizes=(SIDE,)), maps=True)
    assert "shape" not in square.about()
    assert square.fingerprint != spec.fingerprint
    assert FeatureSpec.from_about(spec.about()) == spec
    with pytest.raises(KeyError):
        FeatureSpec.from_about(spec.about() | {"shape": "round"})
    shard, photos = shard_of(dict(of_shapes()[:6]))
    memo = FeatureMemo(tmp_path, None)
    made = shard_features(spec, memo, shard, lambda: iter(photos))

    def never(*_: object) -> Any:
        raise AssertionError("they are remembered")

    again = shard_features(spec, memo, shard, never, never)
    assert all(np.array_equal(made.arrays[name], again.arrays[name]) for name in made.arrays)


def test_copies_have_their_photos_shape() -> None:
    (_, data), params = of_shapes()[0], AugmentParams(rotation=0, shear=0, zoom=0, crop=0, shift=0)
    photo = decode(data, OwnShape(SIDE))
    assert photo.shape[0] != photo.shape[1]
    copies = [augmented_copy("a" * 64, number, photo, params) for number in range(4)]
    assert all(copy.shape == photo.shape for copy in copies)
    assert len({copy.tobytes() for copy in copies}) > 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("features: {shape: own, crops: five}", "crops"),
        ("features: {shape: own, sizes: [224, 320]}", "one size"),
        ("features: {shape: own}\nmodel: {head: T2.0}", "T2.0"),
        ("features: {shape: own}\nmodel: {members: [mobilenet/T2.0, mobilenet/T1]}", "T2.0"),
        ("features: {shape: own}\ntrain: {unfreeze_blocks: 1}", "unfreeze_blocks"),
        ("features: {shape: round}", "features.shape"),
    ],
)
def test_what_needs_a_square_is_refused_with_its_name(changes: str, said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        parse_params(f"dataset: {{classes: [a, b]}}\n{changes}", "params.yaml")


def test_members_of_unlike_sizes_name_one() -> None:
    needed_weights("efficientnet_lite2")
    params = Params.model_validate(
        PARAMS | {"features": {"shape": "own"}, "model": {"members": ["mobilenet/rbf", "efficientnet_lite2/rbf"]}}
    )
    with pytest.raises(ParamsError, match="name one size"):
        plan(params)


def test_old_params_keep_their_digest() -> None:
    text = "dataset: {classes: [a, b]}\n"
    digest = parse_params(text, "params.yaml").result_digest
    assert parse_params(text + "features: {shape: square}\n", "params.yaml").result_digest == digest
    assert parse_params(text + "features: {shape: own}\n", "params.yaml").result_digest != digest


def test_an_export_of_one_shape_is_refused_with_the_remedy(tmp_path: Path) -> None:
    from ssclass.serving.checked import export_model
    from ssclass.serving.model import Model

    model = Model("champion", ("a", "b"), OwnShape(SIDE), None, "k" * 16)
    version = SimpleNamespace(state=SimpleNamespace(decisions={"k" * 16: None}))
    workspace: Any = SimpleNamespace(at=lambda: version)
    with pytest.raises(InputError, match=r"features\.shape: square"):
        export_model(workspace, model, "litert", "float32", tmp_path / "out", lambda *_: None)
    assert not (tmp_path / "out").exists()


def test_a_page_explains_such_a_model(classifier: Classifier) -> None:
    from ssclass.serving.model import Model
    from ssclass.study.maps import MappedModel

    if len(classifier.members) > 1:
        pytest.skip("once is enough")
    model = Model("it", ("a", "b"), classifier.size, classifier.whole())
    try:
        mapped = MappedModel(model)
    except NotFoundError:
        pytest.fail("there are maps to show")
    images = [decode(data, classifier.size) for _, data in of_shapes()[2:6]]
    places, channels, probabilities = mapped.contributions(images, np.array([0, 1] * 2))
    np.testing.assert_allclose(probabilities, model.predict(images), atol=2e-4)
    assert {len(one) for one in (*places, *channels)} == {4}
    shown = mapped.photo_maps(places, 60)
    assert shown.shape == (4, 60, 60)
    assert np.isfinite(shown).all()


def test_photos_of_a_shape_go_together_and_come_back_in_order() -> None:
    images = [np.full((2 + at % 2, 3, 3), at, np.uint8) for at in range(5)]
    seen = {int(row): alike[place] for rows, alike in by_shape(images) for place, row in enumerate(rows)}
    assert [int(seen[at].max()) for at in range(5)] == [0, 1, 2, 3, 4]
    assert len(list(by_shape(images))) == 2
