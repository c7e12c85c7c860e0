"""Trials on images read from disk: the numbers of the engine in memory, whatever happens."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rethink_jax
from rethink_jax import chunks, config, engine, inputs, records, streaming, sweep, train, trials
from rethink_jax.data import preprocess, sources
from rethink_jax.data.dataset import Dataset

REPO = Path(__file__).parents[1]
SIZE = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_image_folder):
    """48 training and 15 test images of 3 classes; 6 steps of 8 images an epoch."""
    return write_image_folder(tmp_path_factory.mktemp("images") / "set", several_sizes=True)


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """Runs that are equal in what is static share their programs: making them takes longest."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        make = streaming.StreamPrograms

        def programs(spec, layout, size, one_input):
            key = (repr(spec.fields), spec.used, spec.evaluate_every, spec.num_train, layout, size)
            if key not in made:
                made[key] = make(spec, layout, size, one_input)
            return made[key]

        patch.setattr(streaming, "StreamPrograms", programs)
        yield


@pytest.fixture
def streamed_trial(small_trial, folder):
    def make(**changes):
        given = {
            "batch_size": 8,
            "data": {"name": f"folder:{folder}", "image_size": SIZE},
            "preprocess": {"crop_size": 10, "random_crop": True, "random_flip": True},
            "optimizer": {"learning_rate": 0.02, "lr_decay": 0.9},
            "stop": {"max_epochs": 3, "measured_on": "online"},
        }
        return small_trial(**(given | changes))

    return make


@pytest.fixture
def mixed(streamed_trial):
    """Five trials of one group that differ in what is traced, and in their length."""
    nested = [
        streamed_trial(seed=1),
        streamed_trial(seed=2, corruption__label_prob=1.0),
        streamed_trial(seed=1, corruption__label_prob=0.5, preprocess__random_flip=False),
        streamed_trial(seed=4, stop__train_accuracy=0.0),  # is fitted after one epoch
        streamed_trial(seed=5, optimizer__learning_rate=1e30),  # diverges
    ]
    return [trials.resolve(t) for t in nested]


def settings(batching="map", devices=1, lanes=2, steps=4, **more):
    given = config.settings({})
    return given | {
        "engine.batching": batching,
        "engine.devices": devices,
        "engine.lanes": lanes,
        "engine.steps_per_dispatch": steps,
        "loader.threads": 2,
        **more,
    }


def dataset_of(trial):
    return inputs.trial_dataset(sources.load(trial["data.name"]), dict(trial.static))


def stream_run(some, done, **changes):
    (group,) = trials.group(some)

    def finish(finished):
        assert finished.trial not in done, "finished twice"
        done[finished.trial] = jax.device_get(finished.state)

    return streaming.StreamRun(group, dataset_of(some[0]), settings(**changes), finish)


def run_all(some, **changes):
    """Runs trials of one group; {trial: its final state}."""
    done = {}
    run = stream_run(some, done, **changes)
    run.begin(some)
    while run.busy:
        run.step()
    assert set(done) == set(some)
    return done


def assert_equal_bits(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- the right numbers ----------------------------------------------------------------------------


def test_agrees_with_a_plain_loop_over_files(streamed_trial, folder):
    """Files listed, decoded, labelled, ordered and trained on here, without the package's runs."""
    from PIL import Image

    changes = {"preprocess__crop_size": None, "preprocess__random_crop": False}
    nested = streamed_trial(
        seed=3, corruption__label_prob=0.5, preprocess__random_flip=False, **changes
    )
    trial = trials.resolve(nested | {"data": nested["data"] | {"seed": 7}})
    (state,) = run_all([trial]).values()

    paths = sorted((folder / "train").glob("*/*"))
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        images.append(np.asarray(image.resize((SIZE, SIZE), Image.BILINEAR, box=box)))
    images_N = jnp.asarray(images, jnp.float32) / 255
    true_N = np.array([int(p.parent.name.split()[-1]) for p in paths])
    labels_N, _ = inputs.trial_labels(trial, dataset_of(trial))
    assert 0 < (labels_N != true_N).mean() < 0.6

    spec = inputs.make_spec([trial], dataset_of(trial), 1)
    params = train.init_variables(spec, trial["seed"])["params"]
    momentum = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def step(params, momentum, index_B, rate):
        def loss_fn(params):
            x_BxHxWxC = preprocess.whiten(images_N[index_B])
            logits_BxY = spec.model.apply({"params": params}, x_BxHxWxC, True, None, 0.0)[0]
            picked_B = jax.nn.log_softmax(logits_BxY)[jnp.arange(8), jnp.asarray(labels_N)[index_B]]
            return -picked_B.mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        return jax.tree.map(lambda p, m: p - rate * m, params, momentum), momentum, loss

    for epoch in range(3):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 1), epoch)
        order_N = np.argsort(np.asarray(jax.random.bits(key, (48,))), kind="stable")
        losses = []
        for index_B in order_N.reshape(6, 8):
            params, momentum, loss = step(params, momentum, index_B, 0.02 * 0.9**epoch)
            losses.append(float(loss))
        assert state.curve[epoch, 1] == pytest.approx(np.mean(losses), rel=1e-5)
    # float32, 18 steps
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 state.params, params)  # fmt: skip


@pytest.mark.parametrize("layers", [(), ("conv 4 3 2", "batch_norm", "relu", "flatten")])
def test_agrees_with_the_engine_in_memory(streamed_trial, layers):
    """The same images as arrays, through the other engine; the order is that of the same seed."""
    network = {"model": {"name": "sequential", "layers": layers}} if layers else {}
    nested = streamed_trial(seed=3, corruption__label_prob=0.5, **network)
    nested["data"]["seed"] = 3
    trial = trials.resolve(nested)
    files = dataset_of(trial)
    images = [
        np.stack([files.read(split, i) for i in range(len(labels))])
        for split, labels in (("train", files.train_labels), ("test", files.test_labels))
    ]
    arrays = images[0], files.train_labels, images[1], files.test_labels
    in_memory = Dataset("arrays", *arrays, files.class_names)
    (group,) = trials.group([trial])
    done = []
    run = engine.GroupRun(group, in_memory, settings(), lambda f: done.append(f.state))
    run.begin(group.trials)
    while run.busy:
        run.step()
    theirs, (ours,) = jax.device_get(done[0]), run_all([trial]).values()
    columns = [i for i, name in enumerate(train.CURVE) if not name.startswith("train_")]
    # Sums over other batches and in another order: float32 rounding.
    np.testing.assert_allclose(ours.curve[:, columns], theirs.curve[:, columns], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        (ours.params, ours.model_state),
        (theirs.params, theirs.model_state),
    )
    assert bool(ours.model_state) == bool(layers)  # Running averages, where there are any.
    assert np.isnan(ours.curve[:, train.CURVE.index("train_loss")]).all()


def test_order_is_of_the_data_seed_and_the_epoch_alone(streamed_trial):
    def order(epoch=0, trial_seed=0, **data):
        nested = streamed_trial(seed=trial_seed)
        trial = trials.resolve(nested | {"data": nested["data"] | data})
        return chunks.train_order(inputs.make_spec([trial], dataset_of(trial), 1), epoch)

    np.testing.assert_array_equal(np.sort(order(), axis=None), np.arange(48))
    np.testing.assert_array_equal(order(), order(trial_seed=9))
    assert (order() != order(epoch=1)).any()
    assert (order() != order(seed=1)).any()
    # The last partial batch is left out.
    assert len(np.unique(order(num_train=47))) == 5 * 8


def test_random_labels_are_fitted_since_they_stay(streamed_trial):
    """Labels drawn anew every epoch could be guessed at 1/3; so could those of other images."""
    nested = streamed_trial(
        corruption__label_prob=1.0, model__hidden=(64,), stop__max_epochs=60,
        stop__train_accuracy=1.0, preprocess__random_crop=False, preprocess__random_flip=False,
    )  # fmt: skip
    ((trial, state),) = run_all([trials.resolve(nested)], steps=6).items()
    assert state.status == train.FITTED
    labels, _ = inputs.trial_labels(trial, dataset_of(trial))
    assert (labels != dataset_of(trial).train_labels).mean() > 0.4


# --- a trial's result is its own ------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    return {}


@pytest.fixture
def alone(mixed, reference):
    """Every trial on its own."""
    if not reference:
        for trial in mixed:
            reference |= run_all([trial], lanes=1)
    return reference


@pytest.mark.parametrize(
    "layout",
    [
        {"lanes": 5},  # neighbours
        {"lanes": 2},  # three waves
        {"lanes": 4, "devices": 2},
        {"lanes": 2, "steps": 1},
        {"lanes": 2, "steps": 100},
    ],
    ids=str,
)
def test_result_depends_on_the_trial_alone(mixed, alone, layout):
    for trial, state in run_all(mixed, **layout).items():
        assert_equal_bits(state, alone[trial])


def test_result_under_vmap_is_the_same_to_rounding(mixed, alone):
    for trial, state in run_all(mixed, batching="vmap", lanes=4, devices=2).items():
        assert (state.status, state.epoch) == (alone[trial].status, alone[trial].epoch)
        if state.status != train.DIVERGED:
            # As in tests/test_engine.py: the order of float32 sums may differ.
            np.testing.assert_allclose(state.curve, alone[trial].curve, rtol=2e-4, atol=2e-5)


def test_trials_end_in_every_way(mixed, alone):
    ended = [(int(alone[t].status), int(alone[t].epoch)) for t in mixed]
    expected = [(train.FINISHED, 3)] * 3 + [(train.FITTED, 1), (train.DIVERGED, 1)]
    assert ended == expected


def test_lane_of_a_trial_that_is_done_stands_still(streamed_trial):
    short = trials.resolve(streamed_trial(seed=4, stop__train_accuracy=0.0))
    long = trials.resolve(streamed_trial(seed=1))
    done = {}
    run = stream_run([short, long], done)
    run.begin([short, long])
    while not done:
        run.step()
    for _ in range(4):  # the next epoch, its evaluation, and into the one after
        run.step()
    assert_equal_bits(jax.device_get(run.programs.lane(run._state, 0).trial), done[short])
    run.close()


def test_evaluation_cadence_is_per_trial(mixed, alone):
    """Every second epoch, and the last one of each trial; where both measure, they agree."""
    sparse = run_all(mixed, lanes=5, **{"evaluate.every_epochs": 2})
    column = train.CURVE.index("test_loss")
    for trial, state in sparse.items():
        measured = ~np.isnan(state.curve[:, column])
        if state.status == train.FINISHED:
            np.testing.assert_array_equal(measured, [False, True, True])
        elif state.status == train.FITTED:
            np.testing.assert_array_equal(measured, [True, False, False])
        np.testing.assert_array_equal(state.curve[measured], alone[trial].curve[measured])
        assert_equal_bits(state.params, alone[trial].params)


def test_nothing_is_compiled_after_the_first_wave(streamed_trial, caplog):
    some = [trials.resolve(streamed_trial(seed=s, stop__max_epochs=2)) for s in range(4)]
    done = {}
    run = stream_run(some, done)
    run.begin(some)
    while len(done) < 2:
        run.step()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        while run.busy:
            run.step()
    assert len(done) == 4
    assert "ompil" not in caplog.text


# --- interruption ---------------------------------------------------------------------------------


# An epoch is 6 steps of training and 2 of evaluation: in dispatches of 4, two and one.
@pytest.mark.parametrize("stop_after", [1, 2, 4, 11, 13])
def test_checkpoint_and_restore_are_bitwise_uninterrupted(mixed, alone, stop_after):
    """Stopped anywhere in an epoch, begun anew from the checkpoint, with other chunks even."""
    done = {}
    run = stream_run(mixed, done, steps=4)
    run.begin(mixed)
    for _ in range(stop_after):
        run.step()
    state, meta = jax.device_get(run.checkpoint()[0]), json.loads(json.dumps(run.checkpoint()[1]))
    run.close()
    again = stream_run(mixed, done, steps=1)
    left = [t for t in mixed if t not in done]
    again.begin(left, (state, meta))
    assert sum(again.epochs_of.values()) > 0
    while again.busy:
        again.step()
    for trial in mixed:
        assert_equal_bits(done[trial], alone[trial])


def test_restored_epoch_is_not_begun_anew(streamed_trial):
    trial = trials.resolve(streamed_trial())
    run = stream_run([trial], {})
    run.begin([trial])
    run.step()
    saved = jax.device_get(run.checkpoint()[0]), run.checkpoint()[1]
    run.close()
    assert saved[1]["position"] == {"epoch": 0, "split": "train", "step": 4}
    again = stream_run([trial], {})
    again.begin([trial], saved)
    assert again.epochs_of[trial] == pytest.approx(4 / 6)
    again.step()
    assert again.epochs_of[trial] == 1
    again.close()


def test_trial_that_was_done_but_not_written_is_handed_over_again(streamed_trial):
    """Killed between its end and its result.json, while its neighbour goes on."""
    short = trials.resolve(streamed_trial(seed=4, stop__train_accuracy=0.0))
    long = trials.resolve(streamed_trial(seed=1))
    done = {}
    run = stream_run([short, long], done)
    run.begin([short, long])
    while not done:
        run.step()
    lanes = [short.trial_id, long.trial_id]
    state, meta = jax.device_get(run.checkpoint()[0]), run.checkpoint()[1] | {"lanes": lanes}
    run.close()
    again_done = {}
    again = stream_run([short, long], again_done)
    again.begin([short, long], (state, meta))
    assert list(again_done) == [short]
    assert_equal_bits(again_done[short], done[short])
    while again.busy:
        again.step()
    assert set(again_done) == {short, long}


def test_restore_onto_fewer_lanes(mixed, alone):
    """What finds no lane begins anew; nothing is lost."""
    done = {}
    run = stream_run(mixed, done, lanes=4)
    run.begin(mixed)
    run.step()
    saved = jax.device_get(run.checkpoint()[0]), run.checkpoint()[1]
    run.close()
    again = stream_run(mixed, done, lanes=2)
    again.begin(mixed, saved)
    while again.busy:
        again.step()
    for trial in mixed:
        assert_equal_bits(done[trial], alone[trial])


# --- sweeps ---------------------------------------------------------------------------------------


def sweep_config(streamed_trial, **more):
    return {
        "trial": streamed_trial(),
        "sweep": {"seed": (0, 1), "corruption": {"label_prob": (0.0, 1.0)}},
        "engine": {"devices": 1, "lanes": 2, "steps_per_dispatch": 2},
        **more,
    }


def command(tmp_path, given, *args):
    """launch.sweep in a process of its own, with a config file."""
    (tmp_path / "c.py").write_text(
        "from ml_collections import config_dict\n"
        f"def get_config(_=None): return config_dict.ConfigDict({given!r})\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "launch.sweep", f"--config={tmp_path / 'c.py'}", *args],
        cwd=REPO, capture_output=True, text=True, timeout=250,
    )  # fmt: skip


def test_sweep_by_command(streamed_trial, tmp_path):
    given, workdir = sweep_config(streamed_trial), tmp_path / "w"
    ended = command(tmp_path, given, f"--workdir={workdir}")
    assert ended.returncode == 0, ended.stderr
    results = rethink_jax.load_results(workdir)
    assert list(results.trials["status"]) == ["finished"] * 4
    noise = results.trials.groupby("corruption.label_prob")["label_noise"].mean()
    assert noise[0.0] == 0
    assert 0.4 < noise[1.0] < 0.9
    assert results.curves["train_loss"].isna().all()
    assert results.curves[["online_loss", "test_loss"]].notna().all().all()
    (facts,) = results.run["data"].values()
    assert (facts["train"], facts["test"]) == (48, 15)
    examples = records.load_examples(workdir)
    assert [e.shape for e in examples.values()] == [(8, SIZE, SIZE, 3)]
    loaded = rethink_jax.load_trial(workdir, results.trials["trial_id"][0])
    assert loaded.model.apply(loaded.variables, jnp.zeros((1, 10, 10, 3)), False)[0].shape == (1, 3)


def test_damaged_image_by_command(streamed_trial, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "set")
    path = copy / "train" / "class 2" / "004.png"
    path.write_bytes(path.read_bytes()[:100])
    given = sweep_config(streamed_trial)
    given["trial"]["data"]["name"] = f"folder:{copy}"
    ended = command(tmp_path, given, f"--workdir={tmp_path / 'w'}")
    assert ended.returncode == 2
    (line,) = [x for x in ended.stderr.splitlines() if x]
    assert line.startswith(f"error: {path} cannot be read as an image")


def test_interrupted_sweep_gives_the_bits_of_a_whole_one(streamed_trial, tmp_path, monkeypatch):
    """A signal in the midst of an epoch, twice; then to the end."""
    given = sweep_config(streamed_trial)
    assert sweep.run(sweep.Sweep(given), tmp_path / "whole", ["test"]) == 0
    step = streaming.StreamRun.step
    for dispatches in (2, 7):
        left = [dispatches]

        def interrupted(run, left=left):
            step(run)
            left[0] -= 1
            if not left[0]:
                import signal

                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(streaming.StreamRun, "step", interrupted)
        assert sweep.run(sweep.Sweep(given), tmp_path / "w", ["test"]) == 75
    monkeypatch.setattr(streaming.StreamRun, "step", step)
    assert sweep.run(sweep.Sweep(given), tmp_path / "w", ["test"]) == 0
    whole, ours = (records.Workdir(tmp_path / w).finished() for w in ("whole", "w"))
    assert ours == whole
    for trial_id in ours:
        networks = [
            rethink_jax.load_trial(tmp_path / w, trial_id).variables for w in ("whole", "w")
        ]
        assert_equal_bits(*networks)
    assert not list((tmp_path / "w" / "groups").iterdir())


def test_out_of_memory_goes_on_with_fewer_lanes(streamed_trial, tmp_path, monkeypatch, capsys):
    """In the second dispatch of two lanes; one lane after the other gives the same numbers."""
    given = sweep_config(streamed_trial)
    assert sweep.run(sweep.Sweep(given), tmp_path / "whole", ["test"]) == 0
    step, calls = streaming.StreamRun.step, []

    def scarce(run):
        step(run)
        calls.append(run.layout.lanes)
        if calls == [2, 2]:
            jnp.zeros(2**45).block_until_ready()

    monkeypatch.setattr(streaming.StreamRun, "step", scarce)
    assert sweep.run(sweep.Sweep(given), tmp_path / "w", ["test"]) == 0
    assert "goes on with 1" in capsys.readouterr().out
    assert set(calls[2:]) == {1}
    whole, ours = (records.Workdir(tmp_path / w).finished() for w in ("whole", "w"))
    assert ours == whole


def test_memory_is_predicted(streamed_trial):
    run = stream_run([trials.resolve(streamed_trial())], {}, batching="vmap")
    plan = run.memory_plan()
    actual = run.programs_at(run._layout_of(9)).memory_bytes
    assert plan.bytes_at(9) == pytest.approx(actual, rel=0.1)


def test_plan_reads_no_image(streamed_trial, monkeypatch):
    monkeypatch.setattr("rethink_jax.data.streamed.decode", None)
    text = "\n".join(sweep.plan(sweep.Sweep(sweep_config(streamed_trial)), None))
    assert "4 trials in 1 group" in text
    assert "6 steps an epoch" in text
