"""What a user who makes a mistake sees: one line that says what to change, and exit code 2."""

import re
from pathlib import Path

import commands
import pytest
from absl import flags

from rethink_jax import cli

ROOT = Path(__file__).parents[1]

QUICK = "--config=configs/quickstart.py:quick"


def test_a_command_without_a_mistake_is_accepted(tmp_path, monkeypatch):
    """Mistakes are in test_bad_input.py."""
    monkeypatch.chdir(ROOT)
    workdir = tmp_path / "new"
    outcome = commands.run(
        "sweep", QUICK, f"--workdir={workdir}", "--plan", "--config.trial.model.hidden=(8,)"
    )
    assert outcome.code == cli.EXIT_OK, outcome.err
    assert outcome.err == ""
    assert outcome.out.startswith("42 trials in 1 group")
    assert not workdir.exists()


def test_a_message_is_one_line_whatever_a_name_has_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    outcome = commands.run("report", f"--workdir={tmp_path}/two\nlines")
    assert outcome == (cli.EXIT_USER, "", outcome.err)
    assert len(outcome.err.splitlines()) == 1 and "two lines is not a workdir" in outcome.err


def test_exit_codes_are_those_of_the_docstring():
    codes = (cli.EXIT_OK, cli.EXIT_USER, cli.EXIT_FAILED, cli.EXIT_INTERRUPTED)
    assert codes == (0, 2, 3, 75)
    readme = (ROOT / "README.md").read_text()
    (told,) = re.findall(r"\*\*Exit codes\*\*(.*?)\. ", readme, re.DOTALL)
    for text in cli.__doc__, told:
        assert [int(n) for n in re.findall(r"\b(\d+) [a-z]", text)] == [*codes]


@pytest.mark.parametrize("command", ["sweep", "measure", "report", "theory", "status", "bench"])
def test_help_shows_what_every_command_has(command):
    outcome = commands.run(command, "--help")
    assert "--own:" in outcome.out and "--[no]debug:" in outcome.out


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
