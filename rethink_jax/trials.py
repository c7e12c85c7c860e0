"""From a config to trials, and from trials to the groups that share one compiled program.

A trial is one complete training run with every field a literal. `FIELDS` is the one table that
says which fields exist, what they may hold, and which of them are traced. Everything that is not
traced is static and splits groups. To add a traced hyper-parameter: one row here, and one line of
use where the training reads `hypers[name]`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rethink_jax import axes, models, optimizers
from rethink_jax.axes import Assignment
from rethink_jax.data import corruption, preprocess, sources, streamed
from rethink_jax.schema import Field, UserError, flatten, nest, plain, suggest

_SEED = dict(low=0, high=2**31 - 1)

FIELDS: dict[str, Field] = {
    "seed": Field(int, 0, "initial weights, data order, augmentation", role="hyper", **_SEED),
    "batch_size": Field(int, 128, "images per step; a last partial batch is left out", low=1),
    "matmul_precision": Field(
        str,
        "float32",
        "of matrix products, where the device has several",
        choices=("float32", "tensorfloat32", "bfloat16"),
    ),
    "compute_dtype": Field(
        str,
        "float32",
        "of the network's activations and products; weights, statistics and loss are float32",
        choices=("float32", "bfloat16"),
    ),
    "data.name": Field(str, "digits", "the data set, by name, or tfds:NAME, or folder:PATH"),
    "data.image_size": Field(
        int, None, "height and width of the images of a streamed set", low=8, optional=True
    ),
    "data.classes": Field(
        tuple,
        None,
        "only images of these classes, numbered 0, 1, ... in this order; None: all",
        each=int,
        low=0,
        optional=True,
    ),
    "data.num_train": Field(int, None, "size of a random subset", low=1, optional=True),
    "data.num_confusion": Field(
        int, 0, "size of a confusion set: images with random labels beside the subset", low=0
    ),
    "data.balanced": Field(bool, False, "the subset has equally many images of each class"),
    "data.seed": Field(
        int, 0, "which subset; and, of a streamed set, the order of its images", **_SEED
    ),
    "data.replaced": Field(
        int,
        None,
        "which image of the subset gives way, with its label, to one that was left out; None: none",
        role="data",
        low=0,
        optional=True,
    ),
    "corruption.labels": Field(
        str, "uniform", "how labels are redrawn", role="data", choices=corruption.LABELS
    ),
    "corruption.label_prob": Field(
        float, 0.0, "probability that a label is redrawn", role="data", low=0, high=1
    ),
    "corruption.pixels": Field(
        str, "none", "what happens to the pixels", role="data", choices=corruption.PIXELS
    ),
    "corruption.pixel_fraction": Field(
        float, 1.0, "fraction of the images it happens to", role="data", low=0, high=1
    ),
    "corruption.pixel_strength": Field(
        float, 1.0, "x becomes (1-strength)*x + strength*corrupted(x)", role="data", low=0, high=1
    ),
    "corruption.seed": Field(
        int,
        None,
        "of labels and pixels; None: the trial's seed",
        role="data",
        optional=True,
        **_SEED,
    ),
    "preprocess.crop_size": Field(
        int, None, "height and width after the crop; None: no crop", low=1, optional=True
    ),
    "preprocess.random_crop": Field(
        bool, False, "train on random instead of central crops", role="hyper"
    ),
    "preprocess.random_flip": Field(
        bool, False, "mirror training images left to right half of the time", role="hyper"
    ),
    "preprocess.max_rotation": Field(
        float, 0.0, "turn training images by up to so many degrees", role="hyper", low=0, high=180
    ),
    "preprocess.normalize": Field(
        str,
        "per_image",
        "per_image: each image to mean 0 and (unless flat) variance 1; symmetric: from -1 to 1; "
        "imagenet, mnist: by the set's mean and deviation; none: from 0 to 1",
        choices=preprocess.NORMALIZE,
    ),
    "regularizer.dropout": Field(
        float, 0.0, "rate in the network's dropout layers", role="hyper", low=0, high=0.999
    ),
    "regularizer.input_dropout": Field(
        float, 0.0, "rate of dropout on the values of the image", role="hyper", low=0, high=0.999
    ),
    "regularizer.label_smoothing": Field(
        float, 0.0, "of the target, spread evenly over all classes", role="hyper", low=0, high=1
    ),
    "model.name": Field(str, "mlp", "the network", choices=models.MODELS),
    "optimizer.name": Field(str, "sgd", "the update rule", choices=optimizers.OPTIMIZERS),
    "optimizer.learning_rate": Field(float, 0.01, "of the first epoch", role="hyper", low=0),
    "optimizer.lr_decay": Field(
        float, 0.95, "factor on the learning rate after each epoch", role="hyper", low=0, high=1
    ),
    "optimizer.momentum": Field(float, 0.9, "heavy ball", role="hyper", low=0, high=1),
    "optimizer.weight_decay": Field(
        float, 0.0, "lambda of lambda/2*|w|^2, coupled", role="hyper", low=0
    ),
    "optimizer.decay_params": Field(
        str, ".*", "regular expression for the parameters that decay: .*kernel, Dense_[01]/.*"
    ),
    "stop.max_epochs": Field(int, 60, "the last epoch", low=1),
    "stop.train_accuracy": Field(
        float, None, "fitted when reached", role="hyper", low=0, high=1, optional=True, off=2.0
    ),
    "stop.train_loss": Field(
        float, None, "fitted when below", role="hyper", low=0, optional=True, off=-1.0
    ),
    "stop.measured_on": Field(
        str,
        "full",
        "full: the training set after the epoch; online: the epoch's own batches as trained",
        choices=("full", "online"),
    ),
    "stop.when_fitted": Field(
        bool, True, "end there; False: record it and go on to max_epochs", role="hyper"
    ),
}

TRACED = tuple(name for name, field in FIELDS.items() if field.role != "static")
HYPERS = tuple(name for name, field in FIELDS.items() if field.role == "hyper")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One fully resolved training run.

    fields: ((dotted name, literal), ...) sorted by name; all that decides the result.
    """

    fields: tuple[tuple[str, Any], ...]

    @functools.cached_property
    def _by_name(self) -> Assignment:
        return dict(self.fields)

    def __getitem__(self, name: str) -> Any:
        return self._by_name[name]

    @functools.cached_property
    def static(self) -> tuple[tuple[str, Any], ...]:
        """The fields that shape the compiled program."""
        return tuple((name, value) for name, value in self.fields if name not in TRACED)

    @functools.cached_property
    def static_id(self) -> str:
        """As `trial_id`, of the static fields alone."""
        return digest(self.static)

    @functools.cached_property
    def trial_id(self) -> str:
        """Twelve hex digits of the SHA-256 of the canonical JSON of the fields."""
        return digest(self.fields)


def digest(fields: Sequence[tuple[str, Any]]) -> str:
    """Twelve hex digits that identify a set of (name, literal) pairs."""
    canonical = json.dumps(dict(fields), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Group:
    """The trials that share one compiled program, those expected to run longest first.

    padded_to: static fields in which the trials may differ, as they are in the program: those of a
      network with room for each trial's (see `widths`)
    """

    trials: tuple[Trial, ...]
    padded_to: tuple[tuple[str, Any], ...] = ()

    @property
    def static(self) -> Assignment:
        """The fields that shape the compiled program."""
        return dict(self.trials[0].static) | dict(self.padded_to)

    @property
    def group_id(self) -> str:
        # Not the id of a group whose own network it is: their checkpoints are not to be mixed.
        padded = (("padded", [name for name, _ in self.padded_to]),) if self.padded_to else ()
        return digest((*self.static.items(), *padded))


def group(
    trials: Sequence[Trial], padded_to: Callable[[Trial], Assignment] = lambda _: {}
) -> list[Group]:
    """Splits trials into groups with equal static fields, in order of first appearance.

    Args:
      padded_to: of a trial, the fields of the network that its own is padded to; {} for none.
    """
    found: dict[Any, list[Trial]] = {}
    for trial in trials:
        padded = tuple(padded_to(trial).items())
        static = tuple((dict(trial.static) | dict(padded)).items()) if padded else trial.static
        found.setdefault((static, padded), []).append(trial)
    return [
        Group(tuple(sorted(g, key=_expected_length, reverse=True)), padded)
        for (_, padded), g in found.items()
    ]


def _expected_length(trial: Trial) -> tuple[float, ...]:
    # Corrupted trials take longest to fit (Zhang et al. 2017, Fig. 1b). Starting them first keeps
    # the lanes evenly busy to the end. Only the order depends on this, never a result.
    pixels = 0.0 if trial["corruption.pixels"] == "none" else trial["corruption.pixel_fraction"]
    return (max(trial["corruption.label_prob"], 0.5 * pixels), -trial["optimizer.learning_rate"])


def resolve(trial: dict[str, Any]) -> Trial:
    """Checks every field of a nested dict, fills in defaults, and freezes it.

    Raises:
      UserError: an unknown field, or a value that its field may not hold.
    """
    given = flatten(trial)
    name = FIELDS["model.name"].check("model.name", given.get("model.name", "mlp"))
    fields = FIELDS | {f"model.{k}": f for k, f in models.fields_of(name).items()}
    for field in given:
        if field not in fields:
            raise UserError(_unknown_field(field, name, fields))
    values = {k: f.check(k, given.get(k, f.default)) for k, f in fields.items()}
    sources.check_name(values["data.name"])
    if values["corruption.seed"] is None:
        values["corruption.seed"] = values["seed"]
    _check_data(values)
    if values["preprocess.random_crop"] and values["preprocess.crop_size"] is None:
        raise UserError(
            "preprocess.random_crop is True without preprocess.crop_size; set the size of the crop"
        )
    if sources.is_streamed(values["data.name"]):
        streamed.check_fields(values)
    _check_network(values)
    return Trial(tuple(sorted(values.items())))


def _check_data(values: Assignment) -> None:
    """Raises UserError if the fields of the images do not go together."""
    size, replaced, classes = (values[f"data.{k}"] for k in ("num_train", "replaced", "classes"))
    if values["data.balanced"] and size is None:
        raise UserError("data.balanced is True without data.num_train; set the size of the subset")
    if values["data.num_confusion"] and size is None:
        raise UserError(
            "data.num_confusion is set without data.num_train; set the size of the subset that "
            "keeps its labels"
        )
    if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
        raise UserError(
            f"data.classes is {classes!r}; it needs two or more different classes, as in "
            "data.classes = (0, 1)"
        )
    if replaced is not None and size is None:
        raise UserError(
            f"data.replaced is {replaced} without data.num_train; an image is replaced by one that "
            "the subset leaves out. Set the size of the subset"
        )
    if replaced is not None and values["data.num_confusion"]:
        raise UserError(
            f"data.replaced is {replaced} and data.num_confusion is not 0; an image is replaced "
            "only where there is no confusion set. Leave one of them out"
        )
    if replaced is not None and replaced >= size:
        raise UserError(
            f"data.replaced is {replaced}; the subset has {size} images, counted from 0. Set it to "
            f"at most {size - 1}"
        )


def _check_network(values: Assignment) -> None:
    """Raises UserError if the trial asks for what its network or its pattern cannot give."""
    own = {k.removeprefix("model."): v for k, v in values.items() if k.startswith("model.")}
    models.check(**own)
    if values["regularizer.dropout"] and not models.has_dropout(**own):
        raise UserError(
            f"regularizer.dropout is {values['regularizer.dropout']}; the network "
            f"{own['name']!r} has no dropout layer as it is set. Leave it at 0, or set "
            "regularizer.input_dropout"
        )
    try:
        re.compile(values["optimizer.decay_params"])
    except re.error as error:
        raise UserError(
            f"optimizer.decay_params is {values['optimizer.decay_params']!r}, which is no regular "
            f"expression ({error}); write for example '.*kernel'"
        ) from None


def _unknown_field(field: str, model: str, fields: dict[str, Field]) -> str:
    if field.startswith("model."):
        own = ", ".join(k for k in fields if k.startswith("model."))
        return f"model {model!r} has no field {field!r}; it has {own}{suggest(field, fields)}"
    sections = sorted({k.split(".")[0] for k in fields})
    return (
        f"unknown field {field!r} in config.trial{suggest(field, fields)} "
        f"(sections and fields: {', '.join(sections)})"
    )


def expand(config: Any) -> list[Trial]:
    """All trials of a config: the product of the axes in `config.sweep` over `config.trial`.

    config.sweep.<field> = (value, ...)                an axis; every combination of axes is a trial
    config.sweep.zipped.<any name>.<field> = (...)     axes that advance together
    config.sweep.union.<any name> = {a sweep}          the union of several sweeps
    An axis over the whole model takes names or dicts: config.sweep.model = ("a", {"name": "b"}).
    An empty tuple is no axis.

    Raises:
      UserError: unknown field or axis, bad value, axes of unequal length, or the same trial twice.
    """
    config = plain(config)
    if not isinstance(config.get("trial"), dict):
        raise UserError("the config has no config.trial; start from rethink_jax.default_config()")
    trials: dict[Trial, Assignment] = {}
    for assignment in _assignments(config):
        trial = resolve(_override(config["trial"], assignment))
        if trial in trials:
            raise UserError(
                f"config.sweep makes the same trial twice, as {assignment} and as "
                f"{trials[trial]}; take the repeated value out of one of the axes"
            )
        trials[trial] = assignment
    return list(trials)


def select(trials: Sequence[Trial], only: str) -> list[Trial]:
    """The trials that have certain values, by conditions like "model.name=mlp; seed=0".

    Raises:
      UserError: a condition that is none, on an unknown field, or no trial that meets them all.
    """
    chosen = list(trials)
    for condition in filter(None, (part.strip() for part in only.split(";"))):
        name, equals, text = (part.strip() for part in condition.partition("="))
        known = {k for t in trials for k, _ in t.fields}
        if not equals or name not in known:
            raise UserError(
                f"only: {condition!r} is no condition on a field{suggest(name, known)}; "
                "write for example 'model.name=mlp; seed=0'"
            )
        values = {dict(t.fields).get(name) for t in trials}
        chosen = [t for t in chosen if _is(dict(t.fields).get(name), text)]
        if not chosen:
            found = ", ".join(sorted(map(str, values)))
            raise UserError(f"only: no trial has {only!r}; the values of {name} are {found}")
    return chosen


def _is(value: Any, text: str) -> bool:
    """Whether a field's value is what a user wrote: 0.0 also as 0, (512,) also as 512."""
    if isinstance(value, tuple):
        bare = str.maketrans("", "", " ()'\"")
        value, text = ",".join(map(str, value)).translate(bare), text.translate(bare).rstrip(",")
    if isinstance(value, float):
        try:
            return value == float(text)
        except ValueError:
            return False
    return str(value) == text


def fixed_fields(config: Any) -> Assignment:
    """The fields that no axis of the sweep sets, {dotted name: value}, defaults filled in."""
    config = plain(config)
    swept = {name for a in _assignments(config) for name in a}
    given = flatten(config["trial"])
    defaults = {k: f.default for k, f in FIELDS.items()}
    name = given.get("model.name", defaults["model.name"])
    defaults |= {f"model.{k}": f.default for k, f in models.fields_of(name).items()}
    fields = defaults | given
    return {
        k: v
        for k, v in sorted(fields.items())
        if k not in swept and not (k.startswith("model.") and "model" in swept)
    }


def _override(trial: dict[str, Any], assignment: Assignment) -> dict[str, Any]:
    flat = flatten(trial)
    for name, value in sorted(assignment.items()):  # "model" comes before "model.hidden".
        if name == "model":  # a whole network: its fields replace those of the base config
            flat = {k: v for k, v in flat.items() if not k.startswith("model.")}
            value = value if isinstance(value, dict) else {"name": value}
            flat.update(flatten(value, "model."))
        else:
            flat[name] = value
    return nest(flat)


def _assignments(config: dict[str, Any]) -> Iterator[Assignment]:
    return axes.assignments(config.get("sweep") or {}, [*FIELDS, "model"])
