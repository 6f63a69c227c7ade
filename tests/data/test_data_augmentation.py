import pytest
import torch
from torch.nn import functional

from paperkit.data import augment, load


def cpu_generator(seed=0):
    return torch.Generator(device="cpu").manual_seed(seed)


@pytest.fixture(scope="module")
def images(device):
    gray = load("mnist5k", train_size=400, device=device).train.inputs
    # Channels that differ show whether all are moved together.
    return torch.cat([gray, -2 * gray, gray + 1], dim=1)


def every_crop(image, padding):
    """Yield each shifted image with its shift, by slicing: the brute-force twin."""
    _, height, width = image.shape
    padded = functional.pad(image, (padding,) * 4)
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            crop = padded[:, row : row + height, column : column + width]
            yield (row, column, False), crop
            yield (row, column, True), crop.flip(2)


def find_moves(images, augmented, padding):
    moves = []
    for image, result in zip(images, augmented, strict=True):
        matches = [move for move, crop in every_crop(image, padding) if torch.equal(crop, result)]
        assert matches, "the augmented image is no crop of the padded one"
        moves.append(matches[0])
    return moves


def test_every_result_is_a_crop_or_mirrored_crop_and_all_of_them_occur(images):
    moves = find_moves(images, augment(images, cpu_generator(), padding=1), padding=1)
    # The chance that 400 draws miss any of the 18 moves is below 18 · (17/18)^400 < 1e-8.
    assert len(set(moves)) == 18


def test_without_flip_nothing_is_mirrored(images):
    moves = find_moves(images, augment(images, cpu_generator(), padding=1, flip=False), padding=1)
    assert not any(mirrored for _, _, mirrored in moves)


def test_about_half_of_the_images_are_mirrored(images):
    augmented = augment(images, cpu_generator(), padding=0)
    mirrored = (augmented != images).flatten(1).any(dim=1)
    assert torch.equal(augmented[mirrored], images[mirrored].flip(3))
    # Binomial with n = 400: mean 200, standard deviation 10.
    assert abs(mirrored.sum().item() - 200) < 40


def test_no_padding_and_no_flip_change_nothing(images):
    assert torch.equal(augment(images, cpu_generator(), padding=0, flip=False), images)


def test_the_input_is_left_alone(images):
    before = images.clone()
    augment(images, cpu_generator())
    assert torch.equal(images, before)


def test_the_same_seed_gives_the_same_augmentation_and_another_seed_another(images):
    assert torch.equal(augment(images, cpu_generator(1)), augment(images, cpu_generator(1)))
    assert not torch.equal(augment(images, cpu_generator(1)), augment(images, cpu_generator(2)))


def test_a_cpu_generator_gives_the_same_augmentation_on_every_device(images):
    augmented = augment(images, cpu_generator())
    assert augmented.device == images.device
    assert torch.equal(augmented.cpu(), augment(images.cpu(), cpu_generator()))


def test_rectangular_images_keep_their_shape_and_type(device):
    inputs = torch.arange(2 * 3 * 5.0, dtype=torch.float64, device=device).reshape(2, 1, 3, 5)
    augmented = augment(inputs, cpu_generator(), padding=2)
    assert augmented.shape == inputs.shape
    assert augmented.dtype == torch.float64


def test_a_single_image_without_a_batch_is_refused(images):
    with pytest.raises(ValueError, match=r"inputs=.* of shape \(n, channels, height, width\)"):
        augment(images[0], cpu_generator())


def test_negative_padding_is_refused(images):
    with pytest.raises(ValueError, match="padding=-1 must be between 0 and"):
        augment(images, cpu_generator(), padding=-1)
