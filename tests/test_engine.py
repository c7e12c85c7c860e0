"""The lanes: a trial's result is its own, whatever shares the program with it."""

import logging
import re

import jax
import numpy as np
import pytest

from rethink_jax import checkpoint, config, engine, inputs, train, trials
from rethink_jax.data import sources
from rethink_jax.schema import UserError

DIGITS = sources.digits()
# Batching, devices, lanes. The first is what the others are compared with.
LAYOUTS = [
    ("map", 1, 1),
    ("map", 1, 3),
    ("map", 2, 4),
    ("map", 4, 4),
    ("vmap", 1, 3),
    ("vmap", 2, 4),
]


_COLLECTIVES = re.compile(r"(?:all-[a-z]+|reduce-scatter|collective-[a-z]+)(?:-start)?\(")


def settings(batching="map", devices=1, lanes=2, **more):
    given = config.settings({})
    return (
        given
        | {
            "engine.batching": batching,
            "engine.devices": devices,
            "engine.lanes": lanes,
            "engine.epochs_per_dispatch": 1,
        }
        | more
    )


def resolve_all(*nested):
    return [trials.resolve(t) for t in nested]


def group_run(group, on_finished=lambda f: None, image_bytes=2**32, **changes):
    dataset = inputs.trial_dataset(DIGITS, group.static)
    return engine.GroupRun(group, dataset, settings(**changes), on_finished, image_bytes)


def run_all(some_trials, **changes):
    """Runs trials of one group; {trial: its final state}."""
    (group,) = trials.group(some_trials)
    done = {}

    def finish(finished):
        assert finished.trial not in done, "finished twice"
        done[finished.trial] = jax.device_get(finished.state)

    run = group_run(group, finish, **changes)
    run.begin(group.trials)
    while run.busy:
        run.step()
    assert set(done) == set(group.trials)
    return done


@pytest.fixture
def mixed(small_trial):
    """Eight trials of one group that differ in everything that is traced, and in their length."""
    return resolve_all(
        small_trial(seed=1),
        small_trial(seed=2, corruption__label_prob=1.0, optimizer__learning_rate=0.3),
        small_trial(seed=1, corruption__label_prob=0.5, optimizer__momentum=0.5),
        small_trial(seed=3, corruption__pixels="gaussian", optimizer__weight_decay=0.1),
        small_trial(seed=4, corruption__pixels="shuffled", stop__train_accuracy=0.3),
        small_trial(seed=5, optimizer__learning_rate=1e30),  # diverges
        small_trial(seed=6, stop__train_loss=2.2, optimizer__lr_decay=0.5),
        small_trial(seed=1, data__replaced=5),
    )


@pytest.fixture(scope="module")
def reference():
    return {}


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_result_depends_on_the_trial_alone(mixed, layout, reference):
    """Law 2: alone on one device, or among different neighbours, refilled, on any layout."""
    if not reference:
        for trial in mixed:
            batching, devices, lanes = LAYOUTS[0]
            reference |= run_all([trial], batching=batching, devices=devices, lanes=lanes)
    batching, devices, lanes = layout
    for trial, state in run_all(mixed, batching=batching, devices=devices, lanes=lanes).items():
        alone = reference[trial]
        assert (state.status, state.epoch, state.fit_epoch) == (
            alone.status,
            alone.epoch,
            alone.fit_epoch,
        )
        # The order of float32 sums may change between programs, nothing else: a few ulps, which
        # 16 steps of a stable trial keep small. After a divergence there is nothing to compare.
        if state.status != train.DIVERGED:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
                state,
                alone,
            )


@pytest.mark.parametrize("batching", ["map", "vmap"])
def test_convolutions_depend_on_the_trial_alone(small_trial, batching, reference):
    """Law 2 for what has rules of its own for lanes: convolution, pooling, batch norm, dropout."""
    layers = "conv 4 3", "batch_norm", "relu", "max_pool 3 2", "conv 3 3 2", "flatten", "dropout"
    model = {"name": "sequential", "layers": layers}
    same = dict(model=model, regularizer={"dropout": 0.2}, optimizer__learning_rate=0.02)
    some = resolve_all(*(small_trial(seed=s, stop__max_epochs=2, **same) for s in range(3)))
    if some[0] not in reference:
        reference |= run_all(some[:1], batching="map", devices=1, lanes=1)
    together = run_all(some, batching=batching, devices=2, lanes=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        together[some[0]],
        reference[some[0]],
    )


def test_trials_of_the_matrix_end_in_every_way(mixed):
    """What the test above compares covers fitted, finished and diverged trials."""
    statuses = {int(s.status) for s in run_all(mixed, devices=2, lanes=4).values()}
    assert statuses == {train.FITTED, train.FINISHED, train.DIVERGED}


def test_diverging_neighbour_is_not_noticed(small_trial):
    """A NaN lane changes no bit of the others, in the batching where they share every kernel."""
    good = resolve_all(small_trial(seed=1), small_trial(seed=2, corruption__label_prob=1.0))
    bad = resolve_all(small_trial(seed=3, optimizer__learning_rate=1e30))
    harmless = resolve_all(small_trial(seed=3))
    with_nan = run_all(good + bad, batching="vmap", lanes=3)
    without = run_all(good + harmless, batching="vmap", lanes=3)
    assert with_nan[bad[0]].status == train.DIVERGED
    for trial in good:
        jax.tree.map(np.testing.assert_array_equal, with_nan[trial], without[trial])


@pytest.mark.parametrize("epochs_per_dispatch", [2, 5, 64])
def test_length_of_a_dispatch_changes_nothing(mixed, epochs_per_dispatch):
    changes = {"engine.epochs_per_dispatch": epochs_per_dispatch}
    one, many = run_all(mixed, devices=2), run_all(mixed, devices=2, **changes)
    for trial in mixed:
        jax.tree.map(np.testing.assert_array_equal, one[trial], many[trial])


def test_data_order_and_corruption_are_bit_identical_under_vmap(small_trial):
    nested = small_trial(corruption__label_prob=0.5)
    trial, other = resolve_all(nested, small_trial(seed=9, corruption__label_prob=0.9))
    dataset = inputs.trial_dataset(DIGITS, dict(trial.static))
    spec = inputs.make_spec([trial], dataset, 1)
    alone = train.data_order(spec, trial["seed"], 3)
    seeds = np.array([other["seed"], trial["seed"], 17])
    together = jax.vmap(lambda s: train.data_order(spec, s, 3))(seeds)
    np.testing.assert_array_equal(together[1], alone)
    assert not np.array_equal(together[0], alone)
    np.testing.assert_array_equal(np.sort(alone, axis=None), np.arange(spec.num_train))


def test_a_collective_would_be_found():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("lanes",))
    spec = jax.sharding.PartitionSpec("lanes")
    total = jax.shard_map(
        lambda x: jax.lax.psum(x, "lanes"),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    assert _COLLECTIVES.findall(jax.jit(total).lower(np.ones(4)).compile().as_text())


@pytest.mark.parametrize("batching", ["vmap", "map"])
def test_no_collectives_between_lanes(mixed, batching):
    """Devices work on their own lanes only; a collective would make them wait for each other."""
    (group,) = trials.group(mixed)
    programs = group_run(group, batching=batching, devices=4, lanes=8).compile()
    for program in (programs.start, programs.advance):
        text = program.as_text()
        assert "while" in text or "call" in text  # It is the text of a program.
        assert not _COLLECTIVES.findall(text)


def test_refill_compiles_nothing(small_trial, caplog):
    """Ten trials through two lanes: after the first dispatches, no compilation is logged."""
    some = resolve_all(
        *[
            small_trial(seed=s, corruption__label_prob=0.1 * s, stop__max_epochs=2)
            for s in range(10)
        ]
    )
    (group,) = trials.group(some)
    done = []
    run = group_run(group, lambda f: done.append(jax.device_get(f.state)), lanes=2)
    run.begin(group.trials)
    while len(done) < 2:
        run.step()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        while run.busy:
            run.step()
    assert len(done) == 10
    assert "ompil" not in caplog.text


def test_compilations_are_what_the_test_above_would_see(caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        jax.jit(lambda x: x + 41)(np.ones(7)).block_until_ready()
    assert "ompil" in caplog.text


def count_compilations(monkeypatch):
    """What is compiled from now on: names of programs and for how many lanes."""
    seen, compiled = [], engine.LanePrograms.compiled

    def noting(self, fn, *args):
        seen.append((fn.__name__, self.layout.lanes))
        return compiled(self, fn, *args)

    monkeypatch.setattr(engine.LanePrograms, "compiled", noting)
    return seen


def test_idle_lanes_are_compacted_under_vmap(small_trial, monkeypatch):
    """One long trial among short ones ends in a program of one lane, with the same result."""
    short = [small_trial(seed=s, stop__train_accuracy=0.0) for s in range(7)]
    long = small_trial(seed=7, stop__max_epochs=4, corruption__label_prob=1.0)
    some = resolve_all(*short, long)
    (group,) = trials.group(some)
    lanes_seen = []
    run = group_run(group, batching="vmap", lanes=8)
    compiled = count_compilations(monkeypatch)
    run.fit()
    run.begin(group.trials)
    while run.busy:
        run.step()
        lanes_seen.append(run.layout.lanes)
    assert lanes_seen[0] == 8
    assert min(lanes_seen) == 1
    for name in ("start", "advance"):
        executables = [count for program, count in compiled if program == name]
        assert executables[0] == 8
        assert 2 <= len(executables) == len(set(executables)) <= 1 + 3  # log2(8) compactions
    done = run_all(some, batching="vmap", lanes=8)
    alone = run_all([some[-1]])
    np.testing.assert_allclose(
        done[some[-1]].curve, alone[some[-1]].curve, rtol=2e-4, atol=2e-5
    )  # as in the test of law 2


def test_devices_are_evened_out_under_map(small_trial):
    """With nothing waiting, the last trials are spread over the devices."""
    short = [
        small_trial(seed=s, stop__train_accuracy=0.0, corruption__label_prob=1.0) for s in (0, 2)
    ]
    long = [small_trial(seed=s, stop__max_epochs=4) for s in (5, 6)]
    (group,) = trials.group(resolve_all(*short, *long))
    run = group_run(group, devices=2, lanes=4)
    run.begin(group.trials)
    # Put the two long trials on one device, as chance may do.
    run.lanes, on_devices = list(run.lanes), []
    while run.busy:
        run.step()
        on_devices.append([run._busy_on(d) for d in range(2)])
    assert [1, 1] in on_devices
    assert [2, 0] not in on_devices
    assert [0, 2] not in on_devices


def test_more_image_versions_than_memory(small_trial):
    """With room for one version, trials wait for it, and their results are the same."""
    kinds = ("none", "shuffled", "random", "gaussian")
    some = resolve_all(*[small_trial(seed=s, corruption__pixels=k) for k in kinds for s in (1, 2)])
    plenty = run_all(some, devices=2, lanes=4)
    scarce = run_all(some, devices=2, lanes=4, image_bytes=1)
    for trial in some:
        jax.tree.map(np.testing.assert_array_equal, plenty[trial], scarce[trial])


def test_checkpoint_and_restore_are_bitwise_uninterrupted(mixed):
    """Stopped after every number of dispatches and begun anew from the checkpoint."""
    (group,) = trials.group(mixed)
    whole = run_all(mixed, devices=2, lanes=4)
    for stop_after in (1, 2, 5):
        done = {}

        def finish(finished, done=done):
            assert finished.trial not in done
            done[finished.trial] = jax.device_get(finished.state)

        run = group_run(group, finish, devices=2, lanes=4)
        run.begin(group.trials)
        for _ in range(stop_after):
            if run.busy:
                run.step()
        state, meta = jax.device_get(run.checkpoint()[0]), run.checkpoint()[1]
        again = group_run(group, finish, devices=2, lanes=4)
        again.begin([t for t in group.trials if t not in done], (state, meta))
        while again.busy:
            again.step()
        for trial in mixed:
            jax.tree.map(np.testing.assert_array_equal, done[trial], whole[trial])


@pytest.mark.parametrize("batching", ["map", "vmap"])
@pytest.mark.parametrize("stop_again_after", [None, 0, 1, 4])
def test_restore_onto_fewer_lanes(mixed, batching, stop_again_after):
    """A checkpoint of four lanes goes on with two: those that find none go on later."""
    (group,) = trials.group(mixed)
    whole = run_all(mixed, lanes=4, batching=batching)
    run = group_run(group, lanes=4, batching=batching)
    run.begin(group.trials)
    run.step()
    run.step()
    under_way = [t for t in run.lanes if t]
    saved, done = jax.device_get(run.checkpoint()[0]), {}
    restored = saved, run.checkpoint()[1]
    first = {t: int(e) for t, e in zip(run.lanes, saved.epoch, strict=True) if t}
    assert len(under_way) == 4 and sorted(first.values()) == [0, 2, 2, 2]  # One has diverged.
    begun = {}

    def finish(finished):
        assert finished.trial not in done
        done[finished.trial] = jax.device_get(finished.state)

    def go_on(restored, steps):
        left = [t for t in group.trials if t not in done]
        again = group_run(group, finish, lanes=2, batching=batching)
        again.begin(left, restored)
        while again.busy and steps != 0:
            for trial in again.lanes:
                if trial:
                    begun.setdefault(trial, int(again.epochs_of[trial]))
            again.step()
            steps = steps and steps - 1
        return jax.device_get(again.checkpoint()[0]), again.checkpoint()[1]

    if stop_again_after is not None:
        restored = go_on(restored, stop_again_after)
    go_on(restored, None)
    assert {t: begun[t] for t in under_way} == first
    for trial in mixed:
        if batching == "map":
            jax.tree.map(np.testing.assert_array_equal, done[trial], whole[trial])
        assert done[trial].epoch == whole[trial].epoch


def test_restore_of_several_checkpoints(mixed):
    """Each trial goes on where it got last, whoever had it; the place of others is not touched."""
    (group,) = trials.group(mixed)
    whole, found = run_all(mixed, lanes=4), []
    for some, steps in ((mixed[:3], 1), (mixed[2:], 2), (mixed[:2], 3)):
        run = group_run(group, lanes=4)
        run.begin(some)
        for _ in range(steps):
            run.step()
        found.append((jax.device_get(run.checkpoint()[0]), run.checkpoint()[1]))
    ids = {t.trial_id for t in mixed[:-1]}
    state, meta = checkpoint.latest(found[0], found[1:], ids)
    assert set(meta["lanes"]) == ids & {i for _, m in found for i in m["lanes"]}
    epochs = dict(zip(meta["lanes"], state.epoch, strict=True))
    assert epochs[mixed[0].trial_id] == epochs[mixed[1].trial_id] == found[2][0].epoch.max()
    assert epochs[mixed[2].trial_id] == found[1][0].epoch.max()
    done = {}
    again = group_run(group, lambda f: done.update({f.trial: jax.device_get(f.state)}), lanes=2)
    again.begin(mixed, (state, meta))
    while again.busy:
        again.step()
    for trial in mixed:
        jax.tree.map(np.testing.assert_array_equal, done[trial], whole[trial])


def test_the_own_checkpoint_is_taken_whole_if_others_have_nothing_newer():
    state = train.TrialState(*([np.array([3, 4])] * len(train.TrialState._fields)))
    own, older = (state, {"lanes": ["a", "b"]}), (state, {"lanes": ["b", "c"]})
    assert checkpoint.latest(own, [], {"a"}) is own
    assert checkpoint.latest(own, [(state, {"lanes": ["a"], "position": {}})], {"a"}) is own
    assert checkpoint.latest(own, [older], {"a"}) is own
    assert checkpoint.latest(None, [older], {"a"}) is None
    assert checkpoint.latest(own, [older], {"a", "b"})[1]["lanes"] == ["a", "b"]
    assert checkpoint.latest(own, [older], {"c"})[0].epoch == [4]


def test_too_many_devices_is_a_user_error(mixed):
    with pytest.raises(UserError, match=r"engine.devices is 99; there are 4.*--config.engine"):
        engine.choose_layout(settings(devices=99), len(mixed))


def test_layout_is_no_larger_than_the_group():
    layout = engine.choose_layout(settings(devices=4, lanes=0), 3)
    assert (len(layout.devices), layout.lanes) == (3, 3)


def test_longest_expected_trials_start_first(small_trial):
    some = resolve_all(*[small_trial(corruption__label_prob=p) for p in (0.0, 1.0, 0.3)])
    (group,) = trials.group(some)
    run = group_run(group, lanes=1)
    run.begin(group.trials)
    assert run.lanes[0]["corruption.label_prob"] == 1.0


def test_compacted_checkpoint_of_an_extended_sweep_gets_all_lanes(small_trial):
    """Two lanes were left of eight; with new trials waiting there are eight again."""
    some = resolve_all(*[small_trial(seed=s) for s in range(8)])
    (group,) = trials.group(some)
    last = some[-2:]
    run = group_run(group, batching="vmap", lanes=8)
    ids = [t.trial_id for t in last]
    run.begin(last, None)
    meta = run.checkpoint()[1] | {"lanes": ids}
    state = jax.tree.map(lambda s: np.zeros((2, *s.shape), s.dtype), run.one_state)
    for waiting, lanes in ((last, 2), (some, 8)):
        again = group_run(group, batching="vmap", lanes=8)
        again.begin(waiting, (state, meta))
        assert again.layout.lanes == lanes
