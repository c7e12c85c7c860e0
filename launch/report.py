"""Draws the figures and the page of a workdir, also of an unfinished one.

python -m launch.report --workdir=runs/quickstart
"""

from absl import flags

from rethink_jax import cli, remote, report, shown

_WORKDIR = flags.DEFINE_string("workdir", None, "folder that a sweep wrote")


def main() -> int:
    with remote.folder_of(_WORKDIR.value, everything=True) as workdir:
        result = report.build(workdir)
    print("\n".join(result.summary))
    print(shown.line(f"report: {result.page.absolute()}"))
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main, workdir="name the folder that the sweep wrote")
