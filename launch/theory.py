"""Runs a theorem as a program: what it builds or says, beside networks that were trained.

python -m launch.theory --experiment=memorizer --workdir=runs/theory --data=cifar10
python -m launch.theory --experiment=kernel --workdir=runs/theory --data=mnist --num_train=5000
"""

import sys

from absl import flags

from rethink_jax import cli

_EXPERIMENT = flags.DEFINE_string("experiment", None, "which: memorizer, kernel")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for the numbers, as JSON")
# Options of the experiments; those that are not given have the experiment's own defaults.
_OPTIONS = (
    flags.DEFINE_string("data", None, "data set, as in a config's data.name"),
    flags.DEFINE_string("data_dir", None, "the data sets' folder; else $RETHINK_DATA_DIR or .data"),
    flags.DEFINE_integer("num_train", None, "size of a random subset; not given: all", 1),
    flags.DEFINE_enum("labels", None, ["random", "true"], "of the training images"),
    flags.DEFINE_integer("seed", None, "of all that is drawn", 0),
    flags.DEFINE_integer("depth", None, "memorizer: layers with weights; 2 is Theorem 1", 2),
    flags.DEFINE_enum(
        "precision", None, ["float64", "float32"],
        "memorizer: of its arithmetic; kernel: of the direct solver's factor",
    ),
    flags.DEFINE_integer(
        "sgd", None, "memorizer: hidden units of a network that SGD fits beside it; 0: none", 0
    ),
    flags.DEFINE_enum("features", None, ["raw", "gabor", "patches"], "kernel: of the images"),
    flags.DEFINE_string("kernel", None, "kernel: gaussian, linear, polynomial, arc_cosine_0 or _1"),
    flags.DEFINE_float("bandwidth", None, "kernel: times the root of the median squared distance"),
    flags.DEFINE_integer("degree", None, "kernel: of the polynomial kernel"),
    flags.DEFINE_integer("filters", None, "kernel: random patches, with --features=patches"),
    flags.DEFINE_enum("targets", None, ["onehot", "signs"], "kernel: labels as numbers"),
    flags.DEFINE_float("ridge", None, "kernel: on the diagonal; 0: least norm"),
    flags.DEFINE_float("jitter", None, "kernel: on the diagonal of a matrix that is singular"),
    flags.DEFINE_enum("solver", None, ["auto", "direct", "iterative", "eigen"], "kernel: how"),
    flags.DEFINE_integer("rank", None, "kernel: columns of the iterative solver's preconditioner"),
)  # fmt: skip


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
