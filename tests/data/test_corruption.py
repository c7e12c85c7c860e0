"""Corrupted labels and pixels: what the paper says, for every entry of LABELS and PIXELS.

All draws have fixed seeds, so a test passes always or never; 5 standard deviations and a p-value of
1e-6 are the bounds that a right implementation would exceed for about one seed in a million.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rethink_jax import streams
from rethink_jax.data import corruption
from rethink_jax.data.corruption import PixelCorruptionSpec, corrupt_pixels, pixel_stats

CLASSES = 10
SIGMAS, P_VALUE = 5, 1e-6
PIXEL_KINDS = [kind for kind in corruption.PIXELS if kind != "none"]
HEIGHT, WIDTH = 5, 7


def labels_of(count=2000):
    return np.random.default_rng(0).integers(0, CLASSES, count).astype(np.int32)


def redraw(labels, kind="uniform", prob=0.5, seed=0, name=streams.LABELS, classes=CLASSES):
    return np.asarray(
        corruption.corrupt_labels(jnp.asarray(labels), kind, prob, seed, name, classes)
    )


def images_of(count):
    """Random colours, each channel with a mean and a deviation of its own."""
    rng = np.random.default_rng(1)
    high = np.array([256, 128, 160])
    return rng.integers([0, 60, 0], high, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)


def numbered(count):
    """Images whose pixel k has the colour (k, k + 35, k + 70): no two pixels are alike."""
    image = np.arange(HEIGHT * WIDTH)[:, None] + HEIGHT * WIDTH * np.arange(3)[None]
    image = image.reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
    return np.repeat(image[None], count, axis=0)


def corrupt(images, kind, fraction=1.0, strength=1.0, seed=0, stats=None, test=False):
    spec = PixelCorruptionSpec(kind, fraction, strength, seed)
    return corrupt_pixels(images, spec, stats or pixel_stats(images), test)


def assert_equal_sets(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def flat(images):
    return images.reshape(len(images), -1, images.shape[-1])


# --- labels, every kind ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", corruption.LABELS)
def test_labels_are_deterministic(kind):
    labels = labels_of()
    first = redraw(labels, kind)
    np.testing.assert_array_equal(first, redraw(labels, kind), strict=True)
    assert first.dtype == np.int32 and first.shape == labels.shape
    assert (first != labels).any()


@pytest.mark.parametrize("kind", corruption.LABELS)
def test_labels_differ_across_seeds_and_between_training_and_test(kind):
    labels = labels_of()
    drawn = [redraw(labels, kind, seed=seed) for seed in range(4)]
    drawn += [redraw(labels, kind, seed=seed, name=streams.TEST_LABELS) for seed in range(4)]
    assert len({d.tobytes() for d in drawn}) == len(drawn)


@pytest.mark.parametrize("kind", corruption.LABELS)
def test_labels_are_true_at_probability_0(kind):
    labels = labels_of()
    np.testing.assert_array_equal(redraw(labels, kind, prob=0.0), labels, strict=True)


@pytest.mark.parametrize("kind", corruption.LABELS)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_labels_stay_in_range(kind, classes):
    labels = labels_of() % classes
    for prob in (0.3, 1.0):
        drawn = redraw(labels, kind, prob, classes=classes)
        assert drawn.min() >= 0 and drawn.max() < classes


@pytest.mark.parametrize("kind", corruption.LABELS)
def test_labels_of_traced_probabilities_and_seeds_are_the_same(kind):
    """A sweep may draw the labels of many trials in one program."""
    labels = jnp.asarray(labels_of(200))
    probs, seeds = np.float32([0.0, 0.25, 1.0]), np.arange(3)
    draw = lambda p, s: corruption.corrupt_labels(labels, kind, p, s, streams.LABELS, CLASSES)  # noqa: E731
    together = jax.vmap(draw)(probs, seeds)
    for row, prob, seed in zip(np.asarray(together), probs, seeds, strict=True):
        np.testing.assert_array_equal(row, redraw(labels, kind, float(prob), int(seed)))


# --- labels, uniform ------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [0, 9])
@pytest.mark.parametrize("name", [streams.LABELS, streams.TEST_LABELS])
def test_uniform_draws_all_classes_alike_whatever_the_true_one(true, name):
    drawn = redraw(np.full(20000, true, np.int32), prob=1.0, name=name)
    counts = np.bincount(drawn, minlength=CLASSES)
    assert scipy.stats.chisquare(counts).pvalue > P_VALUE
    # In words: a redrawn label is the true one for about a tenth of the images.
    assert counts[true] > 0


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9, 1.0])
def test_uniform_changes_p_times_1_minus_1_over_y_of_the_labels(prob, classes):
    labels = labels_of(20000) % classes
    changed = (redraw(labels, prob=prob, classes=classes) != labels).mean()
    expected = prob * (1 - 1 / classes)
    deviation = math.sqrt(expected * (1 - expected) / len(labels))
    assert abs(changed - expected) < SIGMAS * deviation


def test_uniform_draws_do_not_depend_on_their_neighbours():
    drawn = redraw(np.zeros(20000, np.int32), prob=1.0)
    pairs = np.bincount(CLASSES * drawn[:-1] + drawn[1:], minlength=CLASSES**2)
    assert scipy.stats.chisquare(pairs).pvalue > P_VALUE


def test_uniform_classes_do_not_depend_on_which_labels_are_redrawn():
    drawn = redraw(np.zeros(20000, np.int32), prob=0.3)
    counts = np.bincount(drawn, minlength=CLASSES)[
        1:
    ]  # A redrawn 0 cannot be told from a kept one.
    assert scipy.stats.chisquare(counts).pvalue > P_VALUE


def test_uniform_is_coupled_across_probabilities():
    labels = labels_of()
    everywhere = redraw(labels, prob=1.0)
    before = np.zeros(len(labels), bool)
    for prob in (0.1, 0.3, 0.6, 0.9):
        drawn = redraw(labels, prob=prob)
        changed = drawn != labels
        assert (changed >= before).all() and changed.sum() > before.sum()
        np.testing.assert_array_equal(drawn[changed], everywhere[changed])
        before = changed


# --- pixels, every kind ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PIXEL_KINDS)
@pytest.mark.parametrize("test", [False, True])
def test_pixels_are_deterministic(kind, test):
    images = images_of(20)
    kept = images.copy()
    first = corrupt(images, kind, fraction=0.7, strength=0.6, test=test)
    assert_equal_sets(first, corrupt(images, kind, fraction=0.7, strength=0.6, test=test))
    np.testing.assert_array_equal(images, kept)
    assert first.codes.dtype == np.uint8 and first.codes.shape == images.shape
    assert first.scale.dtype == first.offset.dtype == np.float32
    assert first.scale.shape == first.offset.shape == (20,)
    assert first.pixels().dtype == np.float32 and first.pixels().shape == images.shape
    assert (first.pixels() != images).any()


@pytest.mark.parametrize("kind", PIXEL_KINDS)
@pytest.mark.parametrize("test", [False, True])
def test_pixels_differ_across_seeds(kind, test):
    drawn = [corrupt(numbered(3), kind, seed=seed, test=test).pixels() for seed in range(5)]
    assert len({d.tobytes() for d in drawn}) == len(drawn)


@pytest.mark.parametrize("kind", corruption.PIXELS)
@pytest.mark.parametrize(("fraction", "strength"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_pixels_are_untouched_at_fraction_0_or_strength_0(kind, fraction, strength):
    images = images_of(20)
    spec = PixelCorruptionSpec(kind, fraction, strength, 0)
    assert spec.is_identity
    result = corrupt_pixels(images, spec, pixel_stats(images))
    np.testing.assert_array_equal(result.codes, images, strict=True)
    np.testing.assert_array_equal(result.pixels(), images.astype(np.float32), strict=True)


def test_kind_none_is_untouched():
    images = images_of(20)
    np.testing.assert_array_equal(corrupt(images, "none").pixels(), images.astype(np.float32))
    assert corruption.CLEAN.is_identity


@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_the_shortcut_for_untouched_images_is_not_needed(kind):
    """At the smallest fraction the program itself runs, and returns all images as they were."""
    images = images_of(20)
    spec = PixelCorruptionSpec(kind, 1e-30, 1.0, 0)
    assert not spec.is_identity
    np.testing.assert_array_equal(corrupt(images, kind, fraction=1e-30).pixels(), images)


@pytest.mark.parametrize("kind", PIXEL_KINDS)
@pytest.mark.parametrize("test", [False, True])
def test_an_image_does_not_depend_on_how_many_there_are(kind, test):
    # More than one batch of 1000, so that an image of the second is among those compared.
    images = images_of(1012)
    stats = pixel_stats(images)
    everything = corrupt(images, kind, 0.5, 0.5, stats=stats, test=test)
    for count in (10, 1005):
        some = corrupt(images[:count], kind, 0.5, 0.5, stats=stats, test=test)
        assert_equal_sets(some, [a[:count] for a in everything])


@pytest.mark.parametrize("kind", PIXEL_KINDS)
@pytest.mark.parametrize("test", [False, True])
def test_fraction_of_the_images_changes_and_smaller_fractions_are_part_of_larger(kind, test):
    count = 1500
    images = numbered(count)
    full = corrupt(images, kind, test=test).pixels()
    assert (full != images).any((1, 2, 3)).all()
    before = np.zeros(count, bool)
    for fraction in (0.1, 0.5, 0.9):
        result = corrupt(images, kind, fraction, test=test).pixels()
        changed = (result != images).any((1, 2, 3))
        deviation = math.sqrt(fraction * (1 - fraction) / count)
        assert abs(changed.mean() - fraction) < SIGMAS * deviation
        assert (changed >= before).all()
        np.testing.assert_array_equal(result[changed], full[changed])
        before = changed


@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_training_and_test_choose_their_images_independently(kind):
    images = numbered(1000)
    train, test = (
        (corrupt(images, kind, 0.5, test=t).pixels() != images).any((1, 2, 3))
        for t in (False, True)
    )
    # Equal choices for half of the images, binomially.
    assert abs((train == test).mean() - 0.5) < SIGMAS * math.sqrt(0.25 / 1000)


@pytest.mark.parametrize("kind", PIXEL_KINDS)
@pytest.mark.parametrize("strength", [0.125, 0.5, 0.9])
def test_strength_mixes_image_and_corrupted_image(kind, strength):
    images = images_of(50)
    full, mixed = corrupt(images, kind), corrupt(images, kind, strength=strength)
    expected = (1 - strength) * images.astype(np.float64) + strength * full.pixels()
    # Half a step of the bytes of either set (none where the bytes are the grey levels themselves),
    step = lambda s: np.where((s.scale == 1) & (s.offset == 0), 0.0, s.scale).reshape(-1, 1, 1, 1)  # noqa: E731
    half_steps = (step(mixed) + strength * step(full)) / 2
    # and float32's rounding, once in each of the about eight operations on the way.
    rounding = 8 * np.finfo(np.float32).eps * np.abs(expected).max()
    assert (np.abs(mixed.pixels() - expected) <= half_steps + rounding).all()
    assert half_steps.max() < 3  # A step is no excuse: 256 of them cover an image's range.


# --- shuffled -------------------------------------------------------------------------------------


def permutation_of(seed=0, test=False):
    """The pixel that each place of an image got, read from an image of numbered pixels."""
    return flat(corrupt(numbered(1), "shuffled", seed=seed, test=test).codes)[0, :, 0]


def test_shuffled_is_one_permutation_for_all_images_and_channels():
    order = permutation_of()
    np.testing.assert_array_equal(np.sort(order), np.arange(HEIGHT * WIDTH))
    assert (order != np.arange(HEIGHT * WIDTH)).any()
    images = images_of(30)
    for test in (False, True):
        result = corrupt(images, "shuffled", test=test)
        np.testing.assert_array_equal(flat(result.pixels()), flat(images)[:, order])
        np.testing.assert_array_equal(result.codes, result.pixels())
    np.testing.assert_array_equal(permutation_of(test=True), order)


def test_shuffled_draws_all_permutations_alike():
    """The 24 orders of four pixels over 600 seeds: 25 each."""
    image = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    keys = jax.vmap(lambda seed: streams.stream(seed, streams.PIXELS))(np.arange(600))
    permute = lambda key: corruption.shuffled(jnp.asarray(image[0]), key, None, None)  # noqa: E731
    drawn = np.asarray(jax.jit(jax.vmap(permute))(keys)).reshape(600, 4)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 24 and scipy.stats.chisquare(counts).pvalue > P_VALUE
    np.testing.assert_array_equal(corrupt(image, "shuffled", seed=7).pixels().reshape(-1), drawn[7])


# --- random ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", [False, True])
def test_random_keeps_each_images_pixels(test):
    images = images_of(30)
    result = corrupt(images, "random", test=test)
    np.testing.assert_array_equal(result.codes, result.pixels())
    for image, original in zip(flat(result.codes), flat(images), strict=True):
        assert sorted(map(tuple, image)) == sorted(map(tuple, original))
        assert (image != original).any()


def test_random_permutations_differ_between_images_and_from_test():
    # More than one batch of 1000: the second must not repeat the first.
    drawn = [corrupt(numbered(1010), "random", test=test).codes for test in (False, True)]
    assert len({image.tobytes() for images in drawn for image in images}) == 2020


def test_random_draws_all_permutations_alike():
    """The 24 orders of four pixels over 2400 images: 100 each."""
    images = np.repeat(np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1), 2400, axis=0)
    drawn = corrupt(images, "random").codes.reshape(2400, 4)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 24 and scipy.stats.chisquare(counts).pvalue > P_VALUE


# --- gaussian -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["train", "test"])
def gaussian(request):
    """Corrupted images, their pixels float64[number of pixels, 3], and the statistics asked for."""
    images = images_of(1200)
    stats = pixel_stats(images)
    # Of the test images only their shape may matter.
    given = np.zeros_like(images) if request.param else images
    result = corrupt(given, "gaussian", stats=stats, test=request.param)
    return result, result.pixels().reshape(-1, 3).astype(np.float64), stats


def test_gaussian_has_the_mean_and_variance_of_each_channel(gaussian):
    result, pixels, stats = gaussian
    # Sampling errors of a mean and of a deviation; and half a byte's step, which shifts neither by
    # more (for the deviation: the triangle inequality).
    step = result.scale.max() / 2
    count = len(pixels)
    mean, std = np.asarray(stats.mean_C, np.float64), np.asarray(stats.std_C, np.float64)
    assert (np.abs(pixels.mean(0) - mean) < SIGMAS * std / math.sqrt(count) + step).all()
    assert (np.abs(pixels.std(0) - std) < SIGMAS * std / math.sqrt(2 * count) + step).all()
    # The bounds tell the channels apart.
    assert np.abs(np.diff(mean)).min() > 10 and np.abs(np.diff(std)).min() > 10


def test_gaussian_clips_nothing(gaussian):
    result, pixels, stats = gaussian
    step = result.scale.max() / 2  # Bytes move a value by at most this, here 1.5 grey levels.
    for values, mean, std in zip(pixels.T, *map(np.asarray, stats), strict=True):
        normal = scipy.stats.norm(mean, std)
        for below, level in [((values < 0).mean(), 0), ((values <= 255).mean(), 255)]:
            low, high = normal.cdf(level - step), normal.cdf(level + step)
            deviation = math.sqrt(normal.cdf(level) * normal.sf(level) / len(values))
            assert low - SIGMAS * deviation < below < high + SIGMAS * deviation
    # In words: a third of a percent or more of the first channel lies beyond either end.
    assert (pixels[:, 0] < -50).mean() > 0.003 and (pixels[:, 0] > 305).mean() > 0.003
    assert step < 1.5


def test_gaussian_has_the_shape_of_a_normal_distribution(gaussian):
    result, pixels, stats = gaussian
    for values, mean, std in zip(pixels.T, *map(np.asarray, stats), strict=True):
        distance = scipy.stats.kstest(values, scipy.stats.norm(mean, std).cdf).statistic
        # Kolmogorov's bound for the p-value, and half a byte's step times the highest density.
        bound = math.sqrt(-math.log(P_VALUE / 2) / (2 * len(values)))
        assert distance < bound + result.scale.max() / 2 * 0.4 / std


def test_gaussian_values_are_independent(gaussian):
    result, _, _ = gaussian
    # Images against each other, channels, and pixels of an image: no correlation.
    pixels = flat(result.pixels().astype(np.float64))
    normal = (pixels - pixels.mean((0, 1))) / pixels.std((0, 1))
    for a, b in [
        (normal[:, :, 0], normal[:, :, 1]),
        (normal[:, :, 1], normal[:, :, 2]),
        (normal[:, 1:], normal[:, :-1]),
        (normal[1:], normal[:-1]),
    ]:
        assert abs((a * b).mean()) < SIGMAS / math.sqrt(a.size)


def test_gaussian_differs_between_images_and_from_test():
    # More than one batch of 1000: the second must not repeat the first.
    drawn = [corrupt(numbered(1010), "gaussian", test=test).codes for test in (False, True)]
    assert len({image.tobytes() for images in drawn for image in images}) == 2020


def test_pixel_stats():
    images = images_of(40)
    stats = pixel_stats(images)
    # Float64 results, rounded once to float32.
    half_ulp = np.finfo(np.float32).eps / 2
    wide = images.astype(np.float64)
    np.testing.assert_allclose(stats.mean_C, wide.mean((0, 1, 2)), rtol=1.01 * half_ulp)
    np.testing.assert_allclose(stats.std_C, wide.std((0, 1, 2)), rtol=1.01 * half_ulp)
    assert stats.mean_C.shape == stats.std_C.shape == (3,)


# --- images as bytes ------------------------------------------------------------------------------


def encode(image):
    codes, scale, offset = jax.jit(corruption._encode)(jnp.asarray(image, jnp.float32))
    return corruption.ImageSet(*(np.asarray(a)[None] for a in (codes, scale, offset)))


@pytest.mark.parametrize("low_high", [(0, 255), (0, 0), (255, 255), (17, 90), (0, 1)])
def test_encode_is_exact_for_whole_grey_levels(low_high):
    low, high = low_high
    image = np.random.default_rng(0).integers(low, high, (6, 5, 3), endpoint=True)
    result = encode(image)
    np.testing.assert_array_equal(result.codes[0], image)
    assert result.scale == 1 and result.offset == 0
    np.testing.assert_array_equal(result.pixels()[0], image)


@pytest.mark.parametrize("value", [0.0, 3.7, 128.0, 255.0, 255.5, -12.25, 1000.0])
def test_encode_is_exact_for_constant_images(value):
    image = np.full((4, 4, 1), value, np.float32)
    result = encode(image)
    assert np.isfinite(result.scale).all() and result.scale > 0
    np.testing.assert_array_equal(result.pixels()[0], image, strict=True)


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 200.5), (-300.0, 500.0), (-3.0, -1.0), (0.0, 256.0), (99.9, 100.1)]
)
def test_encode_covers_the_range_in_256_steps(low, high):
    image = np.random.default_rng(0).uniform(low, high, (8, 8, 3)).astype(np.float32)
    image[0, 0, 0], image[0, 0, 1] = low, high
    result = encode(image)
    assert result.codes.min() == 0 and result.codes.max() == 255
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(
        result.scale,
        [(np.float64(high) - low) / 255],
        rtol=2 * eps
        + (
            eps
            * max(abs(low), abs(high))
            / (high - low)  # The ends themselves are rounded to float32.
        ),
    )
    # Half a step; and float32's rounding in the four operations there and back.
    bound = result.scale / 2 + 4 * eps * max(abs(low), abs(high))
    assert (np.abs(result.pixels()[0] - image.astype(np.float64)) <= bound).all()


def test_encode_whole_levels_outside_of_a_byte_are_not_wrapped():
    image = np.arange(-1, 257, dtype=np.float32).reshape(1, 258, 1)
    np.testing.assert_allclose(encode(image).pixels()[0], image, atol=257 / 255 / 2 + 1e-4)
