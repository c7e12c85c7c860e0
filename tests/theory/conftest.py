"""Running one case of an experiment."""

from pathlib import Path

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


@pytest.fixture(scope="session")
def find():
    """(experiment, fields) -> what it finds, without a record."""

    def find(experiment, **fields):
        (case,) = cases.expand({"experiment": experiment, "trial": fields})
        settings = {"data_files.dir": None, "data_files.download": False}
        context = cases.Context(Path("no folder"), settings, ["command"], lambda line: None)
        return cases._module(experiment).run(context, **dict(case.fields))

    return find
