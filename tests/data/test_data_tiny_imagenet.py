"""Tiny ImageNet, from an archive and a folder of the real layout, with 3 classes of 4 images."""

import hashlib
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from paperkit.data import load, tiny_imagenet
from tests.data.photographs import photographs

WNIDS = ("n01443537", "n02124075", "n07749582")
WORDS = {
    "n01443537": "goldfish, Carassius auratus",
    "n02124075": "Egyptian cat",
    "n00000001": "a word of another set",
}
CLASSES = ("goldfish, Carassius auratus", "Egyptian cat", "n07749582")
VALIDATION_CLASSES = (2, 0, 1, 1, 0, 2)


def pictures():
    """18 pictures of 64 × 64 pixels, bytes with channels last."""
    images = photographs(64, 64)[:18].mul(255).round().byte()
    return images.permute(0, 2, 3, 1).numpy()


def write(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, "JPEG")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of data sets with the unpacked set; the first training image is grey."""
    for constant, value in (("CLASSES", 3), ("IMAGES_PER_CLASS", 4), ("TEST_IMAGES", 6)):
        monkeypatch.setattr(tiny_imagenet, constant, value)
    folder = tmp_path / "tiny-imagenet-200"
    images = iter(pictures())
    for wnid in WNIDS:
        for k in range(4):
            image = next(images)
            image = image[:, :, 0] if wnid == WNIDS[0] and k == 0 else image
            write(folder / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", image)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("not read\n")
    lines = []
    for k, label in enumerate(VALIDATION_CLASSES):
        write(folder / "val" / "images" / f"val_{k}.JPEG", next(images))
        lines.append(f"val_{k}.JPEG\t{WNIDS[label]}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    write(folder / "test" / "images" / "test_0.JPEG", pictures()[0])
    (folder / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    (folder / "words.txt").write_text("".join(f"{key}\t{word}\n" for key, word in WORDS.items()))
    return tmp_path


def pack(root, monkeypatch):
    """Turn the folder into the archive, and make its checksum the published one."""
    archive = shutil.make_archive(root / "tiny-imagenet-200", "zip", root, "tiny-imagenet-200")
    shutil.rmtree(root / "tiny-imagenet-200")
    with open(archive, "rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE_MD5", md5)


def decoded(path):
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def test_the_validation_part_is_the_test_part(root):
    folder = root / "tiny-imagenet-200"
    data = load("tiny-imagenet", root=root, normalize=False)
    assert data.classes == CLASSES
    assert data.shape == (3, 64, 64)
    assert data.train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test.targets.tolist() == list(VALIDATION_CLASSES)
    train = [folder / "train" / w / "images" / f"{w}_{k}.JPEG" for w in WNIDS for k in range(4)]
    test = [folder / "val" / "images" / f"val_{k}.JPEG" for k in range(6)]
    for split, paths in ((data.train, train), (data.test, test)):
        expected = np.stack([decoded(path) for path in paths])
        assert np.array_equal(split.inputs.mul(255).round().byte(), expected)
    grey = data.train.inputs[0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


def test_the_archive_gives_what_the_folder_gives(root, monkeypatch):
    options = {"root": root, "train_size": 6, "validation": 3, "seed": 4}
    folder = load("tiny-imagenet", **options)
    pack(root, monkeypatch)
    archive = load("tiny-imagenet", **options)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(folder, part).inputs, getattr(archive, part).inputs)
        assert torch.equal(getattr(folder, part).targets, getattr(archive, part).targets)
    assert archive.classes == folder.classes


def test_a_subset_reads_its_own_images_alone(root, monkeypatch):
    read = []
    decode = tiny_imagenet._decoded
    monkeypatch.setattr(
        tiny_imagenet, "_decoded", lambda source, name: read.append(name) or decode(source, name)
    )
    data = load("tiny-imagenet", root=root, train_size=3, test_size=3, validation=3)
    assert data.train.targets.bincount().tolist() == [1, 1, 1]
    assert len(read) == len(set(read)) == 9


def test_a_damaged_archive_is_named_and_not_read(root, monkeypatch):
    pack(root, monkeypatch)
    path = root / "tiny-imagenet-200.zip"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ValueError, match=f"{path} is incomplete or altered.*md5.*delete it"):
        load("tiny-imagenet", root=root)


def test_the_checksum_is_that_of_the_published_archive():
    assert tiny_imagenet.ARCHIVE_MD5 == "90528d7ca1a48142e341f4ef8d21d0de"
    counts = tiny_imagenet.CLASSES, tiny_imagenet.IMAGES_PER_CLASS, tiny_imagenet.TEST_IMAGES
    assert counts == (200, 500, 10_000)


def test_a_missing_set_says_where_to_get_it(tmp_path):
    sentence = f"download http://.*/tiny-imagenet-200.zip into {tmp_path}, or pass root="
    with pytest.raises(FileNotFoundError, match=sentence):
        load("tiny-imagenet", root=tmp_path)


def remove_class(folder):
    shutil.rmtree(folder / "train" / WNIDS[1])


def remove_image(folder):
    (folder / "train" / WNIDS[2] / "images" / f"{WNIDS[2]}_3.JPEG").unlink()


def remove_test_image(folder):
    (folder / "val" / "images" / "val_2.JPEG").unlink()


def remove_annotations(folder):
    (folder / "val" / "val_annotations.txt").unlink()


def change_annotations(folder):
    path = folder / "val" / "val_annotations.txt"
    path.write_text(path.read_text().replace(WNIDS[1], "n99999999"))


def cut_annotations(folder):
    path = folder / "val" / "val_annotations.txt"
    path.write_text(path.read_text().replace(f"val_0.JPEG\t{WNIDS[2]}", "val_0.JPEG"))


def truncate(folder):
    path = folder / "val" / "images" / "val_1.JPEG"
    path.write_bytes(path.read_bytes()[:200])


def enlarge(folder):
    write(folder / "val" / "images" / "val_1.JPEG", np.zeros((64, 65, 3), np.uint8))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (remove_class, "train has 2 of 3 classes"),
        (remove_image, "train/n07749582 has 3 of 4 images"),
        (remove_test_image, "val has 5 and val/val_annotations.txt 6 of 6 images"),
        (remove_annotations, r"val/val_annotations.txt is not there"),
        (change_annotations, "differ in 'n02124075'"),
        (cut_annotations, "differ in '0'"),
        (truncate, "val/images/val_1.JPEG is no image that can be read"),
        (enlarge, "val/images/val_1.JPEG has 65 × 64 pixels"),
    ],
)
def test_a_damaged_folder_is_named_with_its_fault(root, damage, fault):
    folder = root / "tiny-imagenet-200"
    damage(folder)
    with pytest.raises(ValueError, match=rf"{folder} is incomplete or altered \(.*{fault}"):
        load("tiny-imagenet", root=root)
