"""The networks that are timed, as trials on made-up images, and what a step of each costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rethink_jax import models, trials
from rethink_jax.config import network
from rethink_jax.data.dataset import Dataset

LEARNING_RATE, MOMENTUM = 0.001, 0.9
# A trial must not end while it is timed.
_MAX_EPOCHS = 4096
_CLASSES, _TEST_IMAGES = 10, 100


class Network(NamedTuple):
    """A network and the images that it is timed on.

    image_shape: of the stored images   crop: height and width that the network sees, or None
    batch, steps: images a step and steps an epoch, on a CPU and on an accelerator. Epochs are
      shorter than in a sweep, where several hundred steps share what an epoch costs beside them.
    """

    model: dict[str, Any]
    image_shape: tuple[int, int, int]
    crop: int | None
    batch: tuple[int, int]
    steps: tuple[int, int]
    convolutional: bool


_CIFAR = dict(image_shape=(32, 32, 3), crop=28)
_CONVOLUTIONAL = dict(**_CIFAR, batch=(32, 128), convolutional=True)
NETWORKS: dict[str, Network] = {
    "digits": Network(
        network("mlp", hidden=(256, 256)), (8, 8, 1), None, (64, 64), (200, 400), False
    ),
    "mlp1x512": Network(
        network("mlp", hidden=(512,)), **_CIFAR, batch=(128, 128), steps=(100, 400),
        convolutional=False,
    ),
    "mlp3x512": Network(
        network("mlp", hidden=(512, 512, 512)), **_CIFAR, batch=(128, 128), steps=(100, 400),
        convolutional=False,
    ),
    "alexnet": Network(network("alexnet"), **_CONVOLUTIONAL, steps=(4, 100)),
    "inception": Network(network("inception"), **_CONVOLUTIONAL, steps=(4, 100)),
    "vgg": Network(network("vgg"), **_CONVOLUTIONAL, steps=(4, 100)),
}  # fmt: skip


class Task(NamedTuple):
    """One network at one size: what all ways of a comparison have in common.

    network: its name in NETWORKS   batch: images a step   steps: of an epoch
    precision: of matrix products, a value of the field matmul_precision
    """

    network: str
    batch: int
    steps: int
    precision: str

    @property
    def images(self) -> int:
        return self.batch * self.steps


def make_task(name: str, platform: str, batch: int = 0) -> Task:
    """The task of a network on a platform; `batch` 0 takes the network's own."""
    known, place = NETWORKS[name], 0 if platform == "cpu" else 1
    # PyTorch computes in bfloat16 on a GPU; so do all others there.
    precision = "float32" if platform == "cpu" else "bfloat16"
    return Task(name, batch or known.batch[place], known.steps[place], precision)


def make_dataset(task: Task) -> Dataset:
    """As many random images as an epoch has, with random labels; the same each time."""
    rng = np.random.Generator(np.random.Philox(0))
    shape = NETWORKS[task.network].image_shape

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        return images, rng.integers(0, _CLASSES, count, dtype=np.int32)

    names = tuple(f"class {c}" for c in range(_CLASSES))
    return Dataset("synthetic", *split(task.images), *split(_TEST_IMAGES), names, "made here")


def make_trial(task: Task, seed: int, **changes: Any) -> trials.Trial:
    """A trial that trains until it is stopped from outside; `changes` to its sections."""
    known = NETWORKS[task.network]
    fields: dict[str, Any] = {
        "seed": seed,
        "batch_size": task.batch,
        "matmul_precision": task.precision,
        "data": {"name": "synthetic"},
        "preprocess": {"crop_size": known.crop},
        "model": known.model,
        "optimizer": {
            "learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "lr_decay": 1.0,
        },
        "stop": {"max_epochs": _MAX_EPOCHS, "measured_on": "online"},
    }  # fmt: skip
    for section, more in changes.items():
        fields[section] = fields.get(section, {}) | more
    return trials.resolve(fields)


class Cost(NamedTuple):
    """parameters: of the network   flops: of one step, forward and backward

    Two for each multiplication of a convolution or dense layer, and three times the forward pass;
    all else of a step is left out.
    """

    parameters: int
    flops: int


def cost(task: Task) -> Cost:
    """What a step of the network costs."""
    known = NETWORKS[task.network]
    attributes = {k: v for k, v in known.model.items() if k != "name"}
    module = models.MODELS[known.model["name"]](num_classes=_CLASSES, **attributes)
    height, width, channels = known.image_shape
    image = jnp.zeros((1, known.crop or height, known.crop or width, channels))
    made = jax.eval_shape(
        lambda: module.init(
            jax.random.key(0), image, train=False, mutable=True, capture_intermediates=True
        )
    )
    multiplications = _multiplications(made["params"], made["intermediates"])
    parameters = sum(math.prod(p.shape) for p in jax.tree.leaves(made["params"]))
    return Cost(parameters, 3 * 2 * multiplications * task.batch)


def _multiplications(params: Any, outputs: Any) -> int:
    """Of one image: each kernel is applied once at every place of its layer's output."""
    if "kernel" in params:
        (output,) = outputs["__call__"]
        return math.prod(output.shape[1:-1]) * math.prod(params["kernel"].shape)
    inner = [k for k, v in params.items() if hasattr(v, "items")]
    return sum(_multiplications(params[k], outputs[k]) for k in inner)
