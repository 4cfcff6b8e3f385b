"""Model bundles: good ones, and every way to be malformed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from wuwan_worker.shared import bundle, labels
from wuwan_worker.shared.bundle import BundleError
from wuwan_worker.shared.labels import Label

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = b"weights"
LABELS = "index\tlabel\tid\tbroader\n0\t犬\tn1\t哺乳动物|动物\n1\t书籍\tb1\t\n"
MANIFEST = f"""
name = "test"
version = "1.0"
description = "测试"
architecture = "none"
license = "Apache-2.0"
source = "here"
[backends]
openvino = "model.onnx"
[input]
name = "images"
size = 224
resize = 256
interpolation = "bicubic"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 1]
[output]
name = "probabilities"
classes = 2
activation = "none"
[files]
"model.onnx" = "{hashlib.sha256(WEIGHTS).hexdigest()}"
"labels.tsv" = "{hashlib.sha256(LABELS.encode()).hexdigest()}"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with a good bundle."""
    (tmp_path / "bundle.toml").write_text(MANIFEST)
    (tmp_path / "labels.tsv").write_text(LABELS)
    (tmp_path / "model.onnx").write_bytes(WEIGHTS)
    return tmp_path


def test_a_good_bundle(root: Path) -> None:
    """Everything that the manifest says is there, with its types."""
    found = bundle.load(root)
    found.verify()
    assert (found.name, found.classes, found.activation) == ("test", 2, "none")
    assert found.input.std == (0.5, 0.5, 1.0)
    assert found.input.crop_fraction == 0.875
    assert found.weights("openvino") == root / "model.onnx"
    assert found.fingerprint == hashlib.sha256(MANIFEST.encode()).hexdigest()
    assert labels.read(found)[""].labels == [
        Label("犬", "n1", ("哺乳动物", "动物")),
        Label("书籍", "b1", ()),
    ]


def test_the_embedded_bundle_is_whole() -> None:
    """The bundle in this installation has all its files, unchanged, and its labels."""
    found = bundle.load(bundle.find("imagenet-zh"))
    found.verify()
    assert found.name in bundle.embedded()
    assert len(labels.read(found)[""].labels) == found.classes == 1000


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "test"\n', "", "lacks 'name'"),
        ("[backends]\n", "[other]\n", "lacks 'backends'"),
        ("[output]\n", "[other]\n", "lacks 'output'"),
        ("classes = 2\n", "", "lacks 'classes'"),
        ("= [0.5, 0.5, 0.5]", "= [0.5, 0.5]", "three numbers"),
        ("= [0.5, 0.5, 0.5]", "= 0.5", "not iterable"),
        ("= [0.5, 0.5, 0.5]", '= ["a", "b", "c"]', "could not convert"),
        ("= [0.5, 0.5, 0.5]", "= [nan, 0.5, 0.5]", "finite"),
        ("[0.5, 0.5, 1]", "[0.5, 0, 1]", "over 0"),
        ("bicubic", "sharp", "sharp"),
        ('activation = "none"', 'activation = "relu"', "relu"),
        ("size = 224", 'size = "big"', "big"),
        ("size = 224", "size = 0", "over 0"),
        ("size = 224", "size = 257", "resize"),
        ("size = 224", "size = inf", "infinity"),
        ("classes = 2", "classes = 0", "over 0"),
        ("[input]", "[[input]]", "[input] must be a table"),
        ("[files]", "[[files]]", "[files] must be a table"),
        ("[files]", "[files", "not valid TOML"),
        ("[files]", "[labels]\nlevels = []\ndefault = ''\n[files]", "different names"),
        ("[files]", "[labels]\nlevels = ['a', 'a']\ndefault = 'a'\n[files]", "different names"),
        ("[files]", "[labels]\nlevels = ['a']\ndefault = 'b'\n[files]", "'b' is not in"),
        ("[files]", "[labels]\nlevels = ['a']\n[files]", "lacks 'default'"),
    ],
)
def test_a_malformed_manifest_names_its_file(root: Path, old: str, new: str, reason: str) -> None:
    """Whatever is wrong with a manifest, a BundleError says where and what."""
    assert old in MANIFEST
    (root / "bundle.toml").write_text(MANIFEST.replace(old, new))
    with pytest.raises(BundleError) as caught:
        bundle.load(root)
    assert str(root / "bundle.toml") in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00", b"", b"x = " + b"[" * 100_000])
def test_a_manifest_that_is_no_text(root: Path, content: bytes) -> None:
    """Bytes that are no TOML are a BundleError."""
    (root / "bundle.toml").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.toml"):
        bundle.load(root)


def test_no_bundle_there(tmp_path: Path) -> None:
    """A directory without a manifest is no bundle, and neither is nothing."""
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BundleError, match="no model bundle at"):
            bundle.load(place)


def test_find() -> None:
    """A name is looked up, a path is taken as it is, an unknown name says what there is."""
    assert bundle.find("imagenet-zh").name == "imagenet-zh"
    assert bundle.find("./somewhere").name == "somewhere"
    for name in ("nonsense", "", ".", ".."):
        with pytest.raises(BundleError, match="there is: imagenet-zh"):
            bundle.find(name)


def test_no_weights_for_a_backend(root: Path) -> None:
    """The message names the backends that the bundle has weights for."""
    with pytest.raises(BundleError, match=r"torch \(has: openvino\)"):
        bundle.load(root).weights("torch")


def test_verify_finds_a_change(root: Path) -> None:
    """A changed file is named."""
    found = bundle.load(root)
    (root / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.onnx has sha256"):
        found.verify()


@pytest.mark.parametrize("damage", ["missing", "directory", "NUL"])
def test_verify_finds_what_cannot_be_read(root: Path, damage: str) -> None:
    """A file that is missing or no file is named."""
    (root / "model.onnx").unlink()
    if damage == "directory":
        (root / "model.onnx").mkdir()
    if damage == "NUL":
        text = MANIFEST.replace('"model.onnx" =', '"model.onnx\\u0000" =')
        (root / "bundle.toml").write_text(text)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        bundle.load(root).verify()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"0\ta\tb\tc\n",
        b"index\tlabel\n",
        b"index\tlabel\tid\tbroader\n",
        LABELS.encode() + "2\t猫\tn2\t\n".encode(),
        LABELS.replace("1\t书籍", "2\t书籍").encode(),
        LABELS.replace("1\t书籍\tb1\t", "1\t书籍\tb1").encode(),
        LABELS.replace("书籍", "书\t籍").encode(),
        LABELS.encode("gb18030"),
    ],
)
def test_malformed_labels_name_their_file(root: Path, content: bytes) -> None:
    """Whatever is wrong with the labels, a BundleError says where."""
    (root / "labels.tsv").write_bytes(content)
    with pytest.raises(BundleError, match=r"labels\.tsv"):
        labels.read(bundle.load(root))


def test_missing_labels_name_their_file(root: Path) -> None:
    """No labels, no answers."""
    (root / "labels.tsv").unlink()
    with pytest.raises(BundleError, match=r"labels\.tsv"):
        labels.read(bundle.load(root))


def test_reading_a_bundle_loads_no_library() -> None:
    """The client side reads bundles and speaks the protocol without numpy, Pillow or OpenVINO."""
    program = (
        "import sys\n"
        "from wuwan_worker.shared import bundle, protocol\n"
        "bundle.load(bundle.find('imagenet-zh'))\n"
        "print(*{'numpy', 'PIL', 'openvino', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        timeout=30,
        check=True,
        env={"PYTHONPATH": str(bundle.EMBEDDED.parents[1])},
    )
    assert done.stdout.split() == []
