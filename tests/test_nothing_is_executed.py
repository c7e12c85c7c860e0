"""Nothing in a workdir or a data file is ever executed, unpickled, or put unescaped into a page."""

import ast
import html.parser
import json
from pathlib import Path

import numpy as np
import pytest
from test_report import CIFAR_MLP, made_workdir

from rethink_jax import records, report
from rethink_jax.theory import cases

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    p for top in ("rethink_jax", "launch", "configs") for p in (ROOT / top).rglob("*.py")
)

# --- the code -------------------------------------------------------------------------------------

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pd.read_pickle",
         "pickle.load", "pickle.loads", "runpy.run_path", "SourceFileLoader",
         "jsonpickle.decode"}  # fmt: skip


def dotted(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([*([node.id] if isinstance(node, ast.Name) else ["?"]), *parts[::-1]])


def dangers(code):
    """(line, what) of everything in a source text that could execute what it reads."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            for name in names:
                if name and name.split(".")[0] in MODULES:
                    yield node.lineno, f"import {name}"
        if not isinstance(node, ast.Call):
            continue
        name, keywords = dotted(node.func), {k.arg: k.value for k in node.keywords}
        if name in CALLS:
            yield node.lineno, name
        allows = keywords.get("allow_pickle")
        if name in ("np.load", "numpy.load", "jnp.load"):
            if not (isinstance(allows, ast.Constant) and allows.value is False):
                yield node.lineno, f"{name} without allow_pickle=False"
        elif allows is not None and not (isinstance(allows, ast.Constant) and not allows.value):
            yield node.lineno, "allow_pickle"
        shell = keywords.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and not shell.value):
            yield node.lineno, "shell=True"
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("extractall", "extract"):
            yield node.lineno, f"{name} unpacks to disk"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml",
        "eval('1')",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=allowed)",
        "np.save(path, x, allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "tar.extractall()",
        "pd.read_pickle(path)",
    ],
)
def test_the_scan_finds_it(code):
    assert list(dangers(code))


def test_no_code_of_the_project_executes_what_it_reads():
    assert len(SOURCES) > 80
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in SOURCES
        for line, what in dangers(path.read_text())
    ]
    # The one exception is a file that the user names for it, with --own.
    (own,) = found
    assert own.startswith("rethink_jax/cli.py:") and own.endswith("SourceFileLoader")


# --- the page -------------------------------------------------------------------------------------

EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>&amp; $\\frac{$ \N{SNOWMAN}"


class Page(html.parser.HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def checked(page):
    """The text of a page that runs nothing and loads nothing."""
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert "<script" not in text.lower()
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form")
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:image/png;base64,") or (
                name not in attributes
            )
    return "".join(parsed.text)


def test_what_a_config_or_file_says_is_text_in_the_page(tmp_path):
    """Class names, the data set's name, commands, paths, versions, examples, measures."""
    nested = [CIFAR_MLP | {"seed": s, "data": {"name": f"tfds:{EVIL}"}} for s in (0, 1)]
    final = {"train_accuracy": 1.0, "test_accuracy": 0.5, "test_corrupted_accuracy": 0.5}
    results = [{"fit": 3, "loss": 1.0, "final": final} for _ in nested]
    workdir = made_workdir(tmp_path / "a <b> 'c'", nested, results, name=f"tfds:{EVIL}")
    directory = records.Workdir(workdir)
    run = directory.header()
    run["data"][f"tfds:{EVIL}"]["classes"] = [EVIL] * 10
    run["config"]["trial"]["note"] = EVIL
    run["runs"][0] |= {
        "command": ["sweep", EVIL],
        "git": {"commit": EVIL},
        "cpu": {"model": EVIL, "cores": 2},
        "devices": [EVIL],
    }
    (workdir / "run.json").write_text(json.dumps(run))
    directory.write_examples({EVIL.replace("/", ""): np.zeros((8, 8, 8, 1), np.uint8)})
    rows = ["trial_id,measure,value,status,reason"]
    rows += [
        f'{p.name},"{EVIL.replace(chr(34), "")}",1.5,ok,' for p in (workdir / "trials").iterdir()
    ]
    (workdir / "measures.csv").write_text("\n".join(rows) + "\n")
    built = report.build(workdir)
    text = checked(built.page)
    assert "<script>alert('x')</script>" in text
    assert list(workdir.rglob("*.png"))


def test_records_of_theory_are_text_in_the_page(tmp_path):
    config = {"experiment": "memorizer", "trial": {"num_train": 20}}
    list(cases.run(config, tmp_path, ["theory", EVIL]))
    (path,) = (tmp_path / "theory").glob("*.json")
    record = json.loads(path.read_text())
    record["found"]["data"] |= {"name": EVIL, "labels": EVIL}
    record["run"]["git"] = {"commit": EVIL}
    path.write_text(json.dumps(record))
    built = report.build(tmp_path)
    assert EVIL[:27] in checked(built.page)
