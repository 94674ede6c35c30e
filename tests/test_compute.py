"""GPUs as TensorFlow would show them; there is none where these tests run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssclass.model import compute
from ssclass.settings import CHECKOUT
from tests.support.models import needed_weights


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


PLACED = """
import sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, sys.argv[1])
from tests.support.models import clouds
from ssclass.params import TrainParams
from ssclass.model.heads.gradient import DenseTrainer
features, labels = clouds(20, 2, apart=1.0)
rows, moments = np.arange(40), (features.arrays["224.out.mean"], features.arrays["224.out.square"])
weights = []
for number in (0, 1):
    with tf.device(f"CPU:{number}"):
        trainer = DenseTrainer((16,), 8, 2, TrainParams(epochs=3))
        trainer.fit(moments, labels, rows, rows[:0], rows[:0])
    places = {variable.value.device for variable in (*trainer.norm.weights, *trainer.hidden.weights)}
    assert {place.rpartition("/device:")[2] for place in places} == {f"CPU:{number}"}, places
    weights.append(trainer.hidden.get_weights()[0])
np.testing.assert_array_equal(*weights)
"""


def test_a_head_trains_where_tensorflow_puts_it():
    """Nothing names a device, so TensorFlow's own choice, the GPU where there is one, holds. Here: a second CPU."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", PLACED, here], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NETWORK = """
import numpy as np
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.debugging.set_log_device_placement(True)
from ssclass.model.extraction import make_extractor
from ssclass.model.spec import feature_spec
from ssclass.params import FeatureParams
with tf.device("CPU:1"):
    make_extractor(feature_spec(FeatureParams(crops="none")), "tensorflow")(np.zeros((2, 224, 224, 3), np.uint8))
"""


def test_the_network_runs_where_tensorflow_puts_it():
    """The same for the frozen part: every convolution is on the device that is preferred."""
    needed_weights()
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", NETWORK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    where: dict[str, set[str]] = {}
    for operation, device in re.findall(r"\((\w+)\): /job:\S+/device:(CPU:\d)", done.stdout + done.stderr):
        where.setdefault(operation, set()).add(device)
    for operation in ("Conv2D", "DepthwiseConv2dNative", "VarHandleOp"):
        assert where[operation] == {"CPU:1"}, operation
