"""The device that TensorFlow computes on."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

ON_CPU, ON_GPU = 4, 64
"""Photos that go through a network together. On a CPU more are no faster, and 32 of 320 pixels take 600 MB more."""

log = logging.getLogger(__name__)


def share_gpus() -> list[str]:
    """Let each GPU's memory grow with need, instead of taking all of it at once; names of the GPUs seen.

    Before TensorFlow has used a device; later calls change nothing.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # in use already
            break
    return [_name(tf, gpu) for gpu in gpus]


def gpu_possible() -> bool:
    """Whether this machine has the driver of a GPU: asked without TensorFlow, whose import takes seconds."""
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def batch_size() -> int:
    """How many photos go through a network together: `ON_GPU` where TensorFlow sees a GPU, else `ON_CPU`."""
    return ON_GPU if share_gpus() else ON_CPU


def precision(mixed: bool) -> str:
    """The dtype policy that Keras trains by: ``mixed_float16`` where that is asked for and a GPU is seen.

    On a CPU half precision is slower, not faster, so there it stays float32, and the log says so.
    """
    if not mixed:
        return "float32"
    seen = bool(share_gpus())
    log.info("train.mixed_precision: %s", "float16 on the GPU, weights float32" if seen else "no GPU seen, float32")
    return "mixed_float16" if seen else "float32"


def described() -> str:
    """The name of the device, for the run's tag: ``NVIDIA A100-SXM4-40GB``, ``2 x …``, or ``CPU``."""
    if "tensorflow" not in sys.modules and not gpu_possible():
        return "CPU"
    names = share_gpus()
    if not names:
        return "CPU"
    return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"


def _name(tf: Any, gpu: Any) -> str:
    return str(tf.config.experimental.get_device_details(gpu).get("device_name") or gpu.name)
