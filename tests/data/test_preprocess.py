"""Whitening, crops and flips, against plain numpy. Draws have fixed seeds: no test is flaky."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rethink_jax.data import preprocess

SIGMAS, P_VALUE = 5, 1e-6
HEIGHT, WIDTH, SIZE = 5, 7, 3
COUNT = 3000  # One number of images, so that most tests share one compiled program.
ROWS, COLUMNS = HEIGHT - SIZE + 1, WIDTH - SIZE + 1

# --- whitening ------------------------------------------------------------------------------------


def whiten_in_float64(images):
    images = images.astype(np.float64)
    mean = images.mean((1, 2, 3), keepdims=True)
    std = images.std((1, 2, 3), keepdims=True)
    return (images - mean) / np.maximum(std, 1 / math.sqrt(images[0].size))


def whiten(images):
    return np.asarray(jax.jit(preprocess.whiten)(jnp.asarray(images, jnp.float32)))


def whitening_error(images):
    """A bound of float32's rounding, for pixels of at most 1.

    A sum of n terms is wrong by at most n units in the last place, so the mean by n*eps/2, which is
    divided by the deviation; that in turn is wrong by a factor of about 1 + n*eps.
    """
    n, eps = images[0].size, np.finfo(np.float32).eps
    std = np.maximum(images.astype(np.float64).std((1, 2, 3)), 1 / math.sqrt(n))
    largest = np.abs(whiten_in_float64(images)).max()
    return (n * eps * (1 / std.min() + largest)).item()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 1), (5, 7, 3), (8, 8, 1), (11, 3, 2)])
def test_whiten_against_float64(shape):
    images = np.random.default_rng(0).random((6, *shape), np.float32)
    # Grey levels on very different scales within one batch: each image has its own statistics.
    images *= np.float32([1, 0.5, 0.1, 0.02, 1, 0.7]).reshape(-1, 1, 1, 1)
    result = whiten(images)
    assert result.dtype == np.float32 and result.shape == images.shape
    error = whitening_error(images)
    assert error < 3e-3
    np.testing.assert_allclose(result, whiten_in_float64(images), rtol=0, atol=error)


def test_whiten_makes_mean_0_and_variance_1_over_all_channels_together():
    images = np.random.default_rng(0).random((4, 6, 5, 3), np.float32)
    images[..., 1] *= 0.3
    result = whiten(images).astype(np.float64)
    error = whitening_error(images)
    np.testing.assert_allclose(result.mean((1, 2, 3)), 0, rtol=0, atol=error)
    np.testing.assert_allclose(result.std((1, 2, 3)), 1, rtol=0, atol=error)
    # Together, not one by one: the channels keep their differences.
    assert np.abs(result.mean((1, 2))).min() > 0.1


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 1 / 3])
def test_whiten_of_flat_images_is_0(value):
    images = np.full((2, 5, 7, 3), value, np.float32)
    result = whiten(images)
    assert np.isfinite(result).all()
    # What rounding the mean leaves, times sqrt(n).
    np.testing.assert_allclose(result, 0, rtol=0, atol=whitening_error(images))


def test_whiten_of_nearly_flat_images_divides_by_1_over_sqrt_n():
    images = np.full((3, 4, 4, 1), 0.5, np.float32)
    # Deviations of sqrt(15)/16 = 0.24 times these; the floor is 0.25.
    images[:, 1, 2, 0] += np.float32([1 / 256, 0.25, 0.5])
    std = images.astype(np.float64).std((1, 2, 3))
    assert (std < 1 / 4).all()
    expected = (images - images.astype(np.float64).mean((1, 2, 3), keepdims=True)) * 4
    np.testing.assert_allclose(whiten(images), expected, rtol=0, atol=whitening_error(images))


def test_whiten_above_the_floor_divides_by_the_deviation():
    images = np.zeros((1, 4, 4, 1), np.float32)
    images[0, :2] = 1
    np.testing.assert_array_equal(whiten(images), 2 * images - 1)


# --- central crop ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "size", "top", "left"),
    [
        (8, 8, 4, 2, 2),
        (8, 8, 5, 1, 1),
        (7, 7, 4, 1, 1),
        (7, 7, 3, 2, 2),
        (5, 8, 3, 1, 2),
        (8, 5, 5, 1, 0),
        (4, 4, 4, 0, 0),
        (32, 32, 28, 2, 2),
        (5, 5, 1, 2, 2),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_central_crop_against_slicing(height, width, size, top, left, dtype):
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(dtype)
    expected = images[:, top : top + size, left : left + size, :]
    assert expected.shape == (2, size, size, 3)
    np.testing.assert_array_equal(
        preprocess.central_crop(jnp.asarray(images), size), expected, strict=True
    )


def test_central_crop_of_no_size_is_the_image():
    images = jnp.arange(24.0).reshape(1, 4, 3, 2)
    np.testing.assert_array_equal(preprocess.central_crop(images, None), images, strict=True)


# --- augmentation ---------------------------------------------------------------------------------

augment = jax.jit(preprocess.augment, static_argnames="size")


def numbered(count):
    """Images of which pixel k has the colour (k, k + 100): every window can be told from others."""
    image = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(1, HEIGHT, WIDTH, 1)
    return np.repeat(np.concatenate([image, image + 100], axis=3), count, axis=0)


def windows():
    """Every window of a numbered image: uint8[row, column, SIZE, SIZE, 2]."""
    image = numbered(1)[0]
    return np.stack(
        [np.stack([image[y : y + SIZE, x : x + SIZE] for x in range(COLUMNS)]) for y in range(ROWS)]
    )


def corners(cropped):
    """Row and column of each crop of a numbered image."""
    return np.divmod(cropped[:, 0, 0, 0].astype(int), WIDTH)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(None, np.float32), (2, np.uint8), (3, np.float32), (4, np.uint8), (5, np.float32)],
)
def test_augment_off_is_the_central_crop_bit_by_bit(size, dtype):
    images = np.random.default_rng(0).integers(0, 256, (9, HEIGHT, WIDTH, 3)).astype(dtype)
    if dtype == np.float32:
        images /= 255
    expected = np.asarray(preprocess.central_crop(jnp.asarray(images), size))
    for key in range(3):
        result = augment(images, jax.random.key(key), size, False, False)
        np.testing.assert_array_equal(result, expected, strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_random_crops_are_windows_and_all_are_equally_likely(dtype):
    images = numbered(COUNT).astype(dtype)
    result = np.asarray(augment(images, jax.random.key(1), SIZE, True, False))
    assert result.dtype == dtype and result.shape == (COUNT, SIZE, SIZE, 2)
    row, column = corners(result)
    assert row.max() < ROWS and column.max() < COLUMNS
    np.testing.assert_array_equal(result, windows()[row, column])
    counts = np.bincount(COLUMNS * row + column, minlength=ROWS * COLUMNS)
    # 200 expected of each of the 15 positions.
    assert counts.min() > 0 and scipy.stats.chisquare(counts).pvalue > P_VALUE


def test_random_crops_of_a_square_are_drawn_for_both_directions():
    """Rows and columns have the same range here: one draw for both would give the diagonal."""
    images = numbered(COUNT)[:, :, :HEIGHT]
    result = np.asarray(augment(images, jax.random.key(7), SIZE, True, False))
    row, column = corners(result)
    counts = np.bincount(ROWS * row + column, minlength=ROWS**2)
    assert len(counts) == 9 and scipy.stats.chisquare(counts).pvalue > P_VALUE


def test_random_crop_of_the_whole_height_moves_sideways_only():
    result = np.asarray(augment(numbered(50), jax.random.key(0), HEIGHT, True, False))
    row, column = corners(result)
    assert set(row) == {0} and set(column) == set(range(WIDTH - HEIGHT + 1))


def test_random_crop_without_a_size_changes_nothing():
    images = numbered(20)
    result = augment(images, jax.random.key(0), None, True, False)
    np.testing.assert_array_equal(result, images, strict=True)


@pytest.mark.parametrize("size", [None, SIZE])
def test_half_of_the_images_are_mirrored_left_to_right(size):
    images = numbered(COUNT)
    plain = np.asarray(preprocess.central_crop(jnp.asarray(images), size))
    result = np.asarray(augment(images, jax.random.key(2), size, False, True))
    mirrored = (result == plain[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(result[~mirrored], plain[~mirrored])
    assert abs(mirrored.mean() - 0.5) < SIGMAS * math.sqrt(0.25 / COUNT)


def test_crops_and_flips_are_independent():
    result = np.asarray(augment(numbered(COUNT), jax.random.key(3), SIZE, True, True))
    mirrored = result[:, 0, 0, 0] > result[:, 0, 1, 0]
    upright = np.where(mirrored[:, None, None, None], result[:, :, ::-1], result)
    row, column = corners(upright)
    np.testing.assert_array_equal(upright, windows()[row, column])
    kinds = (COLUMNS * row + column) * 2 + mirrored
    # 100 expected of each position, mirrored or not.
    counts = np.bincount(kinds, minlength=2 * ROWS * COLUMNS)
    assert scipy.stats.chisquare(counts).pvalue > P_VALUE


def test_neighbouring_images_are_cropped_and_flipped_independently():
    result = np.asarray(augment(numbered(COUNT), jax.random.key(4), SIZE, True, True))
    mirrored = result[:, 0, 0, 0] > result[:, 0, 1, 0]
    row, _ = corners(np.where(mirrored[:, None, None, None], result[:, :, ::-1], result))
    kinds = 2 * row + mirrored
    pairs = np.bincount(6 * kinds[::2] + kinds[1::2], minlength=36)
    assert scipy.stats.chisquare(pairs).pvalue > P_VALUE


def test_augment_depends_on_the_key_only():
    images = numbered(COUNT)
    drawn = [np.asarray(augment(images, jax.random.key(k), SIZE, True, True)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_turning_one_off_leaves_the_draws_of_the_other():
    images, key = numbered(COUNT), jax.random.key(5)
    both, crops, flips = (
        np.asarray(augment(images, key, SIZE, *on))
        for on in ((True, True), (True, False), (False, True))
    )
    mirrored = flips[:, 0, 0, 0] > flips[:, 0, 1, 0]
    assert mirrored.any() and not mirrored.all()
    np.testing.assert_array_equal(both[~mirrored], crops[~mirrored])
    np.testing.assert_array_equal(both[mirrored], crops[mirrored][:, :, ::-1])


@pytest.mark.parametrize("size", [None, SIZE])
def test_vmapped_and_mapped_flags_give_the_same_as_python_ones(size):
    images = jnp.asarray(numbered(COUNT))
    flags = [(crop, flip) for crop in (False, True) for flip in (False, True)]
    keys = jax.random.split(jax.random.key(6), len(flags))
    crops, flips = jnp.asarray(flags).T
    one = lambda key, crop, flip: preprocess.augment(images, key, size, crop, flip)  # noqa: E731
    alone = [augment(images, key, size, *on) for key, on in zip(keys, flags, strict=True)]
    vmapped = jax.jit(jax.vmap(one))(keys, crops, flips)
    mapped = jax.jit(lambda *xs: jax.lax.map(lambda x: one(*x), xs))(keys, crops, flips)
    for i, expected in enumerate(alone):
        np.testing.assert_array_equal(vmapped[i], expected, strict=True)
        np.testing.assert_array_equal(mapped[i], expected, strict=True)
    # The flags do what they say here, too.
    assert (np.asarray(alone[0]) == np.asarray(preprocess.central_crop(images, size))).all()
    assert (np.asarray(alone[3]) != np.asarray(alone[0])).any()


# --- rotation -------------------------------------------------------------------------------------

rotate = jax.jit(preprocess.rotate)


def turned(image, degrees):
    """The image turned counter-clockwise about its centre: bilinear in float64, 0 outside."""
    height, width, channels = image.shape
    angle = math.radians(degrees)
    result = np.zeros((height, width, channels))
    for row in range(height):
        for column in range(width):
            # To the right, and up, from the centre; turned clockwise, that is where it was.
            right, up = column - (width - 1) / 2, (height - 1) / 2 - row
            was_right = right * math.cos(angle) + up * math.sin(angle)
            was_up = -right * math.sin(angle) + up * math.cos(angle)
            y, x = (height - 1) / 2 - was_up, (width - 1) / 2 + was_right
            top, left = math.floor(y), math.floor(x)
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                if 0 <= top + i < height and 0 <= left + j < width:
                    weight = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
                    result[row, column] += weight * image[top + i, left + j]
    return result


def random_images(count, *shape):
    return np.random.default_rng(0).random((count, *shape), np.float32)


@pytest.mark.parametrize("shape", [(6, 6, 3), (5, 7, 1)])
def test_rotation_by_0_is_the_identity_bit_by_bit(shape):
    images = random_images(3, *shape)
    np.testing.assert_array_equal(rotate(images, jnp.zeros(3)), images, strict=True)


@pytest.mark.parametrize("size", [5, 6])
def test_quarter_turns_are_counter_clockwise(size):
    images = random_images(4, size, size, 3)
    found = rotate(images, jnp.array([90.0, 180.0, -90.0, 270.0]))
    for image, result, quarters in zip(images, found, (1, 2, 3, 3), strict=True):
        # The cosine of 90 degrees is 4e-8 in float32, which moves each pixel by so little.
        np.testing.assert_allclose(result, np.rot90(image, quarters), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 6, 3), (5, 9, 2), (8, 3, 1)])
def test_rotation_is_a_loop_in_numpy(shape):
    angles = [17.0, -33.3, 45.0, 120.5, -179.0]
    images = random_images(len(angles), *shape)
    found = rotate(images, jnp.array(angles))
    for image, result, degrees in zip(images, found, angles, strict=True):
        # Places of up to 5 pixels are rounded to 5e-7 in float32; a pixel is at most 1.
        np.testing.assert_allclose(result, turned(image, degrees), rtol=0, atol=1e-5)


def test_what_comes_from_outside_the_image_is_0():
    found = np.asarray(rotate(jnp.ones((1, 9, 9, 2)), jnp.array([45.0])))[0]
    assert (found[[0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
    np.testing.assert_allclose(found[3:6, 3:6], 1, rtol=0, atol=1e-5)


def test_random_rotation_turns_each_image_by_its_own_angle_within_the_bounds():
    # A spot 20 pixels to the right of the centre; where it is found tells the angle.
    size, radius, count, bound = 45, 20, 400, 30.0
    image = np.zeros((size, size, 1), np.float32)
    image[21:24, 22 + radius - 1 : 22 + radius + 2] = 1
    images = np.repeat(image[None], count, axis=0)
    turn = jax.jit(preprocess.random_rotation)
    found = np.asarray(turn(images, jax.random.key(0), bound), np.float64)[..., 0]
    mass = found.sum((1, 2))
    up = np.einsum("bij,i->b", found, 22 - np.arange(size)) / mass
    right = np.einsum("bij,j->b", found, np.arange(size) - 22) / mass
    angles = np.degrees(np.arctan2(up, right))
    # Interpolation moves the middle of the spot by less than a tenth of a pixel: 0.3 degrees.
    assert np.abs(angles).max() < bound + 0.5
    assert len(np.unique(angles.round(3))) > count / 2
    uniform = scipy.stats.uniform(-bound, 2 * bound)
    assert scipy.stats.kstest(angles, uniform.cdf).pvalue > P_VALUE
    # The bound is traced; 0 turns nothing, bit by bit.
    np.testing.assert_array_equal(turn(images, jax.random.key(0), 0.0), images)
    other = np.asarray(turn(images, jax.random.key(1), bound))[..., 0]
    assert (other != found).any((1, 2)).mean() > 0.9


# --- normalization --------------------------------------------------------------------------------

NORMALIZED = {
    "per_image": whiten_in_float64,
    "symmetric": lambda images: 2 * images.astype(np.float64) - 1,
    "imagenet": lambda images: (
        (images.astype(np.float64) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    ),
    "mnist": lambda images: (images.astype(np.float64) - 0.131) / 0.289,
    "none": lambda images: images,
}


def test_every_normalization_has_its_formula_here():
    assert set(NORMALIZED) == set(preprocess.NORMALIZE)


@pytest.mark.parametrize("name", preprocess.NORMALIZE)
def test_normalizations_against_numpy(name):
    images = random_images(4, 6, 5, 3)
    found = jax.jit(preprocess.NORMALIZE[name])(images)
    assert found.dtype == jnp.float32
    # Means of 90 values, at most a few units in size, rounded in float32.
    np.testing.assert_allclose(found, NORMALIZED[name](images), rtol=0, atol=1e-5)
