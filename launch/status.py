"""Shows how far the sweeps of a workdir are, at any time and from any terminal.

python -m launch.status --workdir=runs/quickstart --watch
"""

import json

from absl import flags

from rethink_jax import cli, remote, status

_WORKDIR = flags.DEFINE_string("workdir", None, "folder that a sweep writes")
_WATCH = flags.DEFINE_bool("watch", False, "again and again, while any process is running")
_JSON = flags.DEFINE_bool("json", False, "as JSON, with every running and failed trial")


def main() -> int:
    with remote.folder_of(_WORKDIR.value) as workdir:
        view = status.View(workdir)
        if _WATCH.value:
            status.watch(view)
        elif _JSON.value:
            print(json.dumps(view.read().to_json(), indent=1))
        else:
            print(status.text(view.read()))
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main, workdir="name the folder that the sweep writes")
