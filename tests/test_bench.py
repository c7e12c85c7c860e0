"""The benchmark: it times what it says, fails way by way, and judges as its goals say."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest

from rethink_jax import models, step, train
from rethink_jax.bench import (
    client,
    engine_ways,
    facts,
    goals,
    networks,
    one_ways,
    refill,
    session,
    table,
    ways,
    worker,
)
from rethink_jax.optimizers import path_name
from rethink_jax.schema import UserError

REPO = Path(__file__).parents[1]
TINY = networks.make_task("digits", "cpu", batch=8)._replace(steps=3)
TORCH_PYTHON = os.environ.get("RETHINK_TORCH_PYTHON")


def bench(*args):
    # Most of the time of a tiny run is compilation.
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "launch.bench", *args],
        cwd=REPO,
        env=env | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )


def test_quick_command_end_to_end(tmp_path):
    """The engine is timed; an interpreter without PyTorch gives a row that says so."""
    out = tmp_path / "bench.json"
    flags = ("--quick", "--ways=engine,torch", "--batch=8", "--seconds=0.02", f"--json={out}")
    done = bench(*flags, f"--torch_python={sys.executable}", f"--profile={tmp_path / 'trace'}")
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    engine, torch = results["networks"]["digits"]["rows"]
    assert len(engine["raw"]) == 2
    rates = sorted(r["steps"] / r["seconds"] for r in engine["raw"])
    assert engine["rate"] == {
        "lowest": rates[0],
        "median": pytest.approx(np.mean(rates)),
        "highest": rates[1],
    }
    assert engine["lanes"] % engine["devices"] == 0
    assert engine["wall_to_busy"] > 0
    assert engine["memory"]["planned"] > 0
    assert torch["error"] == "ModuleNotFoundError: No module named 'torch'"
    assert list((tmp_path / "trace" / "digits").rglob("*.xplane.pb"))
    for text in ("digits: 85,002 parameters, batch 8", "No module named 'torch'", "not measured"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--networks=mlp1x51", "did you mean 'mlp1x512'?"),
        ("--ways=torch_compiled", "did you mean 'torch_compile'?"),
        ("--extras=refil", "did you mean 'refill'?"),
        ("--repeats=0", "at least 1"),
        ("--seconds=0", "more than 0 seconds"),
        ("--json=/nowhere/bench.json", "No such file or directory"),
    ],
)
def test_mistakes_of_the_user(flag, says):
    name, value = flag.removeprefix("--").split("=")
    kinds = {"repeats": int, "seconds": float, "json": str}
    with pytest.raises(UserError, match="--" + name) as caught:
        given = kinds[name](value) if name in kinds else (value,)
        session.run(session.Options(**{name: given}), [], {}, print)
    assert says in str(caught.value)


# --- what is timed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("digits", 85_002),
        ("mlp1x512", 1_209_866),
        ("mlp3x512", 1_735_178),
        ("alexnet", 1_387_786),
        ("inception", 1_649_402),
        ("vgg", 4_955_594),
    ],
)
def test_networks_are_the_papers(name, parameters):
    assert networks.cost(networks.make_task(name, "cpu")).parameters == parameters


def test_operations_of_a_step():
    """Twice the multiplications, forward and twice that back; counted by hand."""
    dense = 2352 * 512 + 512 * 10
    assert networks.cost(networks.make_task("mlp1x512", "cpu")).flops == 6 * 128 * dense
    convolutions = 28 * 28 * 25 * 3 * 64 + 14 * 14 * 25 * 64 * 64
    dense = 7 * 7 * 64 * 384 + 384 * 192 + 192 * 10
    alexnet = networks.cost(networks.make_task("alexnet", "cpu"))
    assert alexnet.flops == 6 * 32 * (convolutions + dense)


def test_all_ways_train_the_same_trials():
    """After two epochs the weights of the engine, the scan, the loop and the vmap agree.

    The engine's second epoch is that of `device_busy`: the same program again.
    """
    job = {"task": TINY._asdict(), "lanes": 4}
    engine = engine_ways.EngineWay(job | {"batching": "map", "tune": False})
    scan, loop = one_ways.ScanWay(job), one_ways.LoopWay(job)
    naive = one_ways.NaiveWay(job)
    for way in (engine, scan, loop, naive):
        lanes = way.setup()["lanes"]
        assert lanes == (4 if way in (engine, naive) else 1)
        again = engine.device_busy if way is engine else way.run
        assert way.run(1)["steps"] == again(1)["steps"] == 3 * lanes
    expected_L = jax.device_get(engine._run.checkpoint()[0].params)
    one = jax.tree.map(lambda a_L: a_L[0], expected_L)

    def agree(a, b):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)

    agree(scan._state.params, one)
    agree(loop._state[0], one)
    agree(naive._state[0], expected_L)


@pytest.mark.parametrize("forced", [False, True])
def test_lax_convolutions_are_forced(forced, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", jax.default_backend)  # Restored afterwards.
    if forced:
        one_ways.force_lax_convolutions()
    model = models.build("alexnet", 10, kernel_init="he_normal")
    image = np.zeros((1, 8, 8, 3), np.float32)
    jaxpr = str(jax.make_jaxpr(model.init)(jax.random.key(0), image))
    assert ("conv_general_dilated" in jaxpr) == forced
    assert ("reduce_window" in jaxpr) == forced


def test_lengths_of_the_refill_workload_are_those_planned():
    """`run` itself asserts that every trial ended after the epoch that it was meant to."""
    work = refill.Refill({"task": TINY._asdict(), "lanes": 4})
    said = work.setup()
    lengths = np.array(said["lengths"]).reshape(-1, 4)
    assert said["trials"] == 32 and len(set(lengths.flat)) > 8
    assert said["ideal"] == 4 * lengths.max(axis=1).sum() / lengths.sum() > 1.5
    with_refill, without = work.run(refill=True), work.run(refill=False)
    assert 0.5 < with_refill["busy"] <= 1
    # All trials of a batch end together: lanes wait for the dispatch in which that is seen only.
    longest = lengths.max(axis=1).sum()
    assert without["busy"] == pytest.approx(longest / (longest + len(lengths)))


# --- workers --------------------------------------------------------------------------------------


class Counter:
    def add(self, number):
        if number < 0:
            raise ValueError("no less\nsecond line")
        return {"sum": number + 1}


def test_worker_answers_and_goes_on_after_an_error():
    questions = [json.dumps({"do": "add", "number": n}) for n in (1, -1, 2)]
    answers = io.StringIO()
    worker.serve(Counter(), questions, answers)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"sum": 2},
        {"error": "ValueError: no less"},
        {"sum": 3},
    ]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('no such device')", "no such device"),
        ("import os; input(); os.kill(os.getpid(), 9)", "killed: out of memory"),
        ('input(); print(\'{"error": "RESOURCE_EXHAUSTED"}\')', "RESOURCE_EXHAUSTED"),
        ("input()", "ended with exit code 0"),
    ],
)
def test_why_a_worker_died(code, reason):
    with (
        client.Worker([sys.executable, "-c", code], dict(os.environ), {}) as dying,
        pytest.raises(client.WorkerError, match=reason),
    ):
        dying.ask("run")


def test_worker_that_cannot_start():
    with pytest.raises(client.WorkerError, match="no/python: No such file"):
        client.Worker(["no/python"], {}, {})


class FakeWorker:
    """Takes a tenth of a second per epoch, of three steps, and writes down when it was asked."""

    log: ClassVar = []

    def __init__(self, name, **facts):
        self.name, self.facts = name, facts

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, do, **arguments):
        self.log.append((self.name, do))
        if do == "setup":
            return {"compile_seconds": 1.0, "lanes": 1, "dtype": "float32"} | self.facts
        if self.name == "one_loop" and self.log.count((self.name, "run")) > 4:
            raise client.WorkerError("out of memory")
        if do == "memory":
            return {"planned": 1, "peak": 1, "how": ""}
        return {"seconds": 0.1 * arguments["epochs"], "steps": 3 * arguments["epochs"]}


@pytest.fixture
def comparison(monkeypatch):
    """Rows of digits with fake workers, by way."""
    monkeypatch.setattr(FakeWorker, "log", [])
    special = {
        "engine": dict(batching="map", devices=2, steps_per_dispatch=400),
        "torch": dict(parameters=7, torch="1", threads=2),
    }
    monkeypatch.setattr(ways, "start", lambda name, *_: FakeWorker(name, **special.get(name, {})))
    options = session.Options(
        networks=("digits",), ways=("engine", "engine_map", "one_scan", "one_loop", "torch"),
        extras=(), repeats=4, seconds=0.2,
    )  # fmt: skip
    digits = {"task": TINY._asdict(), "parameters": 85_002, "flops": 1e9}
    head = {"platform": "cpu", "networks": {"digits": digits}}
    found = session._Comparison("digits", options, {}, head).run()
    return found, {row["way"]: row for row in found["rows"]}


def test_ways_take_turns(comparison):
    """One repeat each, again and again; a way that fails leaves the others alone."""
    _, rows = comparison
    runs = [name for name, do in FakeWorker.log if do == "run"]
    warm_up = 3 * 2  # Of three ways: one epoch, and one more to see how long it takes.
    # The loop dies at its third repeat.
    assert runs[warm_up:] == ["engine", "one_scan", "one_loop"] * 3 + ["engine", "one_scan"]
    assert rows["one_loop"]["error"] == "out of memory" and "rate" not in rows["one_loop"]
    assert rows["one_scan"]["rate"]["median"] == pytest.approx(30)
    assert rows["one_scan"]["epochs"] == 2
    assert rows["engine"]["gflops"] == pytest.approx(30)


def test_other_parameters_are_refused_and_the_chosen_batching_is_timed_once(comparison):
    _, rows = comparison
    assert rows["torch"]["error"] == "has 7 parameters, ours has 85,002"
    assert rows["engine_map"]["rate"] == rows["engine"]["rate"]
    assert "engine_map" not in {name for name, _ in FakeWorker.log}


def test_table_of_a_network(comparison):
    found, _ = comparison
    text = table.network("digits", found).splitlines()
    (header,) = (line for line in text if line.startswith("way"))
    (scan,) = (line for line in text if line.startswith("one_scan "))
    assert scan.split()[1:4] == ["30", "(30,", "30)"]
    assert scan[header.index("engine/it") :].startswith("1.00")
    assert any("has 7 parameters" in line for line in text)


@pytest.mark.parametrize("epoch_seconds", [0.0002, 0.3, 1.5, 30.0])
def test_length_of_a_repeat(epoch_seconds):
    """About a second, or one epoch, although a call that is short is mostly overhead."""

    class Steady:
        asked = 0

        def ask(self, do, epochs):
            self.asked += epochs
            return {"seconds": 0.02 + epoch_seconds * epochs}

    steady = Steady()
    epochs = session.epochs_for(steady, 1.0)
    assert epochs == 1 or 0.8 < epochs * epoch_seconds < 1.3
    assert steady.asked * epoch_seconds <= 3 or steady.asked == 1


# --- goals ----------------------------------------------------------------------------------------


def timed(**rates):
    return {"rows": [{"way": k, "rate": {"median": v}} for k, v in rates.items()], "flops": 4e9}


RESULTS = {
    "head": {"platform": "cpu", "peak_tflops": 2, "copy_bytes_per_second": 76e6},
    "networks": {
        "digits": timed(engine=60, torch=10, one_scan=20, one_loop=70),
        "mlp1x512": timed(engine=1, one_scan=0.5),
        "alexnet": timed(engine=8, torch=10, torch_channels_last=20, naive_vmap=1),
        "inception": timed(engine=90, torch=100),
    },
    "extras": {"refill": {"share_of_ideal": 0.9, "busy": 0.5}},
}


def verdicts(platform):
    results = RESULTS | {"head": RESULTS["head"] | {"platform": platform}}
    return {g["figure"]: (g["measured"], g["verdict"]) for g in goals.judge(results)}


def test_verdicts():
    said = verdicts("cpu")
    assert said["digits MLP: engine / PyTorch eager"] == (6, "stretch met")
    assert said["MLP 1x512: engine / PyTorch eager"] == (None, "not measured")
    # The better of PyTorch's layouts; the worse of the networks.
    assert said["AlexNet and Inception: engine / better PyTorch eager"] == (0.4, "not met")
    assert said["engine / best of the one-at-a-time ways"] == (60 / 70, "not met")
    assert said["refill: wall(none) / wall(refill), share of ideal"] == (0.9, "met")
    assert said["busy lane-steps / all lane-steps"] == (0.5, "not met")


def test_goals_of_a_gpu_are_judged_on_a_gpu_only():
    on_cpu, on_gpu = verdicts("cpu"), verdicts("gpu")
    of_gpu = [g.figure for g in goals.GOALS if g.where == "gpu"]
    assert {on_cpu[figure] for figure in of_gpu} == {(None, "not measured")}
    assert on_gpu["MLP 1x512: engine / one at a time (same scan)"] == (2, "not met")
    bandwidth = "MLP 1x512: least bytes x trial-steps/s / copy bandwidth"
    assert on_gpu[bandwidth] == (0.5, "met")
    assert on_gpu["Inception: share of bfloat16 peak"] == (0.18, "met")
    assert on_gpu["digits MLP: engine / PyTorch eager"] == (None, "not measured")


@pytest.mark.parametrize(
    ("value", "verdict"), [(1.0, "stretch met"), (1.04, "met"), (1.2, "not met")]
)
def test_goal_from_above(value, verdict):
    goal = goals.Goal("", "", "", lambda _: value, 1.05, 1.01, at_most=True)
    assert goals.verdict(goal, value) == verdict


def test_peak_of_known_devices():
    assert facts.peak_tflops("NVIDIA H200") == 989
    assert facts.peak_tflops("NVIDIA H100 PCIe") == 756
    assert facts.peak_tflops("NVIDIA H100 80GB HBM3") == 989
    assert facts.peak_tflops("TPU v5 lite") == 197
    assert facts.peak_tflops("something new") is None


# --- the networks in PyTorch ----------------------------------------------------------------------

# Takes our weights, each kind of layer in the order of its calls; prints the logits of training.
TORCH_SCRIPT = """
import json, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
import torch_worker
job, arrays = json.loads(sys.argv[2]), np.load(sys.argv[3])
model, count = torch_worker.build(job), {}
kinds = {"Conv": torch.nn.Conv2d, "Dense": torch.nn.Linear,
         "BatchNorm": torch.nn.modules.batchnorm._BatchNorm}
for module in model.modules():
    for kind in (k for k, c in kinds.items() if isinstance(module, c)):
        number = count[kind] = count.get(kind, -1) + 1
        for own, ours in (("weight", "kernel"), ("weight", "scale"), ("bias", "bias")):
            if (name := f"{kind}_{number}/{ours}") in arrays:
                getattr(module, own).data.copy_(torch.from_numpy(arrays[name]))
images = torch.from_numpy(arrays["images"])
print(json.dumps(model.train()(torch_worker.prepare(images, job["crop"])).tolist()))
"""


@pytest.mark.skipif(not TORCH_PYTHON, reason="RETHINK_TORCH_PYTHON names no interpreter with it")
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_network_in_pytorch_computes_the_same(name, tmp_path):
    """With the same weights, a batch has the same logits in training."""
    task = networks.make_task(name, "cpu", batch=4)._replace(steps=1)
    way = one_ways.ScanWay({"task": task._asdict(), "lanes": 1})
    variables = train.init_variables(way.spec, 0)
    # Biases and batch normalization start at values that would hide what is left out.
    rng = np.random.Generator(np.random.Philox(0))
    noise = lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32)  # noqa: E731
    variables = dict(variables) | {"params": jax.tree.map(noise, variables["params"])}
    codes = way.data.train.codes[0]
    images = step.training_images(way.spec, {"seed": 0}, 0, 0, codes.astype(np.float32) / 255)
    ours = way.spec.model.apply(variables, images, True).logits_BxY

    arrays = {"images": np.transpose(codes, (0, 3, 1, 2))}
    for path, array in jax.tree_util.tree_leaves_with_path(variables["params"]):
        key, array = path_name(path), np.asarray(array)
        if array.ndim == 4:
            array = np.transpose(array, (3, 2, 0, 1))
        if key == "Dense_0/kernel" and (place := _map_before(name, len(array))):
            # Ours is flattened in the order height, width, channels.
            array = array.reshape(*place, -1).transpose(2, 0, 1, 3).reshape(len(array), -1)
        arrays[key] = array.T if array.ndim == 2 else array
    np.savez(tmp_path / "arrays.npz", **arrays)
    job = ways.torch_job("torch", task, "cpu")
    folder = REPO / "rethink_jax" / "bench"
    script = [TORCH_PYTHON, "-c", TORCH_SCRIPT, folder, json.dumps(job), tmp_path / "arrays.npz"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    scale = float(np.abs(ours).max())
    np.testing.assert_allclose(json.loads(done.stdout), ours, atol=2e-4 * scale)


def _map_before(name, features):
    """Height, width and channels that are flattened before the first dense layer."""
    if name in ("inception", "vgg"):
        return None  # One place.
    channels = {"alexnet": 64, "digits": 1}.get(name, 3)
    size = round((features / channels) ** 0.5)
    return size, size, channels
