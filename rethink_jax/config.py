"""The default config, and the settings that do not change results.

`config.trial` decides a result (its fields: `trials.FIELDS`); `config.sweep` names axes of it; all
the rest is in `SETTINGS` below and may change between two runs in the same workdir.
"""

from __future__ import annotations

from typing import Any

from rethink_jax import models, trials
from rethink_jax.layers.lowering import LOWERINGS
from rethink_jax.schema import Field, UserError, flatten, nest, plain, suggest

SETTINGS: dict[str, Field] = {
    "engine.batching": Field(
        str,
        "auto",
        "over the lanes of a device: vmap, or map (one after another); auto: by backend",
        choices=("auto", "vmap", "map"),
    ),
    "engine.lanes": Field(int, 0, "trials at once; 0: chosen by the engine", low=0),
    "engine.convolution": Field(
        str,
        "auto",
        "how convolutions are computed; auto: each as was measured, or by backend",
        choices=("auto", *LOWERINGS),
    ),
    "engine.tuning": Field(
        str,
        "auto",
        "measure what is fastest on this machine; auto: for groups of many minutes",
        choices=("auto", "on", "off"),
    ),
    "engine.pad_widths": Field(
        str,
        "auto",
        "run networks of several widths in one program, padded with zeros to the widest: on; off; "
        "auto: where compiling less saves more time than the zeros cost; a workdir keeps to it",
        choices=("auto", "on", "off"),
    ),
    "engine.devices": Field(int, 0, "local devices to use; 0: all", low=0),
    "engine.epochs_per_dispatch": Field(
        int, 0, "epochs that one device call runs; 0: about a quarter of a second", low=0
    ),
    "only": Field(
        str, "", "run only the trials with these values: 'model.name=mlp; seed=0'; empty: all"
    ),
    "engine.steps_per_dispatch": Field(
        int,
        0,
        "of a streamed set: steps that one device call runs; 0: as many as fit 64 MiB of images",
        low=0,
    ),
    "loader.threads": Field(int, 0, "that decode images of a streamed set; 0: one per core", low=0),
    "evaluate.every_epochs": Field(
        int, 1, "epochs between full evaluations (the last one is always evaluated)", low=1
    ),
    "measure.every_epochs": Field(
        int, 0, "epochs between measures along training (and after the last one); 0: none", low=0
    ),
    "measure.names": Field(
        tuple, ("margins", "norms"), "measures, or families of them, along training", each=str
    ),
    "checkpoint.keep": Field(str, "final", "finished networks to keep", choices=("final", "none")),
    "checkpoint.every_seconds": Field(float, 60.0, "between checkpoints of running trials", low=0),
    "data_files.dir": Field(
        str, None, "data sets' folder; None: $RETHINK_DATA_DIR, or .data", optional=True
    ),
    "data_files.download": Field(bool, False, "fetch missing data sets (needs the download extra)"),
}


def default_config(mode: str = "full") -> Any:
    """A ConfigDict with every field of a trial, every axis (empty) and every setting.

    `mode` is what follows the colon in --config=FILE:MODE; only "full" and "quick" are accepted,
    and what "quick" changes is up to the file. The model's own fields are those of the default
    network; assign `config.trial.model` as a whole to take another one.
    """
    from ml_collections import config_dict  # Only configs need it; the engine takes plain dicts.

    if mode not in ("full", "quick"):
        raise UserError(f"the mode of a config is full or quick, not {mode!r}")

    def value(field: Field) -> Any:
        if field.default is None:
            return config_dict.placeholder(field.kind)
        return field.default

    config = config_dict.ConfigDict(nest({k: value(f) for k, f in SETTINGS.items()}))
    config.trial = config_dict.ConfigDict(nest({k: value(f) for k, f in trials.FIELDS.items()}))
    for name, field in models.fields_of(config.trial.model.name).items():
        config.trial.model[name] = value(field)
    # Empty axes are there so that --config.sweep.<field>=... can sweep any field.
    axes = {k: () for k in trials.FIELDS if not k.startswith("model.")}
    config.sweep = config_dict.ConfigDict(nest(axes))
    return config


def network(name: str, **fields: Any) -> dict[str, Any]:
    """A network with all of its fields, for `config.trial.model`: those given, else the defaults.

    With all of them there, any can be set from the command line.

    Raises:
      UserError: an unknown network or field.
    """
    trials.FIELDS["model.name"].check("model.name", name)
    known = models.fields_of(name)
    for field in fields:
        if field not in known:
            raise UserError(
                f"model {name!r} has no field {field!r}; it has {', '.join(known)}"
                f"{suggest(field, known)}"
            )
    return {"name": name} | {k: f.default for k, f in known.items()} | fields


def settings(config: Any) -> dict[str, Any]:
    """The checked settings of a config, {dotted name: value}, defaults filled in.

    Raises:
      UserError: an unknown section or setting, or a value that it may not hold.
    """
    given = flatten({k: v for k, v in plain(config).items() if k not in ("trial", "sweep")})
    for name in given:
        if name == "experiment":
            raise UserError("this is a config of launch.theory; launch.sweep takes those of sweeps")
        if name not in SETTINGS:
            raise UserError(
                f"unknown setting {name!r} in the config{suggest(name, SETTINGS)}; "
                "what decides a result stands in config.trial"
            )
    return {k: f.check(k, given.get(k, f.default)) for k, f in SETTINGS.items()}


def describe() -> str:
    """Every field and setting: name, default, what it may hold, what it is, and whether traced."""
    lines = ["config.trial: decides a result. * is traced: its values share one compiled program."]
    lines += [
        _line(f"trial.{k}", f, "* " if f.role != "static" else "") for k, f in trials.FIELDS.items()
    ]
    for name in models.MODELS:
        lines.append(f"config.trial.model, for the network {name!r}:")
        lines += [_line(f"trial.model.{k}", f) for k, f in models.fields_of(name).items()]
    lines.append("settings: change no result")
    lines += [_line(k, f) for k, f in SETTINGS.items()]
    lines.append("config.sweep.<field> = (value, ...): an axis over any field of config.trial")
    return "\n".join(lines)


def _line(name: str, field: Field, mark: str = "") -> str:
    return f"  {name} = {field.default!r}  {mark}{field.doc} ({field.allowed()})"
