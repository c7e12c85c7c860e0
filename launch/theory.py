"""Runs a theorem as a program: what it builds or says, beside the papers' numbers.

python -m launch.theory --config=configs/theorem1.py --workdir=runs/theorem1
python -m launch.report --workdir=runs/theorem1
"""

import sys

from absl import flags
from ml_collections import config_flags

from rethink_jax import cli, remote

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment: configs/NAME.py, or configs/NAME.py:quick"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for the numbers")
_FIELDS = flags.DEFINE_bool("fields", False, "list every field of a config, and run nothing")


def main() -> int:
    from rethink_jax.theory import cases

    if _FIELDS.value:
        print(cases.describe())
        return cli.EXIT_OK
    for flag, example in ((_CONFIG, "configs/theorem1.py"), (_WORKDIR, "runs/theorem1")):
        if not flag.value:
            raise cli.UserError(f"--{flag.name} is missing: name it, as in --{flag.name}={example}")
    with remote.folder_of(_WORKDIR.value) as workdir:
        for text in cases.run(_CONFIG.value, workdir, sys.argv):
            print(text, flush=True)
    return cli.EXIT_OK


def _known_fields() -> list[str]:
    from rethink_jax.theory import cases

    return cases.known_fields()


if __name__ == "__main__":
    cli.run(main, known_fields=_known_fields)
