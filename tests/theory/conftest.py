"""Running one case of an experiment."""

import pytest

from rethink_jax.theory import cases


@pytest.fixture
def run_case(tmp_path):
    """(experiment, fields) -> (its record, its text)."""

    def run(experiment, **fields):
        config = {"experiment": experiment, "trial": fields}
        (text,) = cases.run(config, tmp_path, ["command"])
        (record,) = cases.load(tmp_path)
        return record, text

    return run
