"""Commands: python -m launch.NAME."""

import sys

from rethink_jax import signals

# So it is while python -m looks for the module, which has not imported anything yet.
if sys.argv[:1] == ["-m"]:
    signals.end_from_now()
