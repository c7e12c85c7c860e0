"""Times trial-steps per second of the engine and of other ways to run the same trials.

python -m launch.bench --torch_python=PATH --json=bench.json
python -m launch.bench --quick
"""

import json
import os
import sys

from absl import flags

from rethink_jax import cli

# As the user has it: `cli.run` sets up the engine's devices, which the other ways do without.
_ENVIRONMENT = dict(os.environ)
_QUICK = flags.DEFINE_bool("quick", False, "the digits MLP alone, under a minute, no extras")
_NETWORKS = flags.DEFINE_list("networks", None, "which to time; not given: all")
_WAYS = flags.DEFINE_list("ways", None, "which ways to run them; not given: all")
_EXTRAS = flags.DEFINE_list("extras", None, "refill, start, plan, memory, or all or none")
_LANES = flags.DEFINE_integer("lanes", 0, "of the ways that have them; 0: their own choice")
_BATCH = flags.DEFINE_integer("batch", 0, "images a step; 0: by network and platform")
_REPEATS = flags.DEFINE_integer("repeats", None, "of each way; 5, with --quick 2")
_SECONDS = flags.DEFINE_float("seconds", None, "that a repeat takes; 3, with --quick 0.3")
_JSON = flags.DEFINE_string("json", "", "file for all results, with every repeat")
_TORCH = flags.DEFINE_string("torch_python", "", "an interpreter that has PyTorch")
_EXECUTORS = flags.DEFINE_list(
    "executors", [], "processes, ray: time a sweep by these alone, with more and more workers"
)
_WORKERS = flags.DEFINE_list("workers", [], "numbers of them; not given: 1, 2, 4 ...")
_PROFILE = flags.DEFINE_string("profile", "", "folder for traces of the engine, one per network")


def main() -> int:
    if _EXECUTORS.value:
        return _scaling()
    from rethink_jax.bench import session

    given = {
        "networks": _NETWORKS.value, "ways": _WAYS.value, "extras": _EXTRAS.value,
        "repeats": _REPEATS.value, "seconds": _SECONDS.value,
    }  # fmt: skip
    quick = {"networks": ["digits"], "extras": [], "repeats": 2, "seconds": 0.3}
    chosen = (quick if _QUICK.value else {}) | {k: v for k, v in given.items() if v is not None}
    if chosen.get("extras") == ["none"]:
        chosen["extras"] = []
    elif chosen.get("extras") == ["all"]:
        del chosen["extras"]
    options = session.Options(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()},
        lanes=_LANES.value, batch=_BATCH.value, json=_JSON.value,
        torch_python=_TORCH.value, profile=_PROFILE.value,
    )  # fmt: skip
    session.run(options, sys.argv, _ENVIRONMENT, lambda text: print(text, flush=True))
    return cli.EXIT_OK


def _scaling() -> int:
    from rethink_jax.bench import scaling

    if wrong := [text for text in _WORKERS.value if not text.isdigit()]:
        raise cli.UserError(f"--workers has {wrong[0]!r}; write numbers, as in --workers=1,2,4")
    rows = scaling.run(_EXECUTORS.value, [int(n) for n in _WORKERS.value], _ENVIRONMENT, print)
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(rows, file, indent=1)
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
