"""Label files as people have them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from wuwan_runner.errors import ModelError
from wuwan_runner.models import general_zh, label_files
from wuwan_worker.shared import bundle, labels


def meta_info(path: Path, *cells: tuple[str, str, str]) -> Path:
    """A `meta_info.txt` with these labels."""
    lines = [f"{n}\t" + "\t".join(labels) + "\t0.9\t1.0\n" for n, labels in enumerate(cells)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_spellings_of_one_label_are_made_one(tmp_path: Path) -> None:
    """White space, width and case make no difference, the first spelling stays, "/" stays."""
    path = meta_info(
        tmp_path / "meta_info.txt",
        ("Polo衫", "我叫MT！", "绿植/花卉"),
        (" POLO衫 ", "我叫 mt!", "绿植 / 花卉"),
        ("ｐｏｌｏ衫", "a  b", "c\u3000d"),
    )
    table = label_files.read_meta_info(path)
    assert table.levels == ("coarse", "mid", "fine")
    assert table.rows == [
        ("Polo衫", "我叫MT!", "绿植/花卉"),
        ("Polo衫", "我叫MT!", "绿植/花卉"),
        ("Polo衫", "a b", "c d"),
    ]
    assert table.text().splitlines()[:2] == [
        "index\tcoarse\tmid\tfine",
        "0\tPolo衫\t我叫MT!\t绿植/花卉",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("0\ta\tb\tc\t1\t1\n2\ta\tb\tc\t1\t1\n", "line 2: index '2' where 1 must be"),
        ("0\ta\tb\tc\t1\n", "line 1: 5 columns, not 6"),
        ("0\ta\t \tc\t1\t1\n", "line 1: an empty label"),
        ("", "holds no labels"),
        ("0\ta\tb\tc\t1\t1\n\n", "line 2: 1 columns"),
    ],
)
def test_a_damaged_list_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    """The error names file and line: a label in the wrong place would be wrong for ever."""
    path = tmp_path / "meta_info.txt"
    path.write_text(content)
    with pytest.raises(ModelError, match=problem) as caught:
        label_files.read_meta_info(path)
    assert str(path) in str(caught.value)


def test_one_label_a_line(tmp_path: Path) -> None:
    """A byte order mark, Windows' line ends and spaces do not get into labels; ids are stable."""
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeff 猫 \r\n狗  狗\r\n猫\r\n".encode())
    table = label_files.read(path)
    assert table.levels == ()
    assert table.rows == [("猫", "0", ""), ("狗 狗", "1", ""), ("猫", "0", "")]


def test_a_table_as_in_a_bundle(tmp_path: Path) -> None:
    """What `wuwan` itself writes is taken as it is, with levels or without."""
    own = label_files.read(bundle.find("imagenet-zh") / labels.FILE)
    assert (own.levels, len(own.rows)) == ((), 1000)
    path = tmp_path / "levels.tsv"
    path.write_text("index\tkind\tname\n0\t动物\t猫\n1\t动物\t狗\n")
    table = label_files.read(path)
    assert table.levels == ("kind", "name")
    assert table.text() == path.read_text()
    path.write_text("index\tkind\tname\n0\t动物\t猫\n1\t狗\n")
    with pytest.raises(ModelError, match="line 3: expected index 1 and 3 columns"):
        label_files.read(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a\n\nb\n", "line 2: no label"),
        (b"0\tcat\n", "line 1: more than one column"),
        (b"cat\n\x1b[2Jdog\n", "line 2: control characters"),
        (b"a\n\xff\n", "is not UTF-8: byte 2"),
        (b"", "holds no labels"),
    ],
)
def test_what_is_no_label_file(tmp_path: Path, content: bytes, problem: str) -> None:
    """It is refused, with the line."""
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=problem):
        label_files.read(path)


def test_the_real_list(tmp_path: Path) -> None:
    """ModelScope's list for general-zh: the counts that are known of it, and those after cleaning.

    24 pairs of coarse labels differ in case, width or white space only.
    """
    path = Path(os.environ.get("WUWAN_TEST_DATA", "/nonexistent"), "general-zh/meta_info.txt")
    if not path.is_file():
        pytest.skip("WUWAN_TEST_DATA names no directory with general-zh/meta_info.txt")
    raw = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    heard: list[str] = []
    assert [len({line[column] for line in raw}) for column in (1, 2, 3)] == [10004, 27175, 40407]
    table = label_files.read_meta_info(path)
    assert len(table.rows) == 54092
    assert [len({row[depth] for row in table.rows}) for depth in range(3)] == [9980, 27078, 40357]
    assert sum("/" in label for label in {line[1] for line in raw}) == 1075
    assert {row[0] for row in table.rows[:64]} == {"书籍"}
    assert not [cell for row in table.rows for cell in row if cell != label_files.clean(cell)]
    shutil.copy(path, tmp_path)
    with pytest.raises(ModelError, match=r"has no file pytorch_model\.pt"):
        general_zh.source("general-zh", tmp_path, heard.append)
    (tmp_path / "pytorch_model.pt").touch()
    assert general_zh.source("general-zh", tmp_path, heard.append).checkpoint.classes == 54092
    assert heard == []  # it is the list whose sum is known
