"""Networks of several widths in one program: the same training, chosen by cost, and kept.

Most tests run one padded program on one device with two lanes, so that it is compiled once.
"""

import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_engine import DIGITS, count_compilations, group_run
from test_sweep import interrupt_after

import rethink_jax
from rethink_jax import (
    config,
    history,
    inputs,
    models,
    optimizers,
    padding,
    records,
    sweep,
    train,
    widths,
)
from rethink_jax import trials as trials_lib
from rethink_jax.schema import UserError, model_field

# A network of every kind that may be padded, and one that has room for it.
WIDER = {"mlp": ({"hidden": (4, 5)}, {"hidden": (7, 9)})}


def spec_of(trial):
    return inputs.make_spec([trial], inputs.trial_dataset(DIGITS, dict(trial.static)), 1)


def padded_group(some, to):
    (group,) = trials_lib.group(some, lambda _: to)
    return group


def run_padded(group, **changes):
    """{trial: its final state, cropped to its own network} of one group."""
    done = {}
    run = group_run(group, lambda f: done.update({f.trial: f.fetch()}), **changes)
    run.begin(group.trials)
    while run.busy:
        run.step()
    return done


def same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- padding is exact -----------------------------------------------------------------------------


def test_every_network_with_widths_is_tested_here():
    assert set(WIDER) == {name for name in models.MODELS if models.widths(name)}


@pytest.mark.parametrize("optimizer", sorted(optimizers.KEEP_ZEROS))
@pytest.mark.parametrize("name", WIDER)
def test_zeros_stay_zeros_and_the_rest_is_as_without_them(small_trial, name, optimizer):
    """In float64, where the order of sums is no excuse; momentum, decay, biases that are not 0."""
    common = {"name": name, "bias_init": 0.1}
    changes = {
        "optimizer": {
            "name": optimizer, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01,
        },
        "regularizer": {"label_smoothing": 0.1, "input_dropout": 0.2},
        "corruption__label_prob": 0.3,
    }  # fmt: skip
    own, wide = (
        trials_lib.resolve(small_trial(model=common | fields, **changes)) for fields in WIDER[name]
    )
    dataset = inputs.trial_dataset(DIGITS, dict(own.static))
    networks = padding.OwnNetworks(spec_of(wide))
    not_padded = padding.OwnNetworks(spec_of(own))
    with jax.enable_x64(True):
        alone = epochs(spec_of(own), own, dataset, not_padded.first(own))
        padded = epochs(spec_of(wide), own, dataset, networks.first(own))
    assert padded.params["Dense_0"]["kernel"].dtype == np.float64
    cropped = networks.crop(own, padded)
    assert jax.tree.map(np.shape, cropped) == jax.tree.map(np.shape, alone)
    same(cropped, alone, rtol=1e-12, atol=1e-13)
    for a, b in zip(jax.tree.leaves(padded), jax.tree.leaves(cropped), strict=True):
        assert np.count_nonzero(a) == np.count_nonzero(b)
    # It did train, all of it: what stays at 0 is the padding alone.
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(cropped.params["Dense_1"]))


def epochs(spec, trial, dataset, variables):
    """The state after three epochs from the given variables, all in float64."""
    ones = np.ones((1, 64))
    images = train.Images(*map(jnp.asarray, (dataset.train_images[None], ones, 0 * ones)))
    labels = inputs.trial_labels(trial, dataset)
    labels = map(jnp.asarray, labels)
    own = train.Inputs(inputs.trial_hypers(trial), *labels, np.int32(0), variables)
    in_float64 = lambda a: np.asarray(a, np.float64)  # noqa: E731
    state = train.init_trial(spec, own)
    state = state._replace(
        params=jax.tree.map(in_float64, state.params),
        opt_state=jax.tree.map(in_float64, state.opt_state),
    )
    step = jax.jit(lambda s: train.train_epoch(spec, train.Data(images, images, None), own, s)[0])
    for _ in range(3):
        state = step(state)
    return jax.device_get(state)


def test_first_weights_are_those_of_the_own_width(small_trial):
    own, wide = (
        trials_lib.resolve(small_trial(model={"name": "mlp", "hidden": h, "bias_init": 0.1}))
        for h in ((5, 3), (8, 8))
    )
    networks = padding.OwnNetworks(spec_of(wide))
    first = networks.first(own)["params"]
    alone = optimized(lambda: train.init_variables(spec_of(own), own["seed"]))["params"]
    for layer, rows, columns in (("Dense_0", 64, 5), ("Dense_1", 5, 3), ("Dense_2", 3, 10)):
        np.testing.assert_array_equal(
            first[layer]["kernel"][:rows, :columns], alone[layer]["kernel"]
        )
        np.testing.assert_array_equal(first[layer]["bias"][:columns], alone[layer]["bias"])
        for kind in ("kernel", "bias"):  # And nothing else.
            found = first[layer][kind]
            assert np.count_nonzero(found) == np.count_nonzero(alone[layer][kind])


def optimized(fn):
    """What a function gives as it is compiled outside of tests."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        return jax.jit(fn)()
    finally:
        jax.config.update("jax_disable_most_optimizations", True)  # As in conftest.


# --- in the lanes ---------------------------------------------------------------------------------

TO = {"model.hidden": (8,)}


@pytest.fixture
def several(small_trial):
    """Widths 3 and 8, in trials of very different length and fate; the last one diverges."""
    changes = [
        dict(model__hidden=(3,), seed=1, stop__train_accuracy=0.0),
        dict(model__hidden=(8,), seed=2, corruption__label_prob=0.5),
        dict(model__hidden=(3,), seed=3, optimizer__weight_decay=0.1),
        dict(model__hidden=(3,), seed=4, optimizer__learning_rate=1e30),
        dict(model__hidden=(8,), seed=5),
    ]
    return [trials_lib.resolve(small_trial(**c)) for c in changes]


@pytest.fixture(scope="module")
def alone():
    return {}


@pytest.mark.parametrize(("batching", "lanes"), [("map", 2), ("vmap", 3)])
def test_padded_training_is_the_own_training(several, batching, lanes, alone):
    """All of the state, refilled and among neighbours of other widths: law 2, but for rounding."""
    if not alone:
        for group in trials_lib.group(several):
            alone |= run_padded(group)
    together = run_padded(padded_group(several, TO), batching=batching, lanes=lanes)
    assert set(together) == set(several)
    ends = set()
    for trial, state in together.items():
        own = alone[trial]
        assert state[3:6] == own[3:6], trial  # epoch, status and epoch of the fit
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, own)
        ends.add(int(state.status))
        if state.status != train.DIVERGED:
            same(state, own, rtol=2e-4, atol=2e-5)  # as in test_engine
    assert ends == {train.FITTED, train.FINISHED, train.DIVERGED}


def test_neighbours_of_other_widths_change_no_bit(several):
    fast, wide, slow, diverging, _ = several
    first = run_padded(padded_group([slow, fast, fast_too(fast)], TO), batching="vmap", lanes=3)
    second = run_padded(padded_group([slow, wide, diverging], TO), batching="vmap", lanes=3)
    same_bits(first[slow], second[slow])


def fast_too(trial):
    return trials_lib.Trial(tuple(sorted((dict(trial.fields) | {"seed": 9}).items())))


def test_one_program_and_none_on_the_way(several, monkeypatch):
    """Two widths compile as much as one; and a refill compiles nothing, no first weights either."""
    compiled = count_compilations(monkeypatch)
    drawn, compile_ = [], padding.OwnNetworks.compile

    def noting(self, some):
        before = len(self._draw)
        compile_(self, some)
        drawn.append(len(self._draw) - before)

    monkeypatch.setattr(padding.OwnNetworks, "compile", noting)
    run = group_run(padded_group(several, TO))
    run.begin(several)
    assert sum(drawn) == 2
    while run.busy:
        run.step()
    assert sum(drawn) == 2
    assert sorted(name for name, _ in compiled) == ["advance", "start"]


def test_stopped_in_the_middle_goes_on_bitwise(several):
    group = padded_group(several, TO)
    whole, done = run_padded(group), {}
    finish = lambda f: done.update({f.trial: f.fetch()})  # noqa: E731
    run = group_run(group, finish)
    run.begin(group.trials)
    for _ in range(2):
        run.step()
    state, meta = run.checkpoint()
    again = group_run(group, finish)
    again.begin([t for t in group.trials if t not in done], (jax.device_get(state), meta))
    assert any(again.epochs_of.values())
    while again.busy:
        again.step()
    assert len(done) == len(several)
    for trial in several:
        same_bits(done[trial], whole[trial])


def test_groups_of_padded_networks(several):
    plain = trials_lib.group(several)
    group = padded_group(several, TO)
    assert group.static["model.hidden"] == (8,)
    assert group.group_id not in {g.group_id for g in plain}
    # Not mixed with what is not padded, even where its network is the very same.
    wide = several[1]
    groups = trials_lib.group(several, lambda t: {} if t == wide else TO)
    assert [len(g.trials) for g in groups] == [4, 1]
    assert len({g.group_id for g in groups}) == 2


# --- which are padded -----------------------------------------------------------------------------


def settings(**changes):
    return config.settings({}) | {f"engine.{k}": v for k, v in changes.items()}


def choose(some, kept=None, **changes):
    dataset_of = lambda t: inputs.trial_dataset(DIGITS, dict(t.static))  # noqa: E731
    return widths.choose(some, dataset_of, settings(**changes), kept or {})


def sized(small_trial, *hidden, **changes):
    return [
        trials_lib.resolve(small_trial(model={"name": "mlp", "hidden": h}, **changes))
        for h in hidden
    ]


def to_of(some, choice):
    return [widths.padded_to(t, choice).get("model.hidden") for t in some]


def test_families_are_padded_apart(small_trial):
    """Other depths, other static fields and other networks are no matter of width."""
    some = [
        *sized(small_trial, (3,), (8,), (4, 4), (6, 2), (9, 9)),
        *sized(small_trial, (5,), (6,), batch_size=8),
        trials_lib.resolve(small_trial(model={"name": "sequential", "layers": ("flatten",)})),
    ]
    expected = [(8,), (8,), (9, 9), (9, 9), (9, 9), (6,), (6,), None]
    assert to_of(some, choose(some, pad_widths="on")) == expected
    assert to_of(some, choose(some, pad_widths="off")) == [None] * len(some)


@pytest.mark.parametrize(
    "changes",
    [{"regularizer": {"dropout": 0.5}}, {"compute_dtype": "bfloat16"}],
    ids=["dropout", "bfloat16"],
)
def test_where_it_is_not_exact_it_is_not_done(small_trial, changes):
    some = sized(small_trial, (3,), (8,), **changes)
    assert to_of(some, choose(some, pad_widths="on")) == [None, None]


def test_dropout_is_a_matter_of_each_trial(small_trial):
    """The rate is traced, so trials with and without it have the same static fields."""
    some = sized(small_trial, (3,), (8,))
    wet = sized(small_trial, (3,), (8,), regularizer={"dropout": 0.5})
    choice = choose(some + wet, pad_widths="on")
    assert to_of(some + wet, choice) == [(8,), (8,), None, None]
    groups = trials_lib.group(some + wet, lambda t: widths.padded_to(t, choice))
    assert [len(g.trials) for g in groups] == [2, 1, 1]


def test_optimizers_that_move_zeros_are_not_padded(small_trial, monkeypatch):
    monkeypatch.setattr(optimizers, "KEEP_ZEROS", set())
    some = sized(small_trial, (3,), (8,))
    assert to_of(some, choose(some, pad_widths="on")) == [None, None]


def test_what_was_chosen_holds(small_trial):
    """Only what is new is chosen, whatever the setting says now."""
    some = sized(small_trial, (3,), (8,))
    kept = json.loads(json.dumps(choose(some, pad_widths="on")))
    assert kept == {t.static_id: {"model.hidden": [8]} for t in some}
    more = sized(small_trial, (3,), (4,), (8,), (20,))
    assert to_of(more, choose(more, kept, pad_widths="off")) == [(8,), None, (8,), None]
    assert to_of(more, choose(more, kept, pad_widths="on")) == [(8,), (20,), (8,), (20,)]
    # Also that a width has a program of its own: its checkpoints are of this shape.
    alone = choose(some[:1], pad_widths="on")
    assert alone == {some[0].static_id: {}}
    assert to_of(more, choose(more, alone, pad_widths="on")) == [None, (20,), (20,), (20,)]


def test_seeds_do_not_split_widths(small_trial):
    some = [t for seed in (0, 1) for t in sized(small_trial, (3,), (8,), seed=seed)]
    assert to_of(some, choose(some, pad_widths="on")) == [(8,)] * 4


# --- by cost --------------------------------------------------------------------------------------


def test_short_training_is_padded_and_long_training_is_not(small_trial):
    hidden = (8,), (16,), (32,), (64,)
    short = sized(small_trial, *hidden, stop__max_epochs=5)
    assert to_of(short, choose(short, devices=1)) == [(64,)] * 4
    long = sized(small_trial, *hidden, stop__max_epochs=10**7)
    assert to_of(long, choose(long, devices=1)) == [None] * 4
    # Of four groups with one trial each, three devices would be idle.
    assert to_of(long, choose(long, devices=4)) == [(64,)] * 4


def test_a_much_wider_network_stays_alone(small_trial):
    """Eight thousand units are too dear for what eight need; up to 64 share a program."""
    hidden = (8,), (16,), (64,), (8192,)
    some = sized(small_trial, *hidden, stop__max_epochs=1000)
    assert to_of(some, choose(some, devices=1)) == [(64,), (64,), (64,), None]


def width(small_trial, hidden, count=1, flops=0.0):
    (trial,) = sized(small_trial, hidden)
    return widths.Width(trial, count, flops)


def test_the_cheapest_classes_are_found(small_trial):
    """Against all ways to split five widths."""
    rng = np.random.default_rng(0)
    some = [width(small_trial, (w,), flops=w) for w in (8, 2, 5, 3, 1)]
    order = sorted(some, key=lambda w: w.flops)
    for compiling in (0.1, 2.0, 7.0, 30.0):
        counts = rng.integers(1, 5, 5)
        some = [w._replace(count=int(c)) for w, c in zip(order, counts, strict=True)]

        def cost(together, compiling=compiling):
            return compiling + sum(w.count for w in together) * together[-1].flops

        ways = []
        for cuts in itertools.product((False, True), repeat=4):
            classes = [[some[0]]]
            for cut, w in zip(cuts, some[1:], strict=True):
                classes = [*classes, [w]] if cut else [*classes[:-1], [*classes[-1], w]]
            ways.append(sum(map(cost, classes)))
        found = widths.partition(some[::-1], cost)
        assert [w for together in found for w in together] == some
        assert sum(map(cost, found)) == pytest.approx(min(ways))


def test_a_network_is_padded_only_to_one_that_holds_it(small_trial):
    some = [width(small_trial, h, flops=i) for i, h in enumerate([(2, 8), (8, 2), (8, 8), (9, 7)])]
    found = widths.partition(some, lambda _: 1.0)
    assert [[w.trial["model.hidden"] for w in c] for c in found] == [
        [(2, 8), (8, 2), (8, 8)], [(9, 7)],
    ]  # fmt: skip


def test_seconds_of_a_program(small_trial):
    """Compiling, and rounds over the devices; a second width costs its first weights more."""
    speed = widths._SPEEDS["cpu"]
    one = width(small_trial, (8,), count=3, flops=1e9)
    two = settings(devices=2)
    step = speed.step + widths._PASSES * 1e9 / speed.flops
    alone = widths.seconds([one], 100, two)
    assert alone == pytest.approx(speed.compiling + 2 * 100 * step)  # 3 trials on 2 devices
    both = widths.seconds([one._replace(count=1, flops=1.0), one], 100, two)
    assert both == pytest.approx(alone + 2 * speed.drawing)  # The fourth fills a gap.
    # Under vmap all lanes of a device take their step together.
    vmap = settings(devices=1, batching="vmap", lanes=3)
    step = speed.step + 3 * widths._PASSES * 1e9 / speed.flops
    assert widths.seconds([one], 100, vmap) == pytest.approx(speed.compiling + 100 * step)


# --- in a sweep -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept_config():
    def make(pad_widths="on", **changes):
        trial = {
            "batch_size": 16, "data": {"name": "digits", "num_train": 64},
            "model": {"name": "mlp", "hidden": (8,)}, "optimizer": {"learning_rate": 0.1},
            "stop": {"max_epochs": 4},
        }  # fmt: skip
        engine = {"devices": 1, "lanes": 2, "epochs_per_dispatch": 1, "pad_widths": pad_widths}
        axes = {"model": {"hidden": ((3,), (8,))}, "seed": (0, 1)}
        return {"trial": trial, "sweep": axes, "engine": engine} | changes

    return make


def run(given, workdir):
    code = sweep.run(sweep.Sweep(given), workdir, ["test"])
    return code, records.Workdir(workdir).header()


@pytest.fixture(scope="module")
def padded(swept_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("padded") / "w"
    with pytest.MonkeyPatch.context() as patch:
        compiled = count_compilations(patch)
        code, head = run(swept_config("on"), path)
    assert code == 0 and len(compiled) == 2 * len(head["runs"][0]["groups"]) == 2
    return path


def without_group(result):
    return {k: v for k, v in result.items() if k not in ("group_id", "final", "best")}


def test_a_padded_sweep_has_the_results_of_an_unpadded_one(
    swept_config, padded, tmp_path, monkeypatch
):
    compiled = count_compilations(monkeypatch)
    code, head = run(swept_config("off"), tmp_path / "off")
    assert code == 0 and len(compiled) == 2 * len(head["runs"][0]["groups"]) == 4
    found, off = (records.Workdir(p).finished() for p in (padded, tmp_path / "off"))
    assert off.keys() == found.keys()
    for trial_id, result in found.items():
        assert without_group(result) == without_group(off[trial_id])
        (units,) = result["trial"]["model"]["hidden"]
        assert result["num_params"] == 64 * units + units + 10 * units + 10
        for name, value in result["final"].items():
            assert value == pytest.approx(off[trial_id]["final"][name], rel=1e-5), name


def test_networks_are_stored_as_their_own(padded):
    for trial_id, result in records.Workdir(padded).finished().items():
        loaded = rethink_jax.load_trial(padded, trial_id)
        (units,) = result["trial"]["model"]["hidden"]
        for variables in (loaded.variables, loaded.initial_variables):
            assert variables["params"]["Dense_0"]["kernel"].shape == (64, units)
        before, after = loaded.initial_variables["params"], loaded.variables["params"]
        moved = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), before, after)
        distance = np.sqrt(sum(jax.tree.leaves(moved)))
        assert distance == pytest.approx(result["final"]["distance_from_init"], rel=1e-4)


def test_interrupted_and_resumed_is_uninterrupted(swept_config, padded, tmp_path, monkeypatch):
    """Also where the setting is another one then: the workdir keeps to its choice."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        code, head = run(swept_config("on"), tmp_path / "w")
    assert code == 75
    code, again = run(swept_config("off"), tmp_path / "w")
    assert code == 0 and again["widths"] == head["widths"]
    assert [*again["runs"][1]["groups"]] == [*head["runs"][0]["groups"]]
    whole, resumed = (records.Workdir(p) for p in (padded, tmp_path / "w"))
    assert resumed.finished() == whole.finished()
    for trial_id in whole.finished():
        paths = [w.trial_dir(trial_id) / "curve.csv" for w in (whole, resumed)]
        assert paths[0].read_text() == paths[1].read_text()
    assert not any((tmp_path / "w" / "groups").iterdir())


def test_a_selection_runs_as_the_whole_would(swept_config, padded, tmp_path):
    """The choice does not depend on `only`, nor on what is finished."""
    code, head = run(swept_config("on", only="model.hidden=3"), tmp_path / "w")
    assert code == 0 and len(head["widths"]) == 2
    whole = records.Workdir(padded).finished()
    assert records.Workdir(tmp_path / "w").finished() == {
        i: r for i, r in whole.items() if r["trial"]["model"]["hidden"] == [3]
    }


def test_the_plan_says_what_is_padded(swept_config, padded, tmp_path):
    text = "\n".join(sweep.plan(sweep.Sweep(swept_config("on")), None))
    assert "4 trials in 1 group, 0 done" in text
    assert "610 parameters each (model.hidden (3,), (8,) padded to (8,))" in text
    # As it was begun.
    text = "\n".join(sweep.plan(sweep.Sweep(swept_config("off")), padded))
    assert "4 trials in 1 group, 4 done" in text and "padded to (8,)" in text


# --- what a user may get wrong, or add ------------------------------------------------------------


def test_settings_are_checked(swept_config):
    with pytest.raises(UserError, match=r"engine.pad_widths is 'yes'; .*auto, on, off"):
        sweep.Sweep(swept_config("yes"))


class Narrow(nn.Module):
    """A user's own network whose width is one number."""

    num_classes: int
    units: int = model_field(4, "of the hidden layer", low=1)
    kind: str = model_field("relu", "no width")

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(nn.Dense(self.units)(images.reshape(len(images), -1)))
        return nn.Dense(self.num_classes)(x)


def test_a_users_network_says_by_itself(small_trial, monkeypatch):
    def some():
        given = [small_trial(model={"name": "narrow", "units": n}) for n in (4, 6)]
        return [trials_lib.resolve(t) for t in given]

    monkeypatch.setitem(models.MODELS, "narrow", Narrow)
    assert choose(some(), pad_widths="on") == {}
    monkeypatch.setattr(Narrow, "widths", ("units",), raising=False)
    four, six = some()
    choice = choose([four, six], pad_widths="on")
    assert [widths.padded_to(t, choice) for t in (four, six)] == [{"model.units": 6}] * 2
    first = padding.OwnNetworks(spec_of(six)).first(four)
    assert first["params"]["Dense_0"]["kernel"].shape == (64, 6)


@pytest.mark.parametrize("named", ["kind", "unit"])
def test_widths_that_are_none(monkeypatch, named):
    monkeypatch.setitem(models.MODELS, "narrow", Narrow)
    monkeypatch.setattr(Narrow, "widths", (named,), raising=False)
    with pytest.raises(UserError, match=rf"'narrow' names '{named}' in `widths`.*units, kind"):
        models.widths("narrow")


def test_a_file_that_was_deleted_leaves_a_gap(tmp_path):
    """As an error says to do with a damaged one; there are later ones."""
    kept = history.History(tmp_path)
    for number in range(3):
        kept.settle_widths(lambda found, n=number: found | {f"t{n}": {}})
    (tmp_path / "choices" / "widths.0001.json").unlink()
    kept.settle_widths(lambda found: {**found, "t3": {}})
    assert [p.name[7:11] for p in sorted((tmp_path / "choices").iterdir())] == [
        "0000", "0002", "0003",
    ]  # fmt: skip
