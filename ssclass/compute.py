"""What TensorFlow computes on."""

from __future__ import annotations

from typing import Any


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


def described() -> str:
    """For the run's tag: ``NVIDIA A100-SXM4-40GB``, ``2 x …``, or ``CPU``."""
    names = share_gpus()
    if not names:
        return "CPU"
    return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"


def _name(tf: Any, gpu: Any) -> str:
    return str(tf.config.experimental.get_device_details(gpu).get("device_name") or gpu.name)
