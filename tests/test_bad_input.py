"""Every mistake costs one line that says what to change, exit code 2, and nothing that was there.

A mistake is one line of a table: the command, its arguments, and words that the line must have.
Most are run inside this process (`commands`), some by a new one to see that both do the same.
"""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import commands
import hostile
import hostile_workdirs
import numpy as np
import pytest
from PIL import Image

from rethink_jax import cli, measure_rows, records, shown
from rethink_jax.data import readers

ROOT = Path(__file__).parents[1]
LONG = "x" * 300  # No file system takes such a name.
# A byte that is no UTF-8, what makes a terminal red, and what turns the direction of a text.
EVIL = os.fsdecode(b"\xff") + "\x1b[31m\u202e"
SEEN = r"\udcff\x1b[31m\u202e"  # As it is shown.


class Mistake(NamedTuple):
    command: str
    args: tuple[str, ...]
    words: tuple[str, ...]


def sweep(config, *args):
    """Arguments of a sweep of a config of `hostile`, or of the project's own."""
    path = config if "/" in config else f"{{tmp}}/configs/{config}.py"
    return (f"--config={path}", "--workdir={tmp}/new", *args)


def quick(*args):
    return sweep("configs/quickstart.py:quick", *args)


def given(fields, *words):
    """A mistake in --config.FIELD=VALUE of the quickstart."""
    return Mistake("sweep", quick(*(f"--config.{f}" for f in fields.split("|"))), words)


def config(name, *words, command="sweep"):
    return Mistake(command, sweep(name), words)


def data(name, *words, source="mnist"):
    """A mistake in the data files of `hostile`."""
    return Mistake("sweep", sweep(source, f"--config.data_files.dir={{tmp}}/data/{name}"), words)


def images(name, *words):
    return Mistake(
        "sweep", sweep("images", f"--config.trial.data.name=folder:{{tmp}}/data/{name}"), words
    )


def resumed(name, *words, args=()):
    """A sweep in a workdir of `hostile`."""
    path = "--workdir={tmp}/workdirs/" + name
    return Mistake("sweep", ("--config={tmp}/configs/two_seeds.py", path, *args), words)


def measured(name, *words, args=("--measures=norms",)):
    return Mistake("measure", ("--workdir={tmp}/workdirs/" + name, *args), words)


def reported(name, *words):
    return Mistake("report", ("--workdir={tmp}/workdirs/" + name,), words)


def status(name, *words):
    return Mistake("status", ("--workdir={tmp}/workdirs/" + name,), words)


def theory(*args, words):
    return Mistake("theory", sweep("configs/theorem1.py:quick", *args), words)


def bench(*args, words):
    return Mistake("bench", args, words)


MISTAKES = {
    # --- the config file
    "config_missing": Mistake(
        "sweep", ("--workdir={tmp}/new",), ("--config is missing", "configs/quickstart.py")
    ),
    "config_not_there": config("configs/nope.py", "configs/nope.py"),
    "config_is_a_folder": config("configs/figures", "configs"),
    "config_of_no_mode": config("configs/quickstart.py:fast", "full or quick", "'fast'"),
    "config_with_syntax_error": config("syntax", "invalid syntax", "syntax.py", "line 1"),
    "config_raises_key_error": config("key_error", "oh no"),
    "config_raises_value_error": config("value_error", "oh no", "ValueError"),
    "config_raises_os_error": config("os_error", "/nonexistent"),
    "config_asserts": config("assertion", "AssertionError"),
    "config_imports_nothing": config("no_import", "nothing_of_this_name"),
    "config_sets_wrong_type": config("field_type", "batch_size", "many"),
    "config_sets_a_new_field": config("new_field", "learning_rat", "optimizer.learning_rate"),
    "config_without_function": config("no_function", "has no function get_config"),
    "config_without_trial": config("no_trial", "config.trial", "default_config"),
    "config_is_a_number": config("a_number", "3", "ConfigDict"),
    "sweep_is_a_tuple": config("sweep_tuple", "config.sweep is (1, 2)", "axes by name"),
    "union_is_a_tuple": config("union_tuple", "config.sweep.union is (1, 2)", "axes by name"),
    "zipped_without_name": config("zipped_tuple", "config.sweep.zipped.seed is (1, 2)"),
    "zipped_of_unequal_length": config("unequal", "one length", "seed: 2", "data.seed: 1"),
    "the_same_trial_twice": config("twice", "same trial twice", "{{'seed': 1}}"),
    "two_axes_over_one_field": config("two_axes", "'seed' by two axes", "keep one"),
    "axis_is_a_set": config("set_for_axis", "seed is {{0, 1}}", "a tuple of values"),
    "trial_is_a_number": config("trial_number", "config.trial", "default_config"),
    "section_is_a_number": config("section_number", "'optimizer'"),
    "settings_are_a_number": config("settings_number", "'engine'"),
    "keys_are_numbers": config("keys_are_numbers", "1"),
    "none_for_a_number": config("none", "batch_size is None", "integer of at least 1"),
    "bool_for_a_number": config("bool", "seed is True", "integer from 0"),
    "bool_in_a_tuple": config("bool_in_tuple", "model.hidden is (8, True)", "each element an int"),
    "nan_for_a_number": config("nan", "learning_rate is nan", "a number of at least 0"),
    "list_for_a_text": config("list_for_text", "data.name is ['digits']", "a string"),
    "config_of_theory": config("configs/theorem1.py", "config of launch.theory"),
    "config_of_any_bytes": config(f"configs/{EVIL}.py", "configs/", SEEN),
    # --- the command line
    "flag_of_any_bytes": Mistake("sweep", quick(f"--{EVIL}=1"), (SEEN,)),
    "field_of_any_bytes": given(f"trial.{EVIL}=1", SEEN, "no such field"),
    "own_of_any_bytes": Mistake("sweep", quick(f"--own={{tmp}}/{EVIL}.py"), (SEEN,)),
    "huge_whole_number": given(f"trial.batch_size={10**400}", "batch_size is 1000", "at least 1"),
    "workdir_missing": Mistake(
        "sweep", ("--config=configs/quickstart.py",), ("--workdir is missing",)
    ),
    "unknown_flag": Mistake("sweep", quick("--wrkdir=x"), ("wrkdir", "Did you mean: workdir")),
    "hidden_by_an_axis": Mistake(
        "sweep",
        quick("--config.trial.seed=5"),
        ("--config.trial.seed decides nothing", "--config.sweep.seed=()"),
    ),
    "hidden_by_an_axis_of_theory": Mistake(
        "theory",
        ["--config=configs/theorem1.py:quick", "--workdir={tmp}/new", "--config.trial.labels=true"],
        ("--config.trial.labels decides nothing",),
    ),
    "shard_beyond_the_last": Mistake(
        "sweep", quick("--shard=4/4"), ("'4/4'", "0 <= i < n", "--shard=3/4")
    ),
    "shard_that_is_none": Mistake("sweep", quick("--shard=one"), ("'one'", "i/n")),
    "shard_of_no_cluster": Mistake("sweep", quick("--shard=auto"), ("SLURM", "--shard=i/n")),
    "reuse_of_nothing": Mistake(
        "sweep", quick("--reuse={tmp}/nope"), ("--reuse={tmp}/nope", "not a workdir")
    ),
    "workers_without_cores": Mistake(
        "sweep", quick("--executor=processes", "--workers=9999"), ("--workers=9999", "take at most")
    ),
    "workers_below_zero": Mistake(
        "sweep", quick("--executor=processes", "--workers=-1"), ("--workers is -1",)
    ),
    "two_ways_to_split": Mistake(
        "sweep",
        quick("--executor=processes", "--workers=1", "--shard=0/2"),
        ("--shard=0/2", "--executor=processes", "leave one out"),
    ),
    "unknown_executor": Mistake(
        "sweep", quick("--executor=slurm"), ("executor", "processes", "ray")
    ),
    "status_of_nothing": Mistake("status", ["--workdir={tmp}/nope"], ("not a workdir",)),
    "bench_of_no_executor": Mistake(
        "bench", ["--executors=rays"], ("'rays'", "did you mean 'ray'")
    ),
    "bench_of_no_workers": Mistake(
        "bench", ["--executors=processes", "--workers=two"], ("'two'", "--workers=1,2,4")
    ),
    "stray_argument": Mistake("sweep", quick("extra"), ("'extra'", "--name=value")),
    "flag_without_value": Mistake("sweep", ("--config",), ("config",)),
    "switch_with_a_word": Mistake("sweep", quick("--plan=maybe"), ("plan", "maybe")),
    "unknown_field": given(
        "trial.optimizer.learning_rat=0.1",
        "--config.trial.optimizer.learning_rat",
        "did you mean 'trial.optimizer.learning_rate'?",
    ),
    "unknown_section": given(
        "trial.optimzer.learning_rate=0.1", "did you mean 'trial.optimizer.learning_rate'?"
    ),
    "unknown_part": given("trail.batch_size=8", "did you mean 'trial.batch_size'?"),
    "unknown_model_field": given("trial.model.hiden=(8,)", "did you mean 'trial.model.hidden'?"),
    "field_of_another_network": given(
        "trial.model.batch_norm=False", "'batch_norm'", "inception", "rethink_jax.network("
    ),
    "unknown_axis": given("sweep.sed=(0,)", "--config.sweep.sed", "did you mean 'sweep.seed'?"),
    "unknown_setting": given("engine.lane=2", "did you mean 'engine.lanes'?"),
    "selection_of_nothing": given("only=model.name=cnn", "model.name=cnn", "mlp"),
    "selection_that_is_none": given("only=cnn", "'cnn'", "model.name=mlp"),
    "word_for_int": given("trial.batch_size=abc", "trial.batch_size", "'abc'"),
    "word_for_float": given("trial.optimizer.momentum=big", "momentum", "'big'"),
    "word_for_bool": given("trial.stop.when_fitted=maybe", "when_fitted", "maybe"),
    "fraction_for_int": given("trial.batch_size=8.5", "batch_size", "8.5"),
    "number_for_section": given("trial.optimizer=3", "trial.optimizer", "3"),
    "code_for_a_tuple": given("trial.model.hidden=__import__('os')", "model.hidden"),
    # --- values of fields
    "negative_batch": given("trial.batch_size=-8", "batch_size is -8", "at least 1"),
    "negative_seed": given("trial.data.seed=-1", "seed is -1", "from 0"),
    "huge_seed": given("trial.data.seed=2147483648", "2147483648", "from 0 to 2147483647"),
    "negative_epochs": given("trial.stop.max_epochs=-1", "max_epochs is -1", "at least 1"),
    "negative_rate": given("trial.optimizer.learning_rate=-0.1", "is -0.1", "at least 0"),
    "infinite_rate": given("trial.optimizer.learning_rate=inf", "is inf", "at least 0"),
    "batch_above_data": given(
        "trial.batch_size=129", "batch_size is 129", "128 training", "--config.trial.batch_size"
    ),
    "subset_above_data": given("trial.data.num_train=9999", "9999", "1442", "at most"),
    "unbalanced_subset": given(
        "trial.data.balanced=True|trial.data.num_train=1440", "cannot be balanced", "1440"
    ),
    "balanced_without_size": Mistake(
        "sweep", sweep("small", "--config.trial.data.balanced=True"), ("num_train", "set the size")
    ),
    "confusion_above_data": given("trial.data.num_confusion=9999", "num_confusion is 9999", "1442"),
    "prob_above_one": given("trial.corruption.label_prob=1.5", "1.5", "from 0 to 1"),
    "prob_below_zero": given("trial.corruption.label_prob=-0.1", "-0.1", "from 0 to 1"),
    "prob_nan": given("trial.corruption.label_prob=nan", "nan", "from 0 to 1"),
    "unknown_data": given("trial.data.name=digit", "did you mean 'digits'?"),
    "data_of_any_bytes": given(f"trial.data.name={EVIL}", SEEN, "one of digits"),
    "unknown_corruption": given("trial.corruption.pixels=shufled", "did you mean 'shuffled'?"),
    "unknown_model": given("trial.model.name=mpl", "did you mean 'mlp'?"),
    "unknown_optimizer": given("trial.optimizer.name=adm", "optimizer.name is 'adm'", "one of sgd"),
    "unknown_normalization": given(
        "trial.preprocess.normalize=imagnet", "did you mean 'imagenet'?"
    ),
    "unknown_measure_along": given(
        "measure.names=('norm',)|measure.every_epochs=1", "'norm'", "did you mean 'norms'?"
    ),
    "colours_of_grey_images": given("trial.preprocess.normalize=imagenet", "3 channels", "have 1"),
    "crop_above_image": given(
        "trial.preprocess.crop_size=9",
        "crop_size is 9",
        "8x8",
        "--config.trial.preprocess.crop_size",
    ),
    "crop_without_size": given(
        "trial.preprocess.random_crop=True",
        "random_crop is True without preprocess.crop_size",
    ),
    "size_of_images_in_memory": given("trial.data.image_size=16", "image_size is 16", "Leave it"),
    "decay_of_nothing": given(
        "trial.optimizer.weight_decay=0.1|trial.optimizer.decay_params=dense/.*",
        "'dense/.*'",
        "Dense_0/kernel",
    ),
    "decay_by_no_pattern": given("trial.optimizer.decay_params=(", "no regular expression", "'('"),
    "zero_width": given("trial.model.hidden=(0,)", "model.hidden", "at least 1"),
    "axis_of_wrong_type": given("sweep.seed=(0,'a')", "seed is 'a'", "an integer"),
    "axis_of_bad_value": given(
        "sweep.optimizer.learning_rate=(0.1,-1.0)", "learning_rate is -1", "at least 0"
    ),
    "negative_lanes": given("engine.lanes=-1", "engine.lanes is -1", "at least 0"),
    "too_many_devices": given("engine.devices=99", "engine.devices is 99", "at most"),
    # --- data files
    "data_missing": data("none", "no mnist in {tmp}/data/none", "data_files.download"),
    "data_folder_is_a_file": data("secret", "no mnist in {tmp}/data/secret", "data_files.dir"),
    "data_folder_of_any_letters": data(
        hostile.UNICODE, f"{{tmp}}/data/{hostile.UNICODE}/mnist lacks train-labels-idx1-ubyte"
    ),
    "data_folder_of_any_bytes": data(EVIL, "no mnist in {tmp}/data/", SEEN),
    "data_folder_of_a_long_name": data(
        LONG, "cannot read mnist", "{tmp}/data/xxx", "too long", "data_files.dir"
    ),
    "data_folder_with_a_zero_byte": config("zero_byte", "no mnist in", "data_files.dir"),
    "idx_missing": data("mnist_missing", "lacks t10k-labels-idx1-ubyte", "put the missing"),
    "idx_cut": data("mnist_cut", "train-images-idx3-ubyte is damaged", "5 x 4 x 6", "fetch it"),
    "idx_cut_gz": data("mnist_cut_gz", "t10k-labels-idx1-ubyte.gz is damaged", "whole gzip"),
    "idx_text_gz": data("mnist_text_gz", "train-images-idx3-ubyte.gz is damaged", "whole gzip"),
    "idx_flipped_gz": data("mnist_flipped_gz", "labels-idx1-ubyte.gz is damaged", "CRC"),
    "idx_of_another_type": data("mnist_magic", "not an idx file of 3-dimensional unsigned bytes"),
    "idx_of_absurd_size": data("mnist_huge", "do not hold 2147483648 x 2147483648 x 4"),
    "idx_bomb": data("mnist_bomb", "train-images-idx3-ubyte.gz is damaged", "more than"),
    "idx_label_out_of_range": data("mnist_label", "a train label is 10, outside 0 to 9"),
    "idx_lacks_a_label": data("mnist_labels", "5 train images with 4 labels", "one label per"),
    "idx_without_images": data("mnist_empty", "0 test images with 0 labels", "at least one"),
    "idx_of_two_sizes": data("mnist_sizes", "training and test images", "4x6", "6x4"),
    "idx_without_pixels": data("mnist_no_pixels", "0x6", "at least one pixel"),
    "idx_is_a_folder": data("mnist_folder", "lacks train-images-idx3-ubyte"),
    "idx_unreadable": data("mnist_unreadable", "cannot read", "Input/output", "data_files.dir"),
    "cifar_cut": data("bin_cut", "data_batch_2.bin is damaged", "3073-byte", source="cifar10"),
    "cifar_empty": data("bin_empty", "data_batch_2.bin is damaged", "0 bytes", source="cifar10"),
    "cifar_label": data("bin_label", "a train label is 200, outside 0 to 9", source="cifar10"),
    "cifar_py_missing": data("py_missing", "lacks test_batch", source="cifar10"),
    "cifar_py_cut": data("py_cut", "data_batch_4 is damaged", source="cifar10"),
    "cifar_py_code": data("py_code", "data_batch_1 is damaged", "system, wh", source="cifar10"),
    "cifar_py_label": data("py_label", "a train label is -1, outside 0 to 9", source="cifar10"),
    "cifar_py_nan": data("py_floats", "test_batch is damaged", "'f8'", source="cifar10"),
    "cifar_py_words": data("py_words", "test_batch is damaged", "no integers", source="cifar10"),
    "cifar_tar_code": data(
        "tar_code", "cifar-10-python.tar.gz is damaged", "system, which", source="cifar10"
    ),
    "cifar_tar_missing": data(
        "tar_missing", "cifar-10-binary.tar.gz", "lacks data_batch_5.bin", source="cifar10"
    ),
    "cifar_tar_cut": data("tar_cut", "cifar-10-python.tar.gz is damaged", source="cifar10"),
    "cifar_tar_of_text": data("tar_of_text", "not a whole tar archive", source="cifar10"),
    "cifar_tar_escapes": data("tar_escapes", "it lacks data_batch_1.bin", source="cifar10"),
    "images_missing": images("none", "no folder {tmp}/data/none", "train/CLASS"),
    "images_of_a_long_name": images(
        LONG, "cannot read folder:{tmp}/data/xxx", "File name too long"
    ),
    "images_without_val": images("images_no_val", "lacks val/ (or test/)"),
    "images_without_train": images("images_no_train", "lacks train/"),
    "images_of_an_unknown_class": images("images_class", "class 'c'", "has not"),
    "images_without_classes": images("images_flat", "has no class folders", "folder of its class"),
    "images_of_an_empty_class": images("images_empty", "train/a has no images", "take the folder"),
    "own_set_of_nan": config("own_nan", "own: train images are float64[4, 8, 8, 1]", "uint8[N"),
    "own_set_of_a_label": config("own_label", "a train label is 2, outside 0 to 1"),
    "own_set_of_objects": config("own_object_npy", "data set 'own'", "allow_pickle"),
    "own_set_cut": config("own_cut_npz", "data set 'own'", "zip"),
    "own_set_of_none": config("own_none", "data set 'own'", "None", "Dataset"),
    # --- the workdir of a sweep
    "workdir_is_a_file": resumed("../a_file", "cannot write", "a_file"),
    "workdir_below_a_file": resumed("../a_file/x", "cannot write", "a_file/x"),
    "workdir_cannot_be_made": Mistake(
        "sweep",
        ("--config={tmp}/configs/small.py", "--workdir=/proc/nothing"),
        ("cannot write to the workdir /proc/nothing", "--workdir"),
    ),
    "workdir_of_any_bytes": resumed(EVIL, SEEN, "bytes that are not UTF-8", "--workdir"),
    "workdir_of_a_long_name": resumed(LONG, "cannot write", "File name too long"),
    "workdir_of_another_config": resumed(
        "finished",
        "holds another experiment",
        "model.hidden: [4] there, (5,) now",
        "another --workdir",
        args=("--config.trial.model.hidden=(5,)",),
    ),
    "workdir_of_other_images": resumed("other_images", "images of digits", "begun with"),
    "workdir_of_another_version": resumed("header_version", "run.json", "this version"),
    "workdir_of_another_project": resumed("header_other_project", "run.json", "this version"),
    "workdir_with_a_cut_header": resumed("header_cut", "run.json", "fixed_fields"),
    "workdir_with_a_header_of_text": resumed(
        "header_text", "run.json is damaged", "another --workdir"
    ),
    "workdir_with_a_header_of_bytes": resumed(
        "header_bytes", "run.json is damaged", "another --workdir"
    ),
    "workdir_with_a_nested_header": resumed(
        "header_nested", "run.json is damaged", "another --workdir"
    ),
    "workdir_with_a_header_folder": resumed("header_folder", "cannot read", "run.json"),
    "workdir_with_a_result_of_text": resumed("result_text", "result.json is damaged", "delete"),
    "workdir_with_a_result_of_nothing": resumed("result_list", "result.json is damaged", "delete"),
    "workdir_with_a_cut_result": resumed("result_cut", "result.json is damaged", "delete"),
    "workdir_with_a_nan_result": resumed("result_nan", "result.json is damaged", "delete"),
    "workdir_with_a_run_of_text": resumed("run_text", "runs/", "is damaged", "delete it"),
    "workdir_with_a_run_of_nothing": resumed("run_list", "runs/", "is [], not a dict"),
    "workdir_with_a_run_of_data": resumed("run_data", "data is [1], not a dict", "delete it"),
    "workdir_with_a_run_folder": resumed("run_is_a_folder", "cannot read", "a.json", "delete it"),
    "workdir_with_widths_of_text": resumed("widths_text", "widths.0000.json is damaged"),
    "workdir_with_widths_of_numbers": resumed("widths_numbers", "a is 3, not a dict", "delete"),
    "workdir_with_widths_of_words": resumed("widths_words", "a.model.hidden", "delete it"),
    "workdir_with_narrow_widths": resumed("widths_narrow", "widths.*.json", "delete them"),
    "workdir_with_other_widths": resumed("widths_of_another", "'model.width': 64", "delete them"),
    "workdir_with_more_layers": resumed("widths_of_more_layers", "[8, 8]", "delete them"),
    "workdir_with_a_number_for_widths": resumed("widths_a_number", "delete them"),
    "workdir_with_an_empty_choice": resumed("choice_empty", "g.cpu.json", "lacks 'group_id'"),
    "workdir_with_negative_lanes": resumed("choice_lanes", "is -1, not a whole number from 0"),
    "workdir_with_a_fast_batching": resumed("choice_batching", "'fast', not 'auto' or 'map'"),
    "workdir_with_a_cut_choice": resumed("choice_shape", "convolutions[0] lacks 'height'"),
    "workdir_with_a_claim_folder": resumed("claim_is_a_folder", "cannot read", "delete it"),
    # --- launch.measure
    "measure_run": measured("run_no_cpu", "lacks 'cpu'", "delete it"),
    "measure_choice": measured("choice_lanes", "is -1, not", "delete it"),
    "measure_without_workdir": Mistake("measure", (), ("--workdir is missing",)),
    "measure_of_nothing": measured("none", "is not a workdir", "no run.json"),
    "measure_of_a_file": measured("../a_file", "a_file", "run.json"),
    "measure_of_theory": measured("theory_finished", "is not a workdir"),
    "measure_unknown": measured(
        "finished", "'norm'", "did you mean 'norms'?", args=("--measures=norm",)
    ),
    "measure_nothing": measured("finished", "--measures", "one_pass", args=("--measures=",)),
    "measure_unknown_trial": measured("finished", "no trial 'abc'", args=("--trials=abc",)),
    "measure_stray": measured("finished", "'norms'", "--name=value", args=("norms",)),
    "measure_unknown_flag": measured("finished", "measure", args=("--measure=norms",)),
    "measure_header": measured("header_text", "run.json is damaged", "another --workdir"),
    "measure_header_config": measured("header_no_config", "run.json", "config"),
    "measure_other_images": measured("other_images", "images of digits", "restore the data"),
    "measure_result": measured("result_cut", "result.json is damaged"),
    "measure_table": measured("measures_text", "measures.csv", "move it away"),
    "measure_bytes": measured("measures_bytes", "measures.csv", "move it away"),
    "measure_cut_network": measured("network_cut", "network", "cannot be read", "repeats"),
    "measure_other_network": measured("network_other", "network", "another config", "repeats"),
    # --- launch.report
    "report_without_workdir": Mistake("report", (), ("--workdir is missing",)),
    "report_of_empty_name": Mistake("report", ("--workdir=",), ("--workdir is missing",)),
    "report_of_nothing": reported("none", "is not a workdir", "no run.json"),
    "report_of_a_file": reported("../a_file", "a_file", "run.json"),
    "report_of_any_bytes": reported(EVIL, SEEN, "run.json"),
    "report_of_a_long_name": reported(LONG, "run.json"),
    "report_unfinished": reported("unfinished", "no trial", "run the sweep"),
    "report_header": reported("header_list", "run.json", "this version"),
    "report_cut_header": reported("header_no_config", "run.json", "config"),
    "report_result": reported("result_list", "result.json is damaged"),
    "report_of_nothing_planned": reported("only_header", "no trial of", "run the sweep"),
    "report_no_curve": reported("curve_missing", "curve.csv", "delete its folder"),
    "report_empty_curve": reported("curve_empty", "curve.csv", "delete its folder"),
    "report_bytes_in_curve": reported("curve_bytes", "curve.csv", "delete its folder"),
    "report_text_in_curve": reported("curve_text", "curve.csv", "delete its folder"),
    "report_empty_table": reported("table_empty", "trials.csv", "delete it"),
    "report_text_in_table": reported("table_text", "trials.csv", "delete it"),
    "report_other_table": reported("table_of_others", "trials.csv", "delete it"),
    "report_measures": reported("measures_text", "measures.csv", "no column", "move it"),
    "report_bytes_in_measures": reported("measures_bytes", "measures.csv", "move it"),
    "report_is_a_file": reported("report_is_a_file", "cannot write", "report"),
    "report_cut_theory": reported("theory_cut", "lacks 'found'", "delete it", "launch.theory"),
    "report_other_theory": reported("theory_other", "found lacks 'data'", "delete it and run"),
    "report_text_for_theory": reported("theory_text", "is damaged", "delete it and run"),
    "report_mixed_theory": reported("theory_mixed", "is damaged", "delete it and run"),
    "report_renamed_theory": reported("theory_renamed", "kernel_0.json", "another case"),
    "report_evil_name": reported("theory_evil", "a\\x1b[31m b.json is damaged"),
    "report_run": reported("run_no_cpu", "lacks 'cpu'", "runs/", "delete it"),
    "report_no_device": reported("run_devices", "devices is [], not a list of 1", "delete it"),
    "report_seconds_of_text": reported("run_seconds", "seconds is '7', not a number"),
    "report_deep_run": reported("run_deep", "nested too deeply", "delete it"),
    "report_header_data": reported("header_data", "data.digits is 3, not a dict"),
    "report_final_of_text": reported("result_final", "final.test_accuracy is 'x'", "delete"),
    "report_deep_result": reported("result_deep", "result.json is damaged (nested", "delete"),
    "report_choice": reported("choice_text", "g.cpu.json is damaged", "delete it"),
    # --- launch.status
    "status_of_a_file": status("../a_file", "a_file", "run.json"),
    "status_of_another_project": status("header_other_project", "run.json", "this version"),
    "status_of_theory": status("theory_finished", "not a workdir", "launch.report"),
    "status_header": status("header_fixed", "fixed_fields is [1], not a dict"),
    "status_bytes": status("table_bytes", "trials.csv is damaged", "delete it"),
    "status_short": status("table_short", "trials.csv is damaged", "delete it"),
    "status_claim": status("claim_is_a_folder", "cannot read", "0of1.000009.json", "delete it"),
    # --- launch.theory
    "theory_without_config": Mistake("theory", ("--workdir={tmp}/new",), ("--config is missing",)),
    "theory_without_workdir": Mistake(
        "theory", ("--config=configs/theorem1.py",), ("--workdir is missing",)
    ),
    "theory_of_a_sweep": config("configs/quickstart.py", "launch.sweep", command="theory"),
    "theory_unknown": config("theory_unknown", "did you mean 'memorizer'?", command="theory"),
    "theory_trial": config("theory_trial", "config.trial is 3", command="theory"),
    "theory_unknown_field": theory("--config.trial.dept=3", words=("did you mean 'trial.depth'?",)),
    "theory_unknown_axis": theory("--config.sweep.sed=(1,)", words=("'sweep.seed'?",)),
    "theory_word": theory("--config.trial.depth=two", words=("trial.depth", "'two'")),
    "theory_value": theory("--config.trial.depth=1", words=("trial.depth is 1", "at least 2")),
    "theory_choice": theory("--config.sweep.labels=('rand',)", words=("did you mean 'random'?",)),
    "theory_data": theory("--config.trial.data=digit", words=("did you mean 'digits'?",)),
    "theory_streamed": theory(
        "--config.trial.data=folder:{tmp}/data/images_text",
        words=("trial.data is 'folder:", "read from disk", "in memory: one of digits, synthetic"),
    ),
    "theory_imagenet": Mistake(
        "theory",
        sweep(
            "configs/kernel_interpolation.py",
            "--config.sweep.union={{}}",
            "--config.trial.data=imagenet",
        ),
        ("trial.data is 'imagenet'", "in memory: one of digits", "tfds:NAME"),
    ),
    "theory_streamed_axis": Mistake(
        "theory",
        sweep("configs/minimum_norm.py:quick", "--config.sweep.data=('digits','folder:x')"),
        ("trial.data is 'folder:x'", "in memory"),
    ),
    "theory_of_a_damaged_record": Mistake(
        "theory",
        ("--config={tmp}/configs/theory_small.py", "--workdir={tmp}/workdirs/theory_other"),
        ("found lacks 'data'", "delete it and run launch.theory again"),
    ),
    "theory_too_many": theory("--config.sweep.num_train=(9999,)", words=("'num_train'",)),
    "theory_workdir": Mistake(
        "theory",
        ("--config={tmp}/configs/theory_small.py", "--workdir={tmp}/a_file"),
        ("cannot write to the workdir {tmp}/a_file", "--workdir"),
    ),
    "theory_records_in_a_file": Mistake(
        "theory",
        ("--config={tmp}/configs/theory_small.py", "--workdir={tmp}/workdirs/theory_is_a_file"),
        ("cannot write to the workdir", "theory_is_a_file"),
    ),
    # --- launch.bench
    "bench_network": bench("--networks=digit", words=("'digit'", "did you mean 'digits'?")),
    "bench_way": bench("--ways=engin", words=("did you mean 'engine'?",)),
    "bench_extra": bench("--extras=refil", words=("did you mean 'refill'?",)),
    "bench_lanes": bench("--lanes=-1", words=("--lanes is -1", "at least 0")),
    "bench_batch": bench("--batch=x", words=("--batch=x",)),
    "bench_repeats": bench("--repeats=0", words=("--repeats is 0", "at least 1")),
    "bench_seconds": bench("--seconds=nan", words=("--seconds is nan", "more than 0")),
    "bench_forever": bench("--seconds=inf", words=("--seconds is inf",)),
    "bench_json": bench("--quick", "--json={tmp}/none/b.json", words=("--json", "none/b.json")),
    "bench_stray": bench("quick", words=("'quick'", "--name=value")),
}


def snapshot(folder):
    """What is below a folder: {path: size and time of change; of a folder, None}."""
    return {
        path: None if path.is_dir() else (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("bad")
    for name, write in (("configs", hostile.write_configs), ("data", hostile.write_data)):
        (tmp / name).mkdir()
        write(tmp / name)
    (tmp / "workdirs").mkdir()
    hostile_workdirs.write_workdirs(tmp / "workdirs", tmp / "configs")
    (tmp / "a_file").write_text("mine")
    return tmp


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    # So that a test of the limit needs no gigabytes.
    monkeypatch.setattr(readers, "MOST_BYTES", 2**22)


def filled(mistake, folder):
    return [a.format(tmp=folder) for a in mistake.args]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_line_and_changes_nothing(name, folder):
    mistake = MISTAKES[name]
    before = snapshot(folder)
    outcome = commands.run(mistake.command, *filled(mistake, folder))
    assert "Traceback" not in outcome.err, outcome.err
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1, outcome.err
    # Nothing moves a terminal's cursor, or has no code in UTF-8.
    assert outcome.err == f"{shown.line(outcome.err)}\n"
    # A newline that was escaped instead of taken out reads no better.
    assert "\\n" not in outcome.err, outcome.err
    for word in mistake.words:
        assert word.format(tmp=folder) in outcome.err
    assert outcome.code == cli.EXIT_USER
    # It is found before anything is announced or written.
    assert outcome.out == ""
    assert snapshot(folder) == before


REAL = ("config_with_syntax_error", "cifar_py_code", "report_empty_table", "bench_lanes")


@pytest.mark.parametrize("name", REAL)
def test_a_new_process_says_the_same(name, folder):
    mistake = MISTAKES[name]
    args = filled(mistake, folder)
    # Nothing is compiled that would be worth keeping in the user's cache.
    real = subprocess.run(
        [sys.executable, "-m", f"launch.{mistake.command}", *args],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert commands.Outcome(real.returncode, real.stdout, real.stderr) == commands.run(
        mistake.command, *args
    )


def test_every_command_is_there():
    own = {p.stem for p in (ROOT / "launch").glob("*.py")} - {"__init__"}
    assert {m.command for m in MISTAKES.values()} >= own
    assert len(MISTAKES) >= 60


# The last also in one that failed before anything was imported.
@pytest.mark.parametrize("name", ["negative_batch", "report_of_nothing", "bench_lanes"])
@pytest.mark.parametrize("flag", ["--debug", "--debug=true"])
def test_debug_shows_the_traceback(name, flag, folder):
    mistake = MISTAKES[name]
    outcome = commands.run(mistake.command, *filled(mistake, folder), flag)
    assert outcome.err.startswith("Traceback (most recent call last)")
    for word in mistake.words:
        assert word.format(tmp=folder) in outcome.err
    assert outcome.code != cli.EXIT_OK


def test_code_in_data_files_is_not_run(folder):
    """By all that went before; read without care, each of these files makes the canary."""
    made = folder / "canary"
    assert not made.exists()
    batch = folder / "data" / "py_code" / "cifar-10-batches-py" / "data_batch_1"
    pickle.loads(batch.read_bytes())
    assert made.exists()
    made.unlink()


@pytest.mark.parametrize(
    ("name", "word"),
    [("images_text", "neither a JPEG nor a PNG"), ("images_cut", "put a whole 8-bit JPEG or PNG")],
)
def test_an_image_that_is_found_damaged_while_running(name, word, folder, tmp_path):
    path = f"folder:{folder}/data/{name}"
    outcome = commands.run(
        "sweep",
        f"--config={folder}/configs/images.py",
        f"--workdir={tmp_path}",
        f"--config.trial.data.name={path}",
    )
    assert outcome.code == cli.EXIT_USER
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ") and "train/a/0.png" in line and word in line


def test_nothing_is_measured_where_nothing_can_be_written(folder, monkeypatch):
    def refuse(folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

    monkeypatch.setattr(measure_rows, "check_writable", refuse)
    path = folder / "workdirs" / "finished"
    outcome = commands.run("measure", f"--workdir={path}", "--measures=norms")
    said = f"error: cannot write {path}/measures.csv: Read-only file system; make room there"
    assert outcome.code == cli.EXIT_USER and outcome.err.startswith(said)


def test_images_in_folders_of_any_bytes(tmp_path):
    """Class names and file names that are not UTF-8, or have controls in them, are names."""
    for split in ("train", "val"):
        for name in (EVIL, "b\n<b>"):
            folder = tmp_path / f"set{EVIL}" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = np.full((8, 8, 3), 99 * number, np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}{EVIL}.png")
    hostile.write_configs(tmp_path)
    runs = [
        ("sweep", f"--config={tmp_path}/images.py", "--config.trial.stop.max_epochs=1",
         f"--config.trial.data.name=folder:{tmp_path}/set{EVIL}"),
        ("status",), ("report",),
    ]  # fmt: skip
    for command, *args in runs:
        outcome = commands.run(command, f"--workdir={tmp_path}/w", *args)
        assert outcome.code == 0, outcome.err
        assert outcome.out == shown.lines(outcome.out)
    page = (tmp_path / "w" / "report" / "index.html").read_text(encoding="utf-8")
    assert SEEN in page and page == shown.lines(page)


def test_a_trial_that_diverges_is_a_row_of_its_own(folder, tmp_path):
    outcome = commands.run(
        "sweep",
        f"--config={folder}/configs/two_seeds.py",
        f"--workdir={tmp_path}",
        "--config.sweep.optimizer.learning_rate=(0.1,1e30)",
        "--config.sweep.seed=(0,)",
    )
    assert "Traceback" not in outcome.err
    results = records.Workdir(tmp_path).finished().values()
    found = {r["trial"]["optimizer"]["learning_rate"]: r["status"] for r in results}
    assert found == {0.1: "finished", 1e30: "diverged"}
