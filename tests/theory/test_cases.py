"""Configs of theory: what they expand to, that nothing is computed twice, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rethink_jax.schema import UserError
from rethink_jax.theory import EXPERIMENTS, cases, memorizer_report

ROOT = Path(__file__).parents[2]
SMALL = {"experiment": "memorizer", "trial": {"num_train": 20}}


def test_expand_is_a_product_of_axes():
    sweep = {"seed": (0, 1), "zipped": {"a": {"depth": (2, 3), "num_train": (20, 30)}}}
    found = cases.expand(SMALL | {"sweep": sweep})
    values = [(c["seed"], c["depth"], c["num_train"]) for c in (dict(f.fields) for f in found)]
    assert values == [(0, 2, 20), (0, 3, 30), (1, 2, 20), (1, 3, 30)]
    assert len({case.name for case in found}) == 4
    # Defaults are filled in, and do not change a name.
    explicit = SMALL | {"trial": {"num_train": 20, "labels": "random"}}
    assert cases.expand(explicit) == cases.expand(SMALL)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_default_configs_are_the_fields(experiment):
    config = cases.default_config(experiment)
    (case,) = cases.expand(config)
    fields = cases._module(experiment).FIELDS
    assert dict(case.fields) == {name: field.default for name, field in fields.items()}
    config.trial.num_train = 7  # As a command line does it; the default is None.
    assert dict(cases.expand(config)[0].fields)["num_train"] == 7
    assert "trial.num_train = None" in cases.describe()


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    calls = []
    real = memorizer_report.run
    monkeypatch.setattr(
        memorizer_report, "run", lambda *a, **k: calls.append(k["seed"]) or real(*a, **k)
    )
    (first,) = cases.run(SMALL, tmp_path, ["a"])
    (again,) = cases.run(SMALL, tmp_path, ["b"])
    assert calls == [0]
    assert "done before" in again and "done before" not in first
    assert again.replace("done before; ", "") == first
    list(cases.run(SMALL | {"sweep": {"seed": (0, 1)}}, tmp_path, ["c"]))
    assert calls == [0, 1]
    # What another version wrote is passed over, and made again.
    path = next((tmp_path / "theory").glob("*.json"))
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"format": -1}))
    assert len(cases.load(tmp_path)) == 1
    list(cases.run(SMALL | {"sweep": {"seed": (0, 1)}}, tmp_path, ["d"]))
    assert len(calls) == 3 and len(cases.load(tmp_path)) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 10**5, '{"format": 1}', "\xff"])
def test_a_damaged_record_is_named_before_anything_is_run(tmp_path, text):
    config = SMALL | {"sweep": {"seed": (0, 1)}}
    list(cases.run(SMALL | {"trial": {"num_train": 20, "seed": 1}}, tmp_path, []))
    (path,) = (tmp_path / "theory").glob("*.json")
    path.write_text(text, encoding="latin-1")
    for use in (lambda: list(cases.run(config, tmp_path, [])), lambda: cases.load(tmp_path)):
        with pytest.raises(UserError, match=r"is damaged .*; delete it and run") as raised:
            use()
        assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)
    assert list((tmp_path / "theory").iterdir()) == [path]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"trial": {"seed": 1}}, "names no experiment: configs of sweeps are for launch.sweep"),
        ({"experiment": "memoriser"}, "'memoriser'; did you mean 'memorizer'"),
        (SMALL | {"trial": {"bandwidth": 1}}, "has no field 'bandwidth'.*it has data, num_train"),
        (SMALL | {"sweep": {"bandwidth": (1,)}}, "unknown axis 'bandwidth'"),
        (SMALL | {"sweep": {"seed": 3}}, "an axis is a tuple of values"),
        (SMALL | {"sweep": {"seed": (3, 3)}}, "the same trial twice"),
        (SMALL | {"trial": {"num_train": True}}, "num_train is True"),
        (SMALL | {"trial": {"labels": "noise"}}, "one of random, true"),
        (SMALL | {"engine": {"lanes": 3}}, "unknown setting 'engine.lanes'"),
        (SMALL | {"trial": {"data": "cifar"}}, "cifar"),
    ],
)
def test_refused(tmp_path, config, match):
    with pytest.raises(UserError, match=match) as raised:
        list(cases.run(config, tmp_path / "w", []))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "w").exists()


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "w").write_text("")
    with pytest.raises(UserError, match="cannot write to the workdir"):
        list(cases.run(SMALL, tmp_path / "w", []))


def test_command(tmp_path):
    def run(*given):
        command = [sys.executable, "-m", "launch.theory", *given]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    config, workdir = "--config=configs/theorem1.py:quick", f"--workdir={tmp_path}"
    done = run(config, workdir, "--config.trial.seed=1", "--config.trial.depth=3",
               "--config.sweep.union={}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "random labels, seed 1" in done.stdout
    (record,) = cases.load(tmp_path)
    assert (record["trial"]["seed"], record["trial"]["depth"]) == (1, 3)
    for override, said in (
        ("num_trian", "--config.trial.num_trian: the config has no such field; did you mean 'tri"),
        ("bandwidth", "--config.trial.bandwidth: this config has no such field"),
    ):
        wrong = run(config, workdir, f"--config.trial.{override}=1")
        assert wrong.returncode == 2 and said in wrong.stderr
    assert run(config).returncode == 2
