"""Measures along training: of every trial at its epochs, whatever lane, refill or restart."""

import csv
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_engine import group_run

import rethink_jax
from rethink_jax import inputs, measures, records, sweep, trials
from rethink_jax.data import preprocess, sources
from rethink_jax.engine import GroupRun
from rethink_jax.schema import UserError

EVERY = 3
# What the curve of a trial holds, too, measured by other code: column, and from a subject.
AS_IN_CURVE = {
    "train_loss": lambda s: s.loss,
    "train_accuracy": lambda s: (s.logits_NxY.argmax(-1) == s.labels_N).mean(),
    "param_norm": lambda s: optax.tree.norm(s.params),
    "distance_from_init": lambda s: optax.tree.norm(
        jax.tree.map(lambda a, b: a - b, s.params, s.initial_variables["params"])
    ),
}
DRAWN = {"drawn": lambda s: jax.random.normal(s.key)}
NAMES = ("margin_min", "log_product_frobenius")
ALL = (*NAMES, *AS_IN_CURVE, *DRAWN)


@pytest.fixture(scope="module", autouse=True)
def more_measures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measures.FAMILIES, "of the curve", AS_IN_CURVE)
        patch.setitem(measures.FAMILIES, "drawn", DRAWN)
        yield


@pytest.fixture
def make_config(small_trial):
    """Six trials of one group through two lanes: 7 epochs, fitted earlier, diverged."""

    def make(**changes):
        images = {
            "corruption": {"pixels": ("gaussian",)},
            "stop": {"max_epochs": (7,)},
        }
        axes = {
            "labels": {"seed": (0, 1), "corruption": {"label_prob": (0.0, 1.0)}},
            "images": images,
            "wild": {"optimizer": {"learning_rate": (1e30,)}},
        }
        return {
            "trial": small_trial(stop__max_epochs=7, stop__train_accuracy=0.3, data__num_train=48),
            "sweep": {"union": axes},
            "engine": {"devices": 1, "lanes": 2, "epochs_per_dispatch": 2},
            "measure": {"every_epochs": EVERY, "names": ALL},
        } | changes

    return make


def run(some_config, workdir):
    return sweep.run(sweep.Sweep(some_config), Path(workdir), ["test"])


def table_of(workdir, trial_id):
    """{(epoch, measure): value}, each there once; {} if nothing was measured."""
    path = records.Workdir(workdir).trial_dir(trial_id) / "measures.csv"
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(int(r["epoch"]), r["measure"]): float(r["value"]) for r in rows}
    assert len(found) == len(rows)
    return found


def texts(workdir):
    """The tables as they are, by trial."""
    return {p.parent.name: p.read_text() for p in Path(workdir).glob("trials/*/measures.csv")}


def assert_same_training(workdir, other):
    """Equal results, curves and networks, bit by bit."""
    finished = records.Workdir(workdir).finished()
    assert finished == records.Workdir(other).finished()
    for trial_id, result in finished.items():
        folders = [records.Workdir(w).trial_dir(trial_id) for w in (workdir, other)]
        assert len({(folder / "curve.csv").read_text() for folder in folders}) == 1
        if result["status"] != "diverged":
            networks = [rethink_jax.load_trial(w, trial_id).variables for w in (workdir, other)]
            jax.tree.map(np.testing.assert_array_equal, *networks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("along")


@pytest.fixture
def whole(make_config, folder):
    """A workdir of an uninterrupted sweep that measures along training."""
    if not (folder / "whole").exists():
        assert run(make_config(), folder / "whole") == 0
    return folder / "whole"


@pytest.fixture
def without(make_config, folder):
    """The same sweep, which does not measure."""
    if not (folder / "without").exists():
        assert run(make_config(measure={"every_epochs": 0}), folder / "without") == 0
    return folder / "without"


def test_every_trial_is_measured_at_its_epochs(whole):
    """At the multiples of k and after its last epoch; not once it has diverged."""
    ends = []
    for trial_id, result in records.Workdir(whole).finished().items():
        ends.append((result["status"], result["epochs"]))
        epochs = {e for e in range(1, 8) if e % EVERY == 0 and e <= result["epochs"]}
        if result["status"] == "diverged":
            epochs -= {result["epochs"]}
        else:
            epochs |= {result["epochs"]}
        assert set(table_of(whole, trial_id)) == {(e, name) for e in epochs for name in ALL}
    # The sweep has trials that end in every way, also between two multiples and at one.
    assert {"diverged", "finished", "fitted"} == {status for status, _ in ends}
    assert {end % EVERY == 0 for status, end in ends if status != "diverged"} == {True, False}


def test_the_numbers_are_those_of_the_curve(whole):
    """Of the right trial, weights, images and labels: what evaluation finds after that epoch."""
    curves = rethink_jax.load_results(whole).curves.set_index(["trial_id", "epoch"])
    compared = 0
    for trial_id in records.Workdir(whole).finished():
        for (epoch, name), value in table_of(whole, trial_id).items():
            if name in AS_IN_CURVE:
                # The same float32 sums in another order.
                expected = curves.loc[(trial_id, epoch), name]
                assert value == pytest.approx(expected, rel=1e-5), (trial_id, epoch, name)
                compared += 1
    assert compared > 30


def test_after_the_last_epoch_they_are_those_of_the_stored_network(whole):
    """Of two networks whose images are as they are stored."""
    digits = sources.load("digits", None, False)
    kept = [
        r for r in records.Workdir(whole).finished().values()
        if r["status"] != "diverged" and r["trial"]["corruption"]["pixels"] == "none"
    ]  # fmt: skip
    assert len(kept) > 1
    for result in kept[:2]:
        trial = trials.resolve(result["trial"])
        dataset = inputs.trial_dataset(digits, dict(trial.static))
        images = preprocess.NORMALIZE[trial["preprocess.normalize"]](
            dataset.train_images / np.float32(255)
        )
        labels = inputs.trial_labels(trial, dataset)[0]
        loaded = rethink_jax.load_trial(whole, trial.trial_id)
        own = loaded.model, loaded.variables, images, labels, loaded.initial_variables
        found = table_of(whole, trial.trial_id)
        for name, value in measures.compute(*own, NAMES).items():
            # Other programs: float32 rounding, of a margin a difference of logits of order 1.
            assert found[result["epochs"], name] == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_what_draws_has_a_key_of_its_own_for_each_seed_and_epoch(whole):
    drawn = {}
    for trial_id, result in records.Workdir(whole).finished().items():
        for (epoch, name), value in table_of(whole, trial_id).items():
            if name == "drawn":
                drawn.setdefault((result["trial"]["seed"], epoch), set()).add(value)
    assert len(drawn) > 3
    assert all(len(values) == 1 for values in drawn.values())
    assert len(set().union(*drawn.values())) == len(drawn)


def test_training_does_not_notice(whole, without):
    """The bits of results, curves and networks are those of a sweep that measures nothing."""
    assert_same_training(whole, without)
    assert texts(whole)
    assert not texts(without)


@pytest.mark.parametrize("epochs", [1, 64])
def test_length_of_a_dispatch_changes_nothing(make_config, whole, tmp_path, epochs):
    some = make_config(engine={"devices": 1, "lanes": 2, "epochs_per_dispatch": epochs})
    assert run(some, tmp_path) == 0
    assert texts(tmp_path) == texts(whole)


def test_lanes_change_no_number(make_config, whole, tmp_path):
    """By vmap on two devices, at last compacted to one lane on each."""
    engine = {"batching": "vmap", "devices": 2, "lanes": 4, "epochs_per_dispatch": 2}
    assert run(make_config(engine=engine), tmp_path) == 0
    for trial_id in records.Workdir(whole).finished():
        ours, theirs = table_of(tmp_path, trial_id), table_of(whole, trial_id)
        assert set(ours) == set(theirs)
        for key, value in ours.items():
            # As for results of training: rounding, which a few steps keep small.
            assert value == pytest.approx(theirs[key], rel=2e-4, abs=2e-5), key


def interrupt_after(patch, steps):
    """Sends this process SIGINT, as Ctrl-C does, after a number of dispatches."""
    original, count = GroupRun.step, [0]

    def step(self):
        count[0] += 1
        if count[0] == steps:
            os.kill(os.getpid(), signal.SIGINT)
        original(self)

    patch.setattr(GroupRun, "step", step)


def test_interrupted_and_resumed_is_uninterrupted(make_config, whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 5)
        assert run(make_config(), tmp_path) == 75
    assert run(make_config(), tmp_path) == 0
    assert texts(tmp_path) == texts(whole)
    assert_same_training(tmp_path, whole)


@pytest.mark.parametrize("lanes", [2, 1])
def test_resumed_from_any_checkpoint_is_uninterrupted(make_config, whole, lanes):
    """Also from one made before what had just been measured was read, and by fewer lanes."""
    (group,) = trials.group(trials.expand(make_config()))
    changes = {"measure.every_epochs": EVERY, "measure.names": ALL, "engine.epochs_per_dispatch": 2}
    programs, unread, expected = {}, 0, {}
    for stop_after in range(10):
        done = {}

        def begun(waiting, restored=None, lanes=2, done=done):
            finish = lambda f: done.update({f.trial: jax.device_get(f.measured)})  # noqa: E731
            run = group_run(group, finish, lanes=lanes, **changes)
            run._made = programs  # Compiled once for all of these runs.
            run.begin(waiting, restored)
            return run

        run = begun(group.trials)
        for _ in range(stop_after):
            run.step()
        if stop_after:
            saved, meta = jax.device_get(run.checkpoint())
            stored = json.loads(json.dumps(meta))
            run = begun([t for t in group.trials if t not in done], (saved, stored), lanes)
            unread += run._pending is not None
        while run.busy:
            run.step()
        expected = expected or done
        assert done == expected
    assert {t.trial_id for t, rows in expected.items() if rows} == set(texts(whole))
    assert unread > 0, "no checkpoint lay at an epoch at which a trial had just been measured"


def test_the_setting_may_change_between_runs(make_config, whole, without, tmp_path):
    """What was measured before stays; the bits of training are the same."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        assert run(make_config(), tmp_path) == 75
    assert run(make_config(measure={"every_epochs": 0}), tmp_path) == 0
    assert_same_training(tmp_path, without)
    found, all_rows = texts(tmp_path), texts(whole)
    assert len(found) > 0
    assert all(all_rows[trial_id].startswith(text) for trial_id, text in found.items())
    assert found != all_rows


def test_padded_networks_are_measured_as_their_own(make_config, tmp_path, monkeypatch):
    """Two widths in one program, of which one has a measure that the other has not."""

    def only_narrow(subject):
        if subject.params["Dense_1"]["kernel"].shape[0] > 6:
            raise UserError("too wide")
        return jnp.float32(1)

    def sizes(subject):
        return sum(a.size for a in jax.tree.leaves((subject.params, subject.initial_variables)))

    own = {"sizes": sizes, "only_narrow": only_narrow}
    monkeypatch.setitem(measures.FAMILIES, "own", own)
    some = make_config(sweep={"seed": (0, 1), "model": {"hidden": ((5,), (8,))}})
    some["engine"]["pad_widths"] = "on"
    some["measure"] = {"every_epochs": EVERY, "names": (*AS_IN_CURVE, "own")}
    padded = sweep.Sweep(some)
    assert sweep.run(padded, tmp_path, ["test"]) == 0
    assert len(padded.groups) == 1
    curves = rethink_jax.load_results(tmp_path).curves.set_index(["trial_id", "epoch"])
    assert len(texts(tmp_path)) == 4
    for trial_id, result in records.Workdir(tmp_path).finished().items():
        rows = table_of(tmp_path, trial_id)
        narrow = result["trial"]["model"]["hidden"] == [5]
        assert {name for _, name in rows} == {*AS_IN_CURVE, "sizes", *["only_narrow"] * narrow}
        for (epoch, name), value in rows.items():
            if name in AS_IN_CURVE:
                assert value == pytest.approx(curves.loc[(trial_id, epoch), name], rel=1e-5)
            elif name == "sizes":
                assert value == 2 * result["num_params"]


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ({"every_epochs": 2, "names": ("margin_mim",)}, "did you mean 'margin_min'"),
        ({"every_epochs": 0, "names": ("margin_mim",)}, "no measure 'margin_mim'"),
        ({"every_epochs": 2, "names": ()}, "measure.names is empty"),
        ({"every_epochs": -1}, "measure.every_epochs is -1.*at least 0"),
        ({"every_epochs": 2, "names": "margins"}, "measure.names is 'margins'.*a tuple"),
    ],
)
def test_mistakes_are_one_line(make_config, measure, message):
    with pytest.raises(UserError, match=message) as error:
        sweep.Sweep(make_config(measure=measure))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [("margins", "norms"), ("margins, norms",), ("norms,margins,",)])
def test_names_also_as_the_command_line_gives_them(make_config, names):
    (plan,) = sweep.Sweep(make_config(measure={"every_epochs": 2, "names": names})).along.values()
    assert plan.names == (*measures.FAMILIES["margins"], *measures.FAMILIES["norms"])


@pytest.fixture
def refusing(monkeypatch):
    def refuse(subject):
        raise UserError("no such thing for this network")

    (family,) = (own for own in measures.FAMILIES.values() if "param_norm" in own)
    monkeypatch.setitem(family, "param_norm", refuse)


def test_what_cannot_be_measured_is_refused_by_its_name(refusing, make_config):
    some = make_config(measure={"every_epochs": 2, "names": ("of the curve", "param_norm")})
    with pytest.raises(UserError, match=r"param_norm: no such thing.*network mlp, data digits"):
        sweep.Sweep(some)


def test_what_cannot_be_measured_of_a_family_is_said_and_left_out(
    refusing, make_config, tmp_path, capsys
):
    """And a trial that diverges where it would be measured has no measures."""
    some = make_config(measure={"every_epochs": 1, "names": ("of the curve",)})
    some["sweep"] = {"optimizer": {"learning_rate": (0.1, 1e30)}}
    assert run(some, tmp_path) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "param_norm" in line]
    assert len(said) == 1
    assert "is not measured along training of group" in said[0]
    assert "no such thing for this network" in said[0]
    (trial_id,) = texts(tmp_path)
    assert {name for _, name in table_of(tmp_path, trial_id)} == {*AS_IN_CURVE} - {"param_norm"}


def test_streamed_images_are_refused(make_config, write_image_folder, tmp_path):
    some = make_config(sweep={})
    folder = write_image_folder(tmp_path / "images")
    some["trial"]["data"] = {"name": f"folder:{folder}", "image_size": 8}
    some["trial"]["stop"]["measured_on"] = "online"
    with pytest.raises(UserError, match=r"streamed from disk.*measure.every_epochs=0"):
        sweep.Sweep(some)
    some["measure"]["every_epochs"] = 0
    sweep.Sweep(some)


# --- what users get -------------------------------------------------------------------------------


def test_the_tables_are_loaded_as_one_frame(whole, without):
    found = rethink_jax.load_measures_along(whole)
    assert list(found.columns) == ["trial_id", "epoch", "measure", "value"]
    assert not found.duplicated(["trial_id", "epoch", "measure"]).any()
    for trial_id, rows in found.groupby("trial_id"):
        keys = zip(rows["epoch"], rows["measure"], strict=True)
        loaded = dict(zip(keys, rows["value"], strict=True))
        assert loaded == {k: np.float32(v) for k, v in table_of(whole, trial_id).items()}
    none = rethink_jax.load_measures_along(without)
    assert (list(none.columns), len(none)) == (list(found.columns), 0)


def test_values_that_are_not_finite_come_back(make_config, tmp_path):
    workdir = records.Workdir(tmp_path)
    workdir.create()
    workdir.trial_dir("t").mkdir()
    values = {"a": np.float32(np.inf), "b": np.float32(-np.inf), "c": np.float32(0.1)}
    workdir.write_measures("t", {10: values, 2: values})
    found = table_of(tmp_path, "t")
    assert list(found) == [(e, name) for e in (2, 10) for name in values]
    assert [np.float32(found[10, name]) for name in values] == list(values.values())
