"""What is measured, what is kept of it, and what is chosen by it. Times are made up here."""

import jax
import numpy as np
import pytest

from rethink_jax import config, inputs, lanes, records, sweep, trials, tuning
from rethink_jax.choices import Choices
from rethink_jax.data import sources
from rethink_jax.layers import lowering

LAYERS = ("conv 4 3", "relu", "conv 6 3 2", "conv 4 1", "conv 4 3", "flatten")
SHAPES = [
    lowering.ConvShape(8, 8, 1, 4, (3, 3), 1, "SAME", "float32"),
    lowering.ConvShape(8, 8, 4, 6, (3, 3), 2, "SAME", "float32"),
    lowering.ConvShape(4, 4, 4, 4, (3, 3), 1, "SAME", "float32"),
]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    return tuning.Kept()


def group_of(small_trial, **changes):
    group = trials.group(trials.expand({"trial": small_trial(**changes)}))[0]
    dataset = inputs.trial_dataset(sources.load("digits", None, False), group.static)
    return group, inputs.make_spec(group.trials, dataset, 1)


def layout(per_device=4, batching="map"):
    devices = tuple(jax.local_devices()[:2])
    return lanes.Layout(devices, per_device * len(devices), batching)


def times(monkeypatch, seconds_of):
    """Instead of timing, asks `seconds_of` for each name; returns the names that were asked for."""
    asked = []

    def measured(names, prepare):
        asked.extend(names)
        return {name: seconds_of(name, prepare) for name in names}

    monkeypatch.setattr(tuning, "_measured", measured)
    return asked


def test_convolutions_of_a_network_are_found_each_once(small_trial):
    _, spec = group_of(small_trial, model={"name": "sequential", "layers": LAYERS})
    assert tuning.convolution_shapes(spec) == SHAPES
    _, mlp = group_of(small_trial)
    assert tuning.convolution_shapes(mlp) == []


def test_operations_are_those_of_the_products(small_trial):
    _, mlp = group_of(small_trial, model={"name": "mlp", "hidden": (32,)})
    products = 2 * 16 * (64 * 32 + 32 * 10)  # A batch of 16.
    assert products <= tuning.forward_flops(mlp) < 1.1 * products
    _, conv = group_of(small_trial, model={"name": "sequential", "layers": ("conv 8 5", "flatten")})
    products = 2 * 16 * (8 * 8 * 5 * 5 * 8 + 8 * 8 * 8 * 10)
    assert products <= tuning.forward_flops(conv) < 1.1 * products


def test_what_is_faster_by_more_than_the_noise_is_taken(small_trial, kept, monkeypatch):
    _, spec = group_of(small_trial, model={"name": "sequential", "layers": LAYERS})
    times(monkeypatch, lambda name, _: {"patches": 0.7, "both_patches": 0.99}.get(name, 1.0))
    assert set(tuning.choose_lowerings(spec, layout(), kept).values()) == {"patches"}
    times(monkeypatch, lambda name, _: 0.95 if name == "patches" else 1.0)
    rule = {shape: lowering.by_rule(shape) for shape in SHAPES}
    assert tuning.choose_lowerings(spec, layout(), tuning.Kept()) != rule  # Kept from before.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert tuning.choose_lowerings(spec, layout(), tuning.Kept()) == rule


def test_lanes_are_doubled_while_it_pays(small_trial, kept, monkeypatch):
    group, spec = group_of(small_trial)
    # Seconds of a dispatch by lanes per device: up to 4 they come almost for nothing.
    seconds = iter([1.0, 1.1, 1.3, 2.5, 5.0])
    asked = times(monkeypatch, lambda *_: next(seconds))
    assert tuning.choose_lanes(spec, group.trials[0], layout(1, "vmap"), 16, kept) == 4
    assert len(asked) == 4
    # As many as there may be, and what was measured before is not measured again.
    assert tuning.choose_lanes(spec, group.trials[0], layout(1, "vmap"), 2, kept) == 2
    assert len(asked) == 4


def test_lanes_that_do_not_fit_are_not_taken(small_trial, kept, monkeypatch):
    group, spec = group_of(small_trial)
    seconds = iter([1.0, 1.1, float("inf")])
    times(monkeypatch, lambda *_: next(seconds))
    assert tuning.choose_lanes(spec, group.trials[0], layout(1, "vmap"), 16, kept) == 2


def test_measurements_are_kept_by_what_they_depend_on(kept, monkeypatch):
    asked = times(monkeypatch, lambda name, _: 2.0)
    assert kept.seconds({"a": 1}, ("x", "y"), None) == {"x": 2.0, "y": 2.0}
    assert tuning.Kept().seconds({"a": 1}, ("x", "y"), None) == {"x": 2.0, "y": 2.0}
    assert asked == ["x", "y"]
    tuning.Kept().seconds({"a": 2}, ("x", "y"), None)
    tuning.Kept().seconds({"a": 1}, ("x", "z"), None)
    assert asked == ["x", "y", "x", "y", "x", "z"]
    monkeypatch.setattr(jax, "__version__", "another")
    tuning.Kept().seconds({"a": 1}, ("x", "y"), None)
    assert len(asked) == 8


def test_a_damaged_file_is_measured_again(kept, monkeypatch, tmp_path):
    times(monkeypatch, lambda name, _: 2.0)
    kept.seconds({"a": 1}, ("x",), None)
    [path] = (tmp_path / "cache" / "tuning").iterdir()
    path.write_text(path.read_text()[:-5])
    asked = times(monkeypatch, lambda name, _: 3.0)
    assert tuning.Kept().seconds({"a": 1}, ("x",), None) == {"x": 3.0}
    assert asked == ["x"]


def test_what_the_device_refuses_takes_for_ever(monkeypatch):
    monkeypatch.setattr(tuning, "_SECONDS", 1e-4)

    def prepare(name):
        if name == "large":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return lambda: jax.numpy.ones(3)

    found = tuning._measured(("large", "small"), prepare)
    assert found["large"] == float("inf") and 0 < found["small"] < 1


@pytest.mark.parametrize("batching", ["map", "vmap"])
def test_programs_that_are_timed_run(small_trial, monkeypatch, batching):
    monkeypatch.setattr(tuning, "_SECONDS", 1e-4)
    group, spec = group_of(
        small_trial, model={"name": "sequential", "layers": LAYERS[:2] + LAYERS[-1:]}
    )
    training = tuning.training_program(spec, group.trials[0], layout(2, batching), 2)
    [convolution] = [
        tuning.convolution_program(shape, "patches", 4, layout(2, batching))
        for shape in tuning.convolution_shapes(spec)
    ]
    norm_L = training()
    assert norm_L.shape == (4,) and (norm_L > 0).all()
    x_L, _ = convolution()
    assert x_L.shape == (4, 4, 8, 8, 1)


def test_settings_that_are_given_are_not_asked_about(small_trial, kept, monkeypatch):
    group, spec = group_of(small_trial, model={"name": "sequential", "layers": LAYERS})
    asked = times(monkeypatch, lambda name, _: 0.1 if name in ("patches", "vmap") else 1.0)
    settings = config.settings({})
    found = tuning.choose(spec, group.trials * 10, layout(), settings, kept)
    assert found == Choices("vmap", 4, dict.fromkeys(SHAPES, "patches"))
    asked.clear()
    given = {"engine.convolution": "patches", "engine.batching": "map", "engine.lanes": 4}
    found = tuning.choose(spec, group.trials * 10, layout(), settings | given, kept)
    assert found == Choices("map", 0, {}) and not asked


def test_choices_survive_json():
    choices = Choices("vmap", 8, dict.fromkeys(SHAPES, "patches"))
    stored = choices.to_json()
    assert Choices.from_json(stored) == choices
    stored["convolutions"][0]["lowering"] = "gone"
    assert Choices.from_json(stored).lowering_of(SHAPES[0]) == lowering.by_rule(SHAPES[0])


def test_only_long_groups_are_worth_it(small_trial):
    _, spec = group_of(small_trial, model={"name": "mlp", "hidden": (512,)})
    assert not tuning.is_worth(spec, layout(), 1e4)
    assert tuning.is_worth(spec, layout(), 1e9)


# --- in a sweep -----------------------------------------------------------------------------------


@pytest.fixture
def conv_sweep(small_trial, kept):
    """Two trials of a small network with convolutions, on one device."""
    layers = ("conv 4 3 2", "relu", "flatten")
    model = {"name": "sequential", "layers": layers}
    trial = small_trial(model=model, stop__max_epochs=2, optimizer__learning_rate=0.01)
    engine = {"devices": 1, "lanes": 2, "tuning": "on", "epochs_per_dispatch": 1}
    return {"trial": trial, "sweep": {"seed": (0, 1)}, "engine": engine}


def run(config, workdir):
    assert sweep.run(sweep.Sweep(config), workdir, ["test"]) == 0
    return records.Workdir(workdir).header()


def test_a_sweep_writes_its_choices_and_keeps_to_them(conv_sweep, tmp_path, monkeypatch):
    faster = {"patches": 0.5, "vmap": 0.5}
    asked = times(monkeypatch, lambda name, _: faster.get(name, 1.0))
    head = run(conv_sweep, tmp_path / "w")
    [group] = head["choices"]
    [found] = head["choices"][group].values()
    assert {c["lowering"] for c in found["convolutions"]} == {"patches"}
    assert head["runs"][0]["groups"][group]["batching"] == found["batching"] == "vmap"
    # More trials of the group in the same workdir, while another way is faster now.
    asked.clear()
    faster.update(patches=2.0, vmap=2.0)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    conv_sweep["sweep"]["seed"] = (0, 1, 2)
    assert run(conv_sweep, tmp_path / "w")["choices"] == head["choices"]
    assert not asked
    # In a new one it is asked about.
    again = run(conv_sweep, tmp_path / "v")
    assert asked and again["runs"][0]["groups"][group]["batching"] == "map"


def test_choices_change_no_result_beyond_rounding(conv_sweep, tmp_path, monkeypatch):
    results = []
    times(monkeypatch, lambda *_: 1.0)
    for name in "patches", "input_patches", "both_patches":
        conv_sweep["engine"]["convolution"] = name
        run(conv_sweep, tmp_path / name)
        found = records.Workdir(tmp_path / name).finished()
        results.append(
            [(r["final"]["train_loss"], r["final"]["test_loss"]) for _, r in sorted(found.items())]
        )
    np.testing.assert_allclose(results[1:], [results[0]] * (len(results) - 1), rtol=1e-4)


def test_tuning_that_is_off_measures_nothing(conv_sweep, tmp_path, monkeypatch):
    asked = times(monkeypatch, lambda *_: 1.0)
    for mode in "off", "auto":  # Auto: so little training is not worth it.
        conv_sweep["engine"]["tuning"] = mode
        assert run(conv_sweep, tmp_path / mode)["choices"] == {}
    assert not asked
