from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ssclass.data.images import decode
from ssclass.errors import WeightsError
from ssclass.model.augmentation import AugmentedSpec
from ssclass.model.backbones import BACKBONES, import_keras
from ssclass.model.compute import batch_size
from ssclass.model.extraction import Extractor, compiled, extract, feature_arrays, make_extractor
from ssclass.model.features import FeatureMemo, Features, concat, shard_features
from ssclass.model.spec import FeatureSpec, feature_spec
from ssclass.model.tuned_blocks import TunedBlocks
from ssclass.params import AugmentParams, FeatureParams
from ssclass.settings import Settings
from ssclass.store import Store
from tests.support.models import needed_weights, pictures, shard_of

PHOTOS = pictures()
SHARD, LISTED = shard_of(PHOTOS)
SHA256S = tuple(sha256 for sha256, _ in LISTED)


@pytest.fixture(scope="module")
def spec() -> FeatureSpec:
    """Small pictures: the same network, and quick."""
    needed_weights()
    return feature_spec(FeatureParams(sizes=(96,), crops="none", flip=True))


@pytest.fixture(scope="module")
def extractor(spec: FeatureSpec) -> Extractor:
    return make_extractor(spec)


@pytest.fixture(scope="module")
def features(spec: FeatureSpec, extractor: Extractor) -> Features:
    return Features(*extract(spec, LISTED, extractor))


def never(*args: object) -> Iterable[tuple[str, bytes]]:
    raise AssertionError("photos were opened, or a network was built, though the features are remembered")


def same(one: Features, other: Features) -> bool:
    return (
        one.sha256s == other.sha256s
        and one.arrays.keys() == other.arrays.keys()
        and all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    )


def test_arrays_are_the_moments_of_the_backbones_last_map(spec: FeatureSpec, features: Features) -> None:
    keras = import_keras()
    trunk = BACKBONES["mobilenet"].trunk(needed_weights().tensors, 96)
    pixels = np.stack([decode(data, 96) for _, data in LISTED]).astype(np.float32)
    maps = trunk(keras.applications.mobilenet.preprocess_input(pixels)).numpy()
    assert features.arrays["96.out.mean"].shape == (len(LISTED), 2, 1024)
    assert features.arrays["96.out.mean"].dtype == np.float32
    np.testing.assert_allclose(features.arrays["96.out.mean"][:, 0], maps.mean(axis=(1, 2)), atol=1e-4)
    np.testing.assert_allclose(features.arrays["96.out.square"][:, 0], (maps**2).mean(axis=(1, 2)), atol=1e-3)


@pytest.mark.parametrize("maps", [False, True])
def test_weights_as_constants_give_what_the_graph_with_variables_gives(spec: FeatureSpec, maps: bool) -> None:
    """The bound that docs/models.md states, and the reason why fingerprints stay what they were."""
    wanted = replace(spec, maps=maps)
    images = np.stack([decode(data, wanted.size) for _, data in LISTED[:3]])
    keras = import_keras()
    pixels = keras.Input((None, None, 3), dtype="uint8")
    plain = compiled(keras.Model(pixels, feature_arrays(wanted, pixels, "_plain")), wanted.size)(images)
    found = make_extractor(wanted, "tensorflow")(images)
    assert found.keys() == plain.keys()
    for name, array in found.items():
        assert (array.dtype, array.shape) == (plain[name].dtype, plain[name].shape)
        one, other = array.astype(np.float64), plain[name].astype(np.float64)
        tolerance = 2**-10 if array.dtype == np.float16 else 1e-5  # a step of float16 where rounding falls otherwise
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=1e-5 * np.abs(other).max())


def test_the_second_view_is_the_mirror_image(spec: FeatureSpec, extractor: Extractor, features: Features) -> None:
    mirrored = ImageOps.mirror(Image.fromarray(decode(PHOTOS["chelsea.png"], 96)))
    buffer = io.BytesIO()
    mirrored.save(buffer, "png")
    _, arrays = extract(spec, [("mirrored", buffer.getvalue())], extractor)
    row = list(PHOTOS).index("chelsea.png")
    np.testing.assert_allclose(arrays["96.out.mean"][0, 0], features.arrays["96.out.mean"][row, 1], atol=1e-4)


def test_smaller_sizes_are_made_inside_the_network() -> None:
    needed_weights()
    spec = feature_spec(FeatureParams(sizes=(64, 96), crops="none"))
    _, arrays = extract(spec, LISTED[:1], make_extractor(spec))
    assert {name: array.shape for name, array in arrays.items()} == {
        f"{size}.out.{moment}": (1, 1, 1024) for size in (64, 96) for moment in ("mean", "square")
    }


def test_crops_are_views_of_the_corners_and_the_centre() -> None:
    needed_weights()
    spec = feature_spec(FeatureParams(sizes=(96,), crops="five", flip=True))
    assert (spec.size, spec.views) == (128, 10)
    pixels = decode(LISTED[0][1], 128)
    alone = make_extractor(replace(spec, crops="none", flip=False))
    found = make_extractor(spec)(pixels[None])["96.out.mean"][0]
    for view, (top, left) in enumerate([(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]):
        crop = pixels[top : top + 96, left : left + 96]
        for row, picture in ((view, crop), (view + 5, crop[:, ::-1])):
            np.testing.assert_allclose(found[row], alone(picture[None])["96.out.mean"][0, 0], atol=1e-4)


def test_batches_keep_the_order_and_report_progress(spec: FeatureSpec) -> None:
    marks = [np.full((8, 8, 3), value, np.uint8) for value in range(70)]
    photos = []
    for value, pixels in enumerate(marks):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        photos.append((str(value), buffer.getvalue()))
    seen: list[int] = []
    names, arrays = extract(spec, iter(photos), lambda images: {"red": images[:, 0, 0, :1].astype(float)}, seen.append)
    assert names == tuple(str(value) for value in range(70))
    assert arrays["red"][:, 0].tolist() == list(range(70))
    together = batch_size()
    assert seen == [*range(together, 70, together), 70]


def test_only_a_few_batches_are_read_ahead(spec: FeatureSpec) -> None:
    taken = 0
    ahead = 0

    def photos() -> Iterable[tuple[str, bytes]]:
        nonlocal taken
        for index in range(320):
            taken += 1
            yield str(index), PHOTOS["camera.png"]

    def network(images: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal ahead, taken
        ahead = max(ahead, taken)
        taken -= len(images)
        return {"mean": images[:, 0, 0, 0]}

    extract(spec, photos(), network)
    assert ahead <= 3 * 32


def test_a_shard_is_computed_once_and_then_remembered(
    spec: FeatureSpec, extractor: Extractor, features: Features, s3: Store, tmp_path: Path
) -> None:
    memo = FeatureMemo(tmp_path, s3)
    counts: list[tuple[int, int]] = []
    first = shard_features(
        spec, memo, SHARD, lambda: LISTED, lambda spec: extractor, lambda done, total: counts.append((done, total))
    )
    assert same(first, features)
    assert counts[-1] == (len(LISTED), len(LISTED))

    assert same(shard_features(spec, memo, SHARD, never, never), first)
    elsewhere = FeatureMemo(tmp_path / "another machine", s3)
    assert same(shard_features(spec, elsewhere, SHARD, never, never), first)
    assert same(shard_features(spec, FeatureMemo(tmp_path / "another machine", None), SHARD, never, never), first)


@pytest.mark.parametrize("damage", ["half", "a byte", "empty", "junk", "other photos", "pickle"])
def test_damage_in_the_memo_costs_time_only(
    damage: str, spec: FeatureSpec, extractor: Extractor, features: Features, s3: Store, tmp_path: Path
) -> None:
    memo = FeatureMemo(tmp_path, s3)
    memo.put(spec, SHARD.photos_digest, features)
    key = memo.key(spec, SHARD.photos_digest)
    whole = (tmp_path / key).read_bytes()
    if damage == "other photos":
        memo.put(spec, SHARD.photos_digest, features.rows([1, 0]))
        bad = (tmp_path / key).read_bytes()
    elif damage == "pickle":
        buffer = io.BytesIO()
        np.savez(buffer, sha256s=np.array([{"a": 1}], dtype=object))
        bad = buffer.getvalue()
    else:
        at = len(whole) // 3  # inside an array
        byte = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
        bad = {"half": whole[: len(whole) // 2], "a byte": byte, "empty": b"", "junk": b"junk"}[damage]
    (tmp_path / key).write_bytes(bad)
    s3.put(key, bad)

    assert same(shard_features(spec, memo, SHARD, lambda: LISTED, lambda spec: extractor), features)
    assert (tmp_path / key).read_bytes() == whole
    assert s3.get(key) == whole


def test_without_s3_features_are_still_made(
    spec: FeatureSpec, extractor: Extractor, features: Features, tmp_path: Path
) -> None:
    broken = Store(Settings(workspace=tmp_path, bucket="none", s3_endpoint="http://127.0.0.1:9"))
    found = shard_features(spec, FeatureMemo(tmp_path, broken), SHARD, lambda: LISTED, lambda spec: extractor)
    assert same(found, features)


def test_the_network_gives_the_same_bits_again(spec: FeatureSpec, features: Features) -> None:
    assert same(Features(*extract(spec, LISTED, make_extractor(spec))), features)


def test_a_shard_of_corrections_alone_has_no_features(spec: FeatureSpec, features: Features, tmp_path: Path) -> None:
    shard, _ = shard_of({})
    found = shard_features(spec, FeatureMemo(tmp_path, None), shard, never, never)
    assert len(found) == 0
    assert same(concat([found, features]), features)
    assert len(concat([found])) == 0


def test_whatever_changes_the_features_changes_the_fingerprint(spec: FeatureSpec) -> None:
    others = [
        replace(spec, backbone="other"),
        replace(spec, weights_sha256="0" * 64),
        replace(spec, sizes=(128,)),
        replace(spec, flip=not spec.flip),
        replace(spec, crops="five" if spec.crops == "none" else "none"),
        replace(spec, decode_version=spec.decode_version + 1),
    ]
    assert len({each.fingerprint for each in (spec, *others)}) == 7
    assert replace(spec).fingerprint == spec.fingerprint


def test_fingerprints_stay_what_they_were() -> None:
    """They are where the memo keeps features, in S3 too; recorded from the version that first had each field."""
    spec = FeatureSpec("mobilenet", "0" * 64, (64, 96), flip=True, crops="five", maps=True, photo=128)
    blocks = TunedBlocks(2, (np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)))
    tuned = replace(spec, tuned_blocks=blocks)
    assert spec.fingerprint.startswith("feaa1471f775")
    assert replace(spec, before_blocks=2).fingerprint.startswith("f9d635e8c1ab")
    assert tuned.fingerprint.startswith("93103c77d7ba")
    assert tuned.frozen_part.fingerprint.startswith("f9d635e8c1ab")
    assert AugmentedSpec(spec, AugmentParams(copies=2), 1).fingerprint.startswith("188e41e6864b")
    for each in (spec, tuned, tuned.frozen_part):
        about = json.loads(json.dumps(each.about()))
        assert FeatureSpec.from_about(about, each.tuned_blocks).fingerprint == each.fingerprint


def test_features_of_other_weights_are_refused(spec: FeatureSpec) -> None:
    with pytest.raises(WeightsError, match="ssclass weights import"):
        make_extractor(replace(spec, weights_sha256="0" * 64))


def test_photos_are_taken_by_name(features: Features) -> None:
    picked = features.take([SHA256S[2], SHA256S[0]])
    assert picked.sha256s == (SHA256S[2], SHA256S[0])
    np.testing.assert_array_equal(picked.arrays["96.out.mean"], features.arrays["96.out.mean"][[2, 0]])
    assert same(concat([features.rows([0, 1]), features.rows([2, 3])]), features)
    with pytest.raises(KeyError):
        features.take(["not there"])


def test_a_photo_that_was_taken_in_and_can_no_longer_be_decoded_is_named():
    from ssclass.errors import InputError
    from ssclass.model.extraction import extract

    spec = FeatureSpec("mobilenet", "w", (32,), False)
    with pytest.raises(InputError, match=r"photo ab+ of the data set cannot be decoded .*`remove`.*`ssclass forget`"):
        extract(spec, [("a" + "b" * 63, b"no photo")], lambda images: {"maps": images})
