"""What a process is set up with before jax looks for devices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rethink_jax import devices

REPO = Path(__file__).parents[1]

COMPILES = """
from rethink_jax import devices
devices.setup()
import logging
logging.basicConfig(level=logging.DEBUG)
import jax
jax.jit(lambda x: x + 41)(1)
"""


@pytest.fixture
def environment(monkeypatch):
    """The environment after the setup, from one that is given."""

    def after(**given):
        monkeypatch.setattr(os, "environ", {"HOME": "/home/me"} | given)
        devices.setup()
        return dict(os.environ)

    return after


def test_each_core_is_a_device_with_one_thread(environment):
    flags = environment()["XLA_FLAGS"].split()
    cores = devices.available_cores()
    assert f"--xla_force_host_platform_device_count={cores}" in flags
    assert "--xla_cpu_multi_thread_eigen=false" in flags


def test_threads_of_linear_algebra_are_one_unless_the_user_says(environment):
    assert environment()["OPENBLAS_NUM_THREADS"] == "1"
    assert environment(OPENBLAS_NUM_THREADS="4")["OPENBLAS_NUM_THREADS"] == "4"


def test_flags_of_the_user_stay(environment):
    given = "--xla_force_host_platform_device_count=7 --xla_dump_to=x"
    flags = environment(XLA_FLAGS=given)["XLA_FLAGS"]
    assert flags == f"{given} --xla_cpu_multi_thread_eigen=false"


def test_compiled_programs_are_kept_in_the_home_folder(environment):
    env = environment()
    assert env["JAX_COMPILATION_CACHE_DIR"] == "/home/me/.cache/rethink_jax/xla"
    assert float(env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]) <= 0.1
    # jax's own defaults are what is wanted of these: entries of any size, a GPU's autotuning.
    assert not {k for k in env if "MIN_ENTRY_SIZE" in k or "XLA_CACHES" in k or "ENABLE" in k}


def test_cache_of_the_user_stays(environment):
    given = {
        "JAX_COMPILATION_CACHE_DIR": "/scratch/mine",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3",
    }
    assert given.items() <= environment(**given).items()


def compile_once(cache, cwd):
    """What jax says of its caches while a process compiles a program."""
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(REPO),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILES], cwd=cwd, env=env, capture_output=True, text=True,
        timeout=100, check=True,
    )  # fmt: skip
    return done.stderr


def test_a_second_process_reuses_what_the_first_compiled(tmp_path):
    cache = tmp_path / "new" / "cache"
    first = compile_once(cache, tmp_path)
    assert "MISS for 'jit__lambda'" in first
    # Where a GPU's autotuning is kept; made by XLA, and only there.
    assert f"Enabling XLA autotuning cache at '{cache}/" in first
    assert [p for p in cache.iterdir() if p.name.startswith("jit__lambda")]
    assert "cache hit for 'jit__lambda'" in compile_once(cache, tmp_path)


def test_an_empty_folder_turns_all_caches_off(tmp_path):
    said = compile_once("", tmp_path)
    assert "get_compile_options" in said  # It is the log of a compilation.
    assert "autotuning cache" not in said
    assert not list(tmp_path.iterdir())
