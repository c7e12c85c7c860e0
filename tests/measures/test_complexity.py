"""Capacity measures against known answers and against the formulas in plain numpy."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from rethink_jax.measures import complexity, jiang, margins, norms, paths
from rethink_jax.measures.subject import Subject
from rethink_jax.schema import UserError

ALL = {
    **{name: m for part in (margins, norms, paths) for name, m in part.MEASURES.items()},
    **complexity.MEASURES,
    **jiang.MEASURES,
}


# One of them in float32, as networks are measured in a sweep.
FIXTURES = {"mlp_nobias": jnp.float64, "mlp_bias": jnp.float32, "vgg_nobn": jnp.float64}


class Known(NamedTuple):
    """A network with known answers, and all measures of it.

    trained, untrained, zero: of the network, of its initial weights, and of weights that are all 0,
      measured at once
    rtol: for what is compared with the known answers
    """

    subject: Subject
    references: dict
    trained: dict
    untrained: dict
    zero: dict
    rtol: float

    def check(self, expected, prefix="", suffix="", of=lambda logged: logged):
        for name, value in expected.items():
            found = of(self.trained[prefix + name + suffix].astype(float))
            np.testing.assert_allclose(found, value, rtol=self.rtol, err_msg=name)


@pytest.fixture(scope="module", params=FIXTURES)
def known(request):
    dtype = FIXTURES[request.param]
    with jax.enable_x64(dtype == jnp.float64):
        subject, references, _ = oracles.load(request.param, dtype)

        @jax.jit
        @jax.vmap
        def measure(variables):
            given = dataclasses.replace(subject, variables=variables)
            return {name: value(given) for name, value in ALL.items()}

        start = subject.initial_variables
        three = (subject.variables, start, jax.tree.map(jnp.zeros_like, start))
        found = measure(jax.tree.map(lambda *leaves: jnp.stack(leaves), *three))
    lanes = [{name: np.asarray(value)[n] for name, value in found.items()} for n in range(3)]
    yield Known(subject, references, *lanes, 1e-10 if dtype == jnp.float64 else 1e-4)


def test_known_answers_of_neyshabur_2017(known):
    same_name = {
        "neyshabur_l2": "l2",
        "neyshabur_spectral": "spectral_rows_reshaped",
        "neyshabur_spectral_exact": "spectral_rows_exact",
        "neyshabur_l1_path": "l1_path_nobias_maxpool",
        "neyshabur_l1_path_sumpool": "l1_path_nobias_sumpool",
        "neyshabur_l2_path": "l2_path_nobias_maxpool",
        "neyshabur_l2_path_sumpool": "l2_path_nobias_sumpool",
    }
    answers = {name: known.references["neyshabur2017"][key] for name, key in same_name.items()}
    known.check(answers, of=np.exp)


def test_what_is_plotted_has_no_factors_of_depth_and_width(known):
    layers, found = known.references["layers"], known.trained
    depth = len(layers)
    widths = math.log(math.prod(layer["h_rows"] for layer in layers))
    units = math.log(math.prod(layer["h_units"] for layer in layers))
    factors = {
        "neyshabur_l2": depth * math.log(4),
        "neyshabur_l1_path": depth * math.log(4),
        "neyshabur_l2_path": depth * math.log(4) + widths,
        "neyshabur_spectral": widths,
        "neyshabur_spectral_circular": widths,
    }
    for name, factor in factors.items():
        np.testing.assert_allclose(found[name] - found[f"{name}_plotted"], factor, rtol=1e-6)
    for name in "neyshabur_l2_path", "neyshabur_spectral_exact":
        np.testing.assert_allclose(found[f"{name}_units"] - found[name], units - widths, atol=1e-5)


def test_bartletts_complexity_and_margins(known):
    subject, references = known.subject, known.references
    layers, gamma = references["layers"], references["neyshabur2017"]["gamma"]
    for kind, key in ("", "spec_reshaped"), ("_exact", "spec_exact_zero_padded"):
        spectral = np.array([layer.get(key, layer["spec_reshaped"]) for layer in layers])
        moved = np.array([layer["dist_l21"] for layer in layers])
        complexity_ = np.prod(spectral) * np.sum((moved / spectral) ** (2 / 3)) ** 1.5
        size = np.linalg.norm(np.asarray(subject.images_NxHxWxC)) / len(subject.labels_N)
        expected = {
            "spectral_complexity": complexity_,
            "spectral_margin": gamma / np.prod(spectral),
            "bartlett_margin": gamma / complexity_ / size,
        }
        known.check(expected, suffix=kind, of=np.exp)


def test_complexity_from_zero_takes_the_weights_themselves():
    subject, references, _ = oracles.load("mlp_nobias")
    spectral, l21 = (
        np.array([layer[key] for layer in references["layers"]]) for key in ("spec_reshaped", "l21")
    )
    expected = np.prod(spectral) * np.sum((l21 / spectral) ** (2 / 3)) ** 1.5
    found = complexity.spectral_complexity(subject, reference="zero")
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-12)


def test_norms_and_bounds_of_the_authors_code(known):
    """As that code has them: products not squared, by the 5th percentile once."""
    subject, references = known.subject, known.references
    layers, gamma = references["layers"], references["margin"]["np_percentile_5"]
    of = {key: np.array([layer[key] for layer in layers]) for key in layers[0] if key in REAL}
    kernels = [np.asarray(layer["kernel"]) for layer in subject.params.values()]
    matrices = [kernel.reshape(-1, kernel.shape[-1]) for kernel in kernels]
    singular = [np.linalg.svd(matrix, compute_uv=False) for matrix in matrices]
    path = references["path_sums"]
    expected = {
        "l1_inf": np.prod(of["l1inf"]),
        "frobenius": np.prod(of["fro"]),
        "l3_1.5": np.prod(of["l3_15"]),
        "spectral_reshaped": np.prod(of["spec_reshaped"]),
        "nuclear": np.prod(of["nuclear"]),
        "schatten_1.5": np.prod([np.sum(s**1.5) ** (1 / 1.5) for s in singular]),
        **{f"path_l{p}": path[f"p{p}_maxpool_bias"]["root"] for p in ("1", "1.5", "2")},
    }
    m, d = len(subject.labels_N), len(layers)
    alpha = math.sqrt(d + math.log(math.prod(subject.images_NxHxWxC.shape[1:])))
    count = sum(leaf.size for leaf in jax.tree.leaves(subject.params))
    l21 = np.sum((of["dist_l21"] / of["spec_reshaped"]) ** (2 / 3)) ** 1.5
    fro = np.sqrt(np.sum(of["h_rows"] * (of["dist_fro"] / of["spec_reshaped"]) ** 2))
    expected |= {
        "bound_l1_inf": alpha * expected["l1_inf"] / m**0.5,
        "bound_frobenius": alpha * expected["frobenius"] / m**0.5,
        "bound_l3_1.5": alpha * expected["l3_1.5"] / m ** (1 / 3),
        "bound_spec_l2_1": (
            math.log(m) * math.log(count) * expected["spectral_reshaped"] * l21 / m**0.5
        ),
        "bound_spec_frobenius": d * expected["spectral_reshaped"] * fro / m**0.5,
    }
    assert {f"authors_{name}" for name in expected} == {n for n in ALL if n.startswith("authors")}
    known.check(expected, "authors_", of=lambda logged: np.exp(logged) * gamma)


REAL = {
    *("fro", "spec_reshaped", "nuclear", "l1inf", "l21", "l3_15", "h_rows"),
    *("dist_fro", "dist_spec", "dist_l21"),
}


def test_measures_of_jiang_2019(known):
    """By the formulas of the code of Dziugaite et al. 2020, before its division by m."""
    references, layers = known.references, known.references["layers"]
    fro, spec, moved, moved_spec = (
        np.array([layer[key] ** 2 for layer in layers])
        for key in ("fro", "spec_reshaped", "dist_fro", "dist_spec")
    )
    margin = 2 * math.log(references["margin"]["kthvalue_m_div_10"])
    path = math.log(references["path_sums"]["p2_maxpool_bias"]["sum"])
    d, log_spec, log_fro = len(layers), np.sum(np.log(spec)), np.sum(np.log(fro))
    expected = {
        "20_params": sum(math.prod(layer["shape"]) for layer in layers),
        "22_log_inverse_margin": -margin,
        "29_log_spec_init_main": log_spec - margin + math.log(np.sum(moved / spec)),
        "30_log_spec_orig_main": log_spec - margin + math.log(np.sum(fro / spec)),
        "31_log_prod_of_spec_over_margin": log_spec - margin,
        "32_log_prod_of_spec": log_spec,
        "33_fro_over_spec": np.sum(fro / spec),
        "34_log_sum_of_spec_over_margin": math.log(d) + (log_spec - margin) / d,
        "35_log_sum_of_spec": math.log(d) + log_spec / d,
        "36_log_prod_of_fro_over_margin": log_fro - margin,
        "37_log_prod_of_fro": log_fro,
        "38_log_sum_of_fro_over_margin": math.log(d) + (log_fro - margin) / d,
        "39_log_sum_of_fro": math.log(d) + log_fro / d,
        "40_fro_dist": np.sum(moved),
        "41_dist_spec_init": np.sum(moved_spec),
        "42_param_norm": np.sum(fro),
        "43_log_path_norm_over_margin": path - margin,
        "44_log_path_norm": path,
    }
    plain = {n for n in ALL if n.startswith("jiang") and not n.endswith("circular")}
    assert {f"jiang_{name}" for name in expected} == plain
    known.check(expected, "jiang_")


def test_the_adjustment_for_the_number_of_images():
    assert jiang.per_sample(jnp.asarray(8.0), 2, log=False) == 2
    logged = jiang.per_sample(jnp.log(8.0), 2, log=True)
    np.testing.assert_allclose(logged, math.log(2))


# --- all measures ---------------------------------------------------------------------------------


def test_no_measure_is_ever_nan(known):
    for name in ALL:
        for found in known.trained, known.untrained, known.zero:
            assert not np.isnan(found[name]), name
        assert np.isfinite(known.trained[name]), name
        assert known.trained[name].dtype == known.subject.images_NxHxWxC.dtype, name


def test_untrained_networks(known):
    """They have not moved, and most of their margins are negative: bounds say nothing."""
    assert known.untrained["distance_frobenius"] == 0
    assert known.untrained["log_product_moved_nuclear"] == -np.inf
    assert known.untrained["margin_5_literal"] < 0
    for name in (
        "neyshabur_l2",
        "neyshabur_l1_path",
        "authors_frobenius",
        "jiang_22_log_inverse_margin",
    ):
        assert known.untrained[name] == np.inf


def test_measures_that_need_the_initial_weights_say_so():
    subject, _, _ = oracles.load("mlp_nobias")
    subject = dataclasses.replace(subject, initial_variables=None)
    with pytest.raises(UserError, match="this measure needs the initial weights"):
        complexity.MEASURES["spectral_complexity"](subject)


def test_a_bound_of_a_single_image_is_refused():
    subject, _, _ = oracles.load("mlp_nobias")
    one = dataclasses.replace(
        subject, images_NxHxWxC=subject.images_NxHxWxC[:1], labels_N=subject.labels_N[:1]
    )
    with pytest.raises(UserError, match="at least 2 images"):
        complexity.MEASURES["authors_bound_spec_l2_1"](one)
