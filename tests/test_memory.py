"""The memory plan: what it predicts is what the compiler says, and lanes are chosen by it."""

import jax
import jax.numpy as jnp
import pytest

from rethink_jax import config, engine, inputs, memory, sweep, trials
from rethink_jax.data import sources

MIB = 2**20
NETWORKS = {
    "mlp": {"name": "mlp", "hidden": (8,)},
    "convolutions": {"name": "sequential", "layers": ("conv 4 3", "batch_norm", "flatten")},
}


@pytest.fixture
def group_run(small_trial):
    """A run of 16 trials that has not begun."""

    def make(network="mlp", devices=1, lanes=0, batching="map"):
        nested = [small_trial(seed=s, model=NETWORKS[network]) for s in range(16)]
        (group,) = trials.group([trials.resolve(t) for t in nested])
        make.trials = group.trials
        dataset = inputs.trial_dataset(sources.digits(), group.static)
        settings = config.settings({}) | {
            "engine.batching": batching,
            "engine.devices": devices,
            "engine.lanes": lanes,
        }
        return engine.GroupRun(group, dataset, settings, lambda f: None)

    return make


# --- the prediction -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "batching", "devices"), [("mlp", "map", 2), ("convolutions", "vmap", 1)]
)
def test_prediction_is_what_the_compiler_reports(group_run, network, batching, devices):
    run = group_run(network, devices, batching=batching)
    plan = run.memory_plan()
    actual = run.programs_at(run._layout_of(13)).memory_bytes
    assert plan.bytes_at(13) == pytest.approx(actual, rel=0.1)
    # Neither part alone would do.
    assert min(plan.fixed, 13 * plan.per_lane) > 0
    assert plan.fixed > 0.1 * actual if batching == "map" else plan.per_lane > 0.05 * actual


def test_prediction_is_what_the_device_has_used(group_run):
    """Of the program alone, while no finished network waits."""
    (device, *_) = jax.local_devices()
    if not device.memory_stats():
        pytest.skip(f"the backend {device.platform} does not report the memory in use")
    run = group_run("convolutions", batching="vmap", lanes=13)
    plan = memory.measure(
        lambda lanes: memory.program_bytes(run.programs_at(run._layout_of(lanes)).advance), None
    )
    before = device.memory_stats()["bytes_in_use"]
    run.begin(group_run.trials)
    run.step()
    jax.block_until_ready(run.checkpoint()[0])
    used = device.memory_stats()["peak_bytes_in_use"] - before
    assert plan.bytes_at(13) == pytest.approx(used, rel=0.1)


def test_program_bytes_counts_a_donated_state_once():
    def step(weights, state):
        return state + weights.sum()

    args = jnp.zeros(MIB // 4), jnp.zeros(MIB)
    kept = jax.jit(step).lower(*args).compile()
    donated = jax.jit(step, donate_argnums=1).lower(*args).compile()
    # 1 and 4 MiB of arguments and, unless it takes the place of the second, 4 MiB of result.
    assert memory.program_bytes(kept) == pytest.approx(9 * MIB, rel=0.01)
    assert memory.program_bytes(donated) == pytest.approx(5 * MIB, rel=0.01)


# --- the choice -----------------------------------------------------------------------------------


@pytest.fixture
def device_of(monkeypatch):
    """Devices with so many MiB, on which a lane needs 10 MiB beside 20 MiB for all."""

    class Programs:
        def __init__(self, layout):
            self.memory_bytes = (20 + 10 * layout.per_device) * MIB

    def make(mib):
        limit = None if mib is None else mib * MIB
        monkeypatch.setattr(memory, "limit_of", lambda devices: limit)
        monkeypatch.setattr(engine.GroupRun, "_make_programs", lambda run, at: Programs(at))

    return make


@pytest.mark.parametrize(
    ("mib", "fitting", "taken"),
    [
        (1000, 88, 4),  # 0.9 * 1000 = 20 + 88 * 10
        (67, 4, 4),
        (66, 3, 3),  # 60 would be needed; nine tenths of 66 are 59.4
        (50, 2, 2),
        (34, 1, 1),
    ],
)
def test_as_many_lanes_as_fit_and_no_more_than_chosen(group_run, device_of, mib, fitting, taken):
    device_of(mib)
    run = group_run(devices=2)
    assert (run.memory_plan().fixed, run.memory_plan().per_lane) == (20 * MIB, 10 * MIB)
    assert run.memory_plan().fitting == fitting
    note = run.fit()
    assert run.chosen.lanes == run.layout.lanes == 2 * taken
    if taken == 4:
        assert note is None
    else:
        assert note == f"4 lanes need 60 MiB of each device, which has {mib} MiB; taking {taken}"


def test_a_plan_that_is_known_gives_the_same_choice(group_run, device_of):
    device_of(50)
    run = group_run()
    run.fit(memory.Plan(20 * MIB, 10 * MIB, 50 * MIB))
    assert run.chosen.lanes == 2
    assert not run._made  # without another compilation


def test_lanes_that_were_asked_for_are_warned_about_and_taken(group_run, device_of):
    device_of(50)
    run = group_run(lanes=4)
    assert run.fit().startswith("warning: 4 lanes need 60 MiB of each device, which has 50 MiB;")
    assert run.chosen.lanes == 4


@pytest.mark.parametrize("lanes_of_the_group", [1, 4])
def test_no_room_for_one_lane_is_a_user_error(group_run, device_of, lanes_of_the_group):
    device_of(33)
    run = group_run()
    run.layout = run.chosen = run._layout_of(lanes_of_the_group)
    with pytest.raises(memory.OutOfMemory) as error:
        run.fit()
    said = str(error.value)
    assert said.startswith("one lane needs 30 MiB of each device, which has 33 MiB. Take a smaller")
    assert "trial.batch_size" in said
    assert "--config.engine.lanes=1" in said
    assert "\n" not in said


def test_nothing_is_compiled_where_the_memory_is_not_known(group_run, device_of):
    device_of(None)
    run = group_run()
    assert run.fit() is None
    assert not run._made
    assert run.memory_plan().describe(4) == "60 MiB on each"


def test_images_take_half_of_the_memory_at_most(group_run, device_of):
    device_of(1)
    shape = group_run()._images.struct.train.codes.shape
    assert shape[0] == 1  # One version of them has to be there.


def test_plan_says_what_fits(small_trial, device_of):
    device_of(66)
    swept = {"trial": small_trial(), "sweep": {"seed": tuple(range(8))}, "engine": {"devices": 1}}
    text = "\n".join(sweep.plan(sweep.Sweep(swept), None))
    assert "3 lanes by map on 1 cpu device(s), 50 MiB on each of 66 MiB, which hold 3 lanes" in text
    assert "; 4 lanes need 60 MiB of each device, which has 66 MiB; taking 3" in text


# --- what there is --------------------------------------------------------------------------------


def write_system(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal:  8000 kB\nMemFree:   10 kB\nMemAvailable:    6000 kB\n"}
SYSTEMS = {
    "no groups": ({}, 6000 * 1024),
    "version 2, no limit": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": "5\n",
        },
        6000 * 1024,
    ),
    "version 2": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "3000000\n",
            "sys/fs/cgroup/a/b/memory.current": "1000000\n",
            "sys/fs/cgroup/a/b/memory.stat": "anon 1\ninactive_file 200000\nactive_file 7\n",
        },
        2_200_000,
    ),
    "version 2, limit of a parent": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/memory.max": "3000000\n",
            "sys/fs/cgroup/a/memory.current": "1000000\n",
        },
        2_000_000,
    ),
    "version 1, seen from inside": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/x\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 300000\n",
        },
        2_300_000,
    ),
    "full": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "3000000\n",
            "sys/fs/cgroup/memory.current": "3000001\n",
        },
        0,
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_memory_of_the_host(tmp_path, name):
    files, expected = SYSTEMS[name]
    write_system(tmp_path, MEMINFO | files)
    assert memory.host_bytes(tmp_path) == expected


def test_memory_of_a_host_that_does_not_say(tmp_path):
    assert memory.host_bytes(tmp_path) is None


def test_cpu_devices_share_the_host():
    one, four = memory.limit_of(jax.devices()[:1]), memory.limit_of(jax.devices())
    assert four == pytest.approx(one / 4, rel=0.2)  # of memory that others use, too


# --- running out ----------------------------------------------------------------------------------


def real_error():
    try:
        jnp.zeros(2**45).block_until_ready()
    except jax.errors.JaxRuntimeError as error:
        return error


def chained():
    try:
        try:
            raise real_error()
        except Exception as error:
            raise ValueError("could not save") from error
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (real_error(), True),
        (jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY"), True),
        (
            jax.errors.JaxRuntimeError("INTERNAL: Error dispatching computation: Out of memory"),
            True,
        ),
        (jax.errors.JaxRuntimeError("UNKNOWN: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (chained(), True),
        (jax.errors.JaxRuntimeError("INTERNAL: something else"), False),
        (ValueError("out of memory"), False),
        (OSError(28, "No space left on device"), False),
    ],
    ids=str,
)
def test_out_of_memory_is_recognized(error, expected):
    assert memory.is_out_of_memory(error) is expected


def test_fewer_lanes_down_to_one_on_each_device():
    seen, lanes = [], 64
    while lanes is not None:
        seen.append(lanes)
        lanes = memory.fewer_lanes(lanes, 2)
    assert seen == [64, 48, 36, 26, 18, 12, 8, 6, 4, 2]
