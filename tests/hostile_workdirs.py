"""Workdirs that are damaged, each in one way."""

import json
import os
import shutil

import commands

from rethink_jax.theory import cases


def _text(name, text):
    return lambda folder: next(folder.glob(name)).write_text(text)


def _json(name, change):
    def write(folder):
        path = next(folder.glob(name))
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return write


def _without(key):
    return lambda value: {k: v for k, v in value.items() if k != key}


def _nested(depth):
    return {"a": _nested(depth - 1)} if depth else 1


def _file(name, value):
    """A file with a text, or with anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value)
    return lambda folder: (folder / name).write_text(text)


def _widths(fields):
    """Pads the network of the trials of `two_seeds`."""

    def write(folder):
        (path,) = (folder / "choices").glob("widths.*.json")
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), fields)))

    return write


def _choice(**choices):
    whole = {"batching": "map", "lanes_per_device": 1, "convolutions": []}
    return {"group_id": "g", "device": "cpu", "choices": whole | choices}


def _cut_network(folder):
    for path in next(folder.glob("trials/*")).glob("network/**/*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def _other_network(folder):
    """The network of a trial of another config."""
    network = next(folder.glob("trials/*")) / "network"
    shutil.rmtree(network)
    other = next((folder.parent / "wider").glob("trials/*")) / "network"
    shutil.copytree(other, network)


# From the workdir of a finished sweep.
WORKDIRS = {
    "finished": lambda _: None,
    "header_text": _text("run.json", "{"),
    "header_bytes": lambda f: (f / "run.json").write_bytes(b"\xff\xfe"),
    "header_list": _text("run.json", "[]"),
    "header_nested": _text("run.json", "[" * 10**5),
    "header_version": _json("run.json", lambda h: h | {"format": 999}),
    "header_other_project": _text("run.json", '{"name": "my run", "steps": 10}'),
    "header_cut": _json("run.json", _without("fixed_fields")),
    "header_no_config": _json("run.json", _without("config")),
    "header_folder": lambda f: ((f / "run.json").unlink(), (f / "run.json").mkdir()),
    "other_images": _json(
        "run.json",
        lambda h: h | {"data": {"digits": h["data"]["digits"] | {"fingerprint": "0"}}},
    ),
    "result_text": _text("trials/*/result.json", "{"),
    "result_list": _text("trials/*/result.json", "[]"),
    "result_cut": _json("trials/*/result.json", _without("trial")),
    "result_nan": _text("trials/*/result.json", "NaN"),
    "curve_missing": lambda f: next(f.glob("trials/*/curve.csv")).unlink(),
    "curve_bytes": lambda f: next(f.glob("trials/*/curve.csv")).write_bytes(b"\xff\0\n1"),
    "curve_text": _text("trials/*/curve.csv", "a,b\n1,2\n"),
    "curve_empty": _text("trials/*/curve.csv", ""),
    "table_empty": _text("trials.csv", ""),
    "table_text": _text("trials.csv", "a,b\n1\n1,2,3\n"),
    "table_of_others": _text("trials.csv", "a,b\n1,2\n"),
    "measures_text": lambda f: (f / "measures.csv").write_text("a,b\n1,2\n"),
    "measures_bytes": lambda f: (f / "measures.csv").write_bytes(b"\xff\xfe\0"),
    "network_cut": _cut_network,
    "network_other": _other_network,
    "report_is_a_file": lambda f: (f / "report").write_text("mine"),
    "examples_cut": lambda f: os.truncate(f / "examples.npz", 100),
    "unfinished": lambda f: shutil.rmtree(f / "trials"),
    "header_data": _json("run.json", lambda h: h | {"data": {"digits": 3}}),
    "header_fixed": _json("run.json", lambda h: h | {"fixed_fields": [1]}),
    "result_final": _json("trials/*/result.json", lambda r: r | {"final": {"test_accuracy": "x"}}),
    "result_deep": _json("trials/*/result.json", lambda r: r | {"best": _nested(200)}),
    "run_text": _text("runs/*.json", "{"),
    "run_list": _text("runs/*.json", "[]"),
    "run_no_cpu": _json("runs/*.json", _without("cpu")),
    "run_devices": _json("runs/*.json", lambda r: r | {"devices": []}),
    "run_seconds": _json("runs/*.json", lambda r: r | {"seconds": "7"}),
    "run_data": _json("runs/*.json", lambda r: r | {"data": [1]}),
    "run_deep": _json("runs/*.json", lambda r: r | {"git": _nested(200)}),
    "run_is_a_folder": lambda f: (f / "runs" / "a.json").mkdir(),
    "widths_text": _file("choices/widths.0000.json", "{"),
    "widths_numbers": _file("choices/widths.0000.json", {"a": 3}),
    "widths_words": _file("choices/widths.0000.json", {"a": {"model.hidden": ["x"]}}),
    "widths_narrow": _widths({"model.hidden": [2]}),
    "widths_of_another": _widths({"model.width": 64}),
    "widths_of_more_layers": _widths({"model.hidden": [8, 8]}),
    "widths_a_number": _widths({"model.hidden": 8}),
    "choice_text": _file("choices/g.cpu.json", "{"),
    "choice_empty": _file("choices/g.cpu.json", {}),
    "choice_lanes": _file("choices/g.cpu.json", _choice(lanes_per_device=-1)),
    "choice_batching": _file("choices/g.cpu.json", _choice(batching="fast")),
    "choice_shape": _file("choices/g.cpu.json", _choice(convolutions=[{"lowering": "lax"}])),
    "table_bytes": lambda f: (f / "trials.csv").write_bytes(b"trial_id,status\xff\0\n"),
    "table_short": _text("trials.csv", "trial_id,status,stop_reason\n1\n"),
    "only_header": lambda f: [
        shutil.rmtree(p) if p.is_dir() else p.unlink() for p in f.iterdir() if p.name != "run.json"
    ],
    "claim_is_a_folder": lambda f: (f / "claims" / "0of1.000009.json").mkdir(),
}

# From the workdir of a case of theory.
THEORY = {
    "theory_finished": lambda _: None,
    "theory_cut": _json("theory/*.json", _without("found")),
    "theory_other": _json("theory/*.json", lambda r: r | {"found": {"a": 1}}),
    "theory_text": _text("theory/*.json", "<html>"),
    "theory_mixed": _json("theory/*.json", lambda r: r | {"experiment": "kernel"}),
    "theory_renamed": lambda f: next(f.glob("theory/*.json")).rename(
        f / "theory" / "kernel_0.json"
    ),
    "theory_evil": lambda f: (f / "theory" / "a\x1b[31m\nb.json").write_text("{"),
    "theory_is_a_file": lambda f: (shutil.rmtree(f / "theory"), (f / "theory").write_text("")),
}


def write_workdirs(folder, configs):
    """Runs two small sweeps and a case of theory, and copies what they wrote for each mistake."""
    for name, command, *args in (
        ("finished", "sweep", f"--config={configs}/two_seeds.py"),
        ("wider", "sweep", f"--config={configs}/two_seeds.py", "--config.trial.model.hidden=(7,)"),
        ("theory_finished", "theory", f"--config={configs}/theory_small.py"),
    ):
        outcome = commands.run(command, *args, f"--workdir={folder / name}")
        assert outcome.code == 0, outcome.err
    for good, changes in (("finished", WORKDIRS), ("theory_finished", THEORY)):
        for name, change in changes.items():
            if name != good:
                shutil.copytree(folder / good, folder / name)
            change(folder / name)
    assert cases.load(folder / "theory_finished")
