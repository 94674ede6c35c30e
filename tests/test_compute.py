"""GPUs as TensorFlow would show them; there is none where these tests run."""

import pytest

from ssclass import compute


class Gpu:
    name = "/physical_device:GPU:0"


@pytest.fixture
def gpus(monkeypatch):
    import tensorflow as tf

    seen = [Gpu(), Gpu()]
    grown = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: seen if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: grown.append((gpu, on)))
    details = {"device_name": "NVIDIA A100"}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    return seen, grown


def test_gpus_grow_and_are_named(gpus):
    seen, grown = gpus
    assert compute.described() == "2 x NVIDIA A100"
    assert grown == [(gpu, True) for gpu in seen]


def test_gpus_in_use_are_left_as_they_are(gpus, monkeypatch):
    import tensorflow as tf

    def refuse(gpu, on):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    assert compute.share_gpus() == ["NVIDIA A100", "NVIDIA A100"]


def test_without_a_gpu_it_is_the_cpu():
    assert compute.described() == "CPU"
