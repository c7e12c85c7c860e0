"""What a user who makes a mistake sees: one line that says what to change, and exit code 2."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from absl import flags

from rethink_jax import cli

ROOT = Path(__file__).parents[1]

# Runs many command lines. Each is a forked process that then does what `python -m launch.sweep`
# does; only the imports, else nearly all of the time, are shared.
DRIVER = """
import json, os, runpy, sys, traceback
import rethink_jax.sweep
from ml_collections import config_flags

jobs, running, codes = json.load(open(sys.argv[1])), [], {}

def wait():
    name, pid = running.pop(0)
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for name, args in jobs.items():
    if len(running) == 2:
        wait()
    pid = os.fork()
    if pid == 0:
        for number, stream in (1, "out"), (2, "err"):
            os.dup2(os.open(f"{sys.argv[2]}/{name}.{stream}", os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["launch/sweep.py", *args]
        try:
            runpy.run_module("launch.sweep", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Taking down all that was imported would take longer than the rest.
    running.append((name, pid))
while running:
    wait()
print(json.dumps(codes))
"""

CONFIG_FILES = {
    "syntax": "def get_config(:\n    pass\n",
    "key_error": "def get_config():\n    raise KeyError('oh no')\n",
    "value_error": "def get_config():\n    return int('oh no')\n",
    "os_error": "def get_config():\n    return open('/nonexistent')\n",
    "assertion": "def get_config():\n    assert 1 == 2\n",
    "field_type": (
        "from rethink_jax import default_config\n\n"
        "def get_config():\n    config = default_config()\n"
        "    config.trial.batch_size = 'many'\n    return config\n"
    ),
    "no_function": "x = 1\n",
    "no_trial": "def get_config():\n    return {'sweep': {}}\n",
    "sweep_tuple": "def get_config():\n    return {'trial': {}, 'sweep': (1, 2)}\n",
    "union_tuple": "def get_config():\n    return {'trial': {}, 'sweep': {'union': (1, 2)}}\n",
    "zipped_tuple": (
        "def get_config():\n    return {'trial': {}, 'sweep': {'zipped': {'seed': (1, 2)}}}\n"
    ),
    "trial_number": "def get_config():\n    return {'trial': 3}\n",
    "a_number": "def get_config():\n    return 3\n",
    "section_number": "def get_config():\n    return {'trial': {'optimizer': 3}}\n",
}

QUICK = "--config=configs/quickstart.py:quick"
CIFAR = "--config=configs/table1.py"
WORKDIR = "--workdir={tmp}/{name}.workdir"


def _file(name):
    return [f"--config={{tmp}}/{name}.py", WORKDIR]


def _given(*args):
    return [QUICK, WORKDIR, *args]


# What is given, and what the one line has to say about it.
MISTAKES = {
    # the config file
    "config_missing": ([WORKDIR], "--config is missing", "configs/quickstart.py"),
    "config_not_there": (["--config=configs/nope.py", WORKDIR], "configs/nope.py"),
    "config_is_a_folder": (["--config=configs", WORKDIR], "configs"),
    "config_with_syntax_error": (_file("syntax"), "invalid syntax", "syntax.py", "line 1"),
    "config_raises_key_error": (_file("key_error"), "oh no"),
    "config_raises_value_error": (_file("value_error"), "oh no", "ValueError"),
    "config_raises_os_error": (_file("os_error"), "/nonexistent"),
    "config_asserts": (_file("assertion"), "AssertionError"),
    "config_sets_wrong_type": (_file("field_type"), "batch_size", "many"),
    "config_without_function": (_file("no_function"), "get_config"),
    "config_without_trial": (_file("no_trial"), "config.trial", "default_config"),
    "config_is_a_number": (_file("a_number"), "config"),
    "sweep_is_a_tuple": (_file("sweep_tuple"), "sweep"),
    "union_is_a_tuple": (_file("union_tuple"), "union"),
    "zipped_without_name": (_file("zipped_tuple"), "zipped"),
    "trial_is_a_number": (_file("trial_number"), "trial"),
    "section_is_a_number": (_file("section_number"), "optimizer"),
    # the command line
    "workdir_missing": ([QUICK], "--workdir is missing"),
    "unknown_flag": (_given("--wrkdir=x"), "wrkdir", "Did you mean: workdir"),
    "stray_argument": (_given("extra"), "'extra'", "--name=value"),
    "unknown_field": (
        _given("--config.trial.optimizer.learning_rat=0.1"),
        "--config.trial.optimizer.learning_rat",
        "did you mean 'trial.optimizer.learning_rate'?",
    ),
    "unknown_section": (
        _given("--config.trial.optimzer.learning_rate=0.1"),
        "--config.trial.optimzer.learning_rate",
        "did you mean 'trial.optimizer.learning_rate'?",
    ),
    "unknown_part": (
        _given("--config.trail.batch_size=8"),
        "--config.trail.batch_size",
        "did you mean 'trial.batch_size'?",
    ),
    "unknown_model_field": (
        _given("--config.trial.model.hiden=(8,)"),
        "--config.trial.model.hiden",
        "did you mean 'trial.model.hidden'?",
    ),
    "field_of_another_network": (
        _given("--config.trial.model.batch_norm=False"),
        "'batch_norm'",
        "inception",
        "rethink_jax.network(",
    ),
    "unknown_axis": (
        _given("--config.sweep.sed=(0,)"),
        "--config.sweep.sed",
        "did you mean 'sweep.seed'?",
    ),
    "unknown_setting": (
        _given("--config.engine.lane=2"),
        "--config.engine.lane",
        "did you mean 'engine.lanes'?",
    ),
    "selection_of_nothing": (_given("--config.only=model.name=cnn"), "model.name=cnn", "mlp"),
    "selection_that_is_none": (_given("--config.only=cnn"), "'cnn'", "model.name=mlp"),
    "decay_of_nothing": (
        _given(
            "--config.trial.optimizer.weight_decay=0.1",
            "--config.trial.optimizer.decay_params=dense/.*",
        ),
        "'dense/.*'",
        "Dense_0/kernel",
    ),
    "word_for_int": (_given("--config.trial.batch_size=abc"), "trial.batch_size", "'abc'"),
    "word_for_float": (_given("--config.trial.optimizer.momentum=big"), "momentum", "'big'"),
    "word_for_bool": (_given("--config.trial.stop.when_fitted=maybe"), "when_fitted", "maybe"),
    "number_for_section": (_given("--config.trial.optimizer=3"), "trial.optimizer", "3"),
    # values of fields
    "negative_batch": (_given("--config.trial.batch_size=-8"), "batch_size is -8", "at least 1"),
    "batch_above_data": (
        _given("--config.trial.batch_size=129"),
        "batch_size is 129",
        "128 training images",
        "--config.trial.batch_size",
    ),
    "subset_above_data": (_given("--config.trial.data.num_train=9999"), "9999", "1442"),
    "prob_above_one": (_given("--config.trial.corruption.label_prob=1.5"), "1.5", "from 0 to 1"),
    "prob_nan": (_given("--config.trial.corruption.label_prob=nan"), "nan", "from 0 to 1"),
    "unknown_data": (_given("--config.trial.data.name=digit"), "did you mean 'digits'?"),
    "crop_above_image": (
        _given("--config.trial.preprocess.crop_size=9"),
        "crop_size is 9",
        "8x8",
        "--config.trial.preprocess.crop_size",
    ),
    "unknown_model": (_given("--config.trial.model.name=mpl"), "did you mean 'mlp'?"),
    "zero_width": (_given("--config.trial.model.hidden=(0,)"), "model.hidden", "at least 1"),
    "axis_of_wrong_type": (_given("--config.sweep.seed=(0,'a')"), "seed is 'a'", "an integer"),
    "axis_of_bad_value": (
        _given("--config.sweep.optimizer.learning_rate=(0.1,-1.0)"),
        "optimizer.learning_rate is -1",
        "at least 0",
    ),
    # what is outside of the config
    "data_missing": (
        [CIFAR, WORKDIR, "--config.data_files.dir={tmp}/no_data"],
        "no cifar10 in {tmp}/no_data",
        "--config.data_files.dir",
        "--config.data_files.download",
    ),
    "too_many_devices": (_given("--config.engine.devices=99"), "engine.devices is 99"),
    "workdir_is_a_file": ([QUICK, "--workdir={tmp}/a_file"], "cannot write", "{tmp}/a_file"),
    "workdir_below_a_file": ([QUICK, "--workdir={tmp}/a_file/x"], "cannot write", "{tmp}/a_file"),
}
OTHERS = {
    "nothing_wrong": _given("--plan", "--config.trial.model.hidden=(8,)"),
    "debug": _given("--debug", "--config.trial.batch_size=-8"),
    "debug_with_value": _given("--debug=true", "--config.trial.batch_size=-8"),
}


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def environment():
    # Nothing is compiled here that would be worth optimising, or keeping in the user's cache.
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("cli")
    for name, text in CONFIG_FILES.items():
        (tmp / f"{name}.py").write_text(text)
    (tmp / "no_data").mkdir()
    (tmp / "a_file").write_text("mine")
    return tmp


@pytest.fixture(scope="module")
def outcomes(folder):
    """How every command line of this file ended."""
    jobs = {name: args for name, (args, *_) in MISTAKES.items()} | OTHERS
    jobs = {n: [a.format(tmp=folder, name=n) for a in args] for n, args in jobs.items()}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, folder / "jobs.json", folder],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert driver.returncode == 0, driver.stderr
    return {
        name: Outcome(code, *((folder / f"{name}.{s}").read_text() for s in ("out", "err")))
        for name, code in json.loads(driver.stdout).items()
    }


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_line_and_exit_code_2(name, outcomes, folder):
    _, *words = MISTAKES[name]
    outcome = outcomes[name]
    assert "Traceback" not in outcome.err, outcome.err
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("error: ")
    # A newline that was escaped instead of taken out reads no better.
    assert "\\n" not in outcome.err, outcome.err
    for word in words:
        assert word.format(tmp=folder) in outcome.err
    assert outcome.code == cli.EXIT_USER


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_leaves_nothing_behind(name, outcomes, folder):
    assert not (folder / f"{name}.workdir").exists()
    assert (folder / "a_file").read_text() == "mine"
    assert list((folder / "no_data").iterdir()) == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_before_anything_is_announced(name, outcomes):
    assert outcomes[name].out == ""


def test_the_same_command_without_a_mistake_is_accepted(outcomes, folder):
    outcome = outcomes["nothing_wrong"]
    assert outcome.code == cli.EXIT_OK, outcome.err
    assert outcome.err == ""
    assert outcome.out.startswith("42 trials in 1 group")
    assert not (folder / "nothing_wrong.workdir").exists()


@pytest.mark.parametrize("name", ["debug", "debug_with_value"])
def test_debug_shows_the_traceback(name, outcomes):
    assert "Traceback (most recent call last)" in outcomes[name].err
    assert "batch_size is -8" in outcomes[name].err
    assert outcomes[name].code != cli.EXIT_OK


# One that ends while flags are parsed, and one that ends after everything was imported.
@pytest.mark.parametrize("name", ["config_with_syntax_error", "data_missing"])
def test_the_real_command_does_what_the_forked_one_does(name, outcomes, folder):
    args = [a.format(tmp=folder, name=name) for a in MISTAKES[name][0]]
    real = subprocess.run(
        [sys.executable, "-m", "launch.sweep", *args],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert Outcome(real.returncode, real.stdout, real.stderr) == outcomes[name]


def test_exit_codes_are_those_of_the_docstring():
    codes = {int(n) for n in re.findall(r"\b(\d+) [a-z]", cli.__doc__)}
    assert codes == {cli.EXIT_OK, cli.EXIT_USER, cli.EXIT_INTERRUPTED}
    assert (cli.EXIT_OK, cli.EXIT_USER, cli.EXIT_INTERRUPTED) == (0, 2, 75)


TRACEBACK = (
    'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\nKeyError: "k"\n'
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("only this"), "ValueError: only this"),
        (ValueError("\n  only this \n\n"), "ValueError: only this"),
        (
            ValueError(f"flag --config=x.py: parsing\n\n{TRACEBACK}"),
            'flag --config=x.py: parsing KeyError: "k"',
        ),
        (ValueError(TRACEBACK), 'KeyError: "k"'),
        (ValueError(f"flag --config=x.py: {TRACEBACK}"), 'flag --config=x.py: KeyError: "k"'),
        (AssertionError(), "AssertionError: no message"),
        (flags.Error("a flag's own words"), "a flag's own words"),
    ],
)
def test_one_line(error, line):
    assert cli._one_line(error) == line


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("trial.optimizer.learning_rat", "trial.optimizer.learning_rate"),
        ("sweep.corruption.label_probs", "sweep.corruption.label_prob"),
        ("engine.lane", "engine.lanes"),
    ],
)
def test_unknown_override_names_the_whole_field_and_the_nearest(override, near):
    right = "--config.trial.optimizer.momentum=0.5"
    message = cli._unknown_override(
        ["sweep", "--config=x.py", right, f"--config.{override}=1"],
        KeyError("x"),
        cli._fields_of_a_sweep(),
    )
    assert message.startswith(f"--config.{override}: ")
    assert f"did you mean {near!r}?" in message


def test_known_overrides_are_not_complained_of():
    # Then the config file itself is what failed.
    known = ["--config=x.py", "--config.sweep.union.a.seed=1", "--config.trial.model.hidden=3"]
    assert cli._unknown_override(["sweep", *known], KeyError("x"), cli._fields_of_a_sweep()) is None
