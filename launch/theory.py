"""Runs a theorem as a program: what it builds or says, beside networks that were trained.

python -m launch.theory --experiment=memorizer --workdir=runs/theory --data=cifar10
"""

import sys

from absl import flags

from rethink_jax import cli

_EXPERIMENT = flags.DEFINE_string("experiment", None, "which: memorizer")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for the numbers, as JSON")
# Options of the experiments; those that are not given have the experiment's own defaults.
_OPTIONS = (
    flags.DEFINE_string("data", None, "data set, as in a config's data.name"),
    flags.DEFINE_string("data_dir", None, "the data sets' folder; else $RETHINK_DATA_DIR or .data"),
    flags.DEFINE_integer("num_train", None, "size of a random subset; not given: all", 1),
    flags.DEFINE_enum("labels", None, ["random", "true"], "of the training images"),
    flags.DEFINE_integer("seed", None, "of all that is drawn", 0),
    flags.DEFINE_integer("depth", None, "memorizer: layers with weights; 2 is Theorem 1", 2),
    flags.DEFINE_enum("precision", None, ["float64", "float32"], "memorizer: of its arithmetic"),
    flags.DEFINE_integer(
        "sgd", None, "memorizer: hidden units of a network that SGD fits beside it; 0: none", 0
    ),
)


def main() -> int:
    from rethink_jax import theory

    options = {flag.name: flag.value for flag in _OPTIONS if flag.present}
    print(theory.run(_EXPERIMENT.value, _WORKDIR.value, sys.argv, options))
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(
        main,
        experiment="name one, as in --experiment=memorizer",
        workdir="name the folder for the numbers",
    )
