"""What was passed over in directories, and which of those that were named gave nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wuwan_runner.inputs.discover import discover
from wuwan_runner.inputs.survey import KINDS, Survey
from wuwan_runner.options import Selection

if TYPE_CHECKING:
    from pathlib import Path


def _survey(*paths: Path | str, **selection: object) -> Survey:
    survey = Survey()
    for _ in discover(map(str, paths), Selection(**selection), survey):  # type: ignore[arg-type]
        pass
    return survey


def _make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_are_counted_by_extension(tmp_path: Path) -> None:
    """The most frequent come first; what has no extension is among the others."""
    _make(tmp_path, "a.jpg", "1.CR3", "b/2.cr3", "b/3.mov", "README", "a.odd extension")
    survey = _survey(tmp_path)
    assert survey.passed_over == 5
    assert survey.describe_passed_over() == "2 .cr3, 1 .mov, 2 others"
    assert survey.describe_absent() == ""


def test_what_was_not_wanted_is_not_counted(tmp_path: Path) -> None:
    """Hidden and excluded files, files that patterns did not choose, the run's own."""
    _make(tmp_path, "a.jpg", ".b.txt", ".c/d.txt", "e.txt", "f/g.txt")
    assert _survey(tmp_path, exclude=("e.txt", "f")).passed_over == 0
    assert _survey(tmp_path, include=("*.jpg",)).passed_over == 0
    assert _survey(tmp_path, recursive=False).passed_over == 1
    survey = Survey(own=frozenset({"e.txt"}))
    assert len(list(discover([str(tmp_path)], Selection(), survey))) == 1
    assert survey.describe_passed_over() == "1 .txt"


def test_memory_is_bounded() -> None:
    """Any number of extensions, and any number of things that are not there."""
    survey = Survey()
    for number in range(10_000):
        survey.pass_over(f"x.a{number:x}"[:6])
        survey.miss(f"{number}")
    assert len(survey.kinds) == KINDS
    assert survey.passed_over == 10_000
    assert len(survey.absent) < 10
    assert survey.describe_absent().endswith("; and 9,995 more")


def test_only_others() -> None:
    """There is nothing to be other than."""
    survey = Survey()
    assert survey.describe_passed_over() == ""
    survey.pass_over("README")
    assert survey.describe_passed_over() == "1 file"


def test_directories_that_give_nothing(tmp_path: Path) -> None:
    """Empty, without an image, or not there; a file that is not there is no directory."""
    _make(tmp_path, "raw/1.cr3", "raw/2.cr3", "full/a.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links/gone.jpg").symlink_to("nothing")
    names = ("raw", "full", "empty", "links", "disk", "gone.jpg", "gone.txt")
    survey = _survey(*(tmp_path / name for name in names))
    assert survey.absent == [
        f"{tmp_path}/raw: no images among 2 files",
        f"{tmp_path}/empty: no images",
        f"{tmp_path}/disk: No such file or directory",
    ]
