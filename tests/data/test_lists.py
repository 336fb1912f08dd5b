from __future__ import annotations

import os
from pathlib import Path

import pytest

from evitseg.data.lists import Pair, read_pairs, write_pairs
from evitseg.errors import DatasetError
from tests.work_done import lines_run

NAMES = [
    "plain.jpg", "a,b.jpg", "#1.jpg", " # 2.jpg", "two  blanks .jpg", " leading.jpg", 'the "best".jpg', '"quoted".jpg',
    '5" pipe.jpg', "tab\there.jpg", "line\nbreak.jpg", "crlf\r\n.jpg", "\r.jpg", "größe 雪.PNG", "no ending",
    os.fsdecode(b"caf\xe9.jpg"), "-dash.jpg", "semi;colon.jpg", "a/b,c/d e.jpg",
]  # fmt: skip


def test_a_list_is_read_back_whatever_the_files_are_called(tmp_path: Path) -> None:
    pairs = [Pair(tmp_path / "images" / name, tmp_path / "out" / "masks" / f"{name}.png") for name in NAMES]
    pairs += [Pair(tmp_path / "out" / name, tmp_path / "out" / name) for name in NAMES]
    write_pairs(tmp_path / "out" / "pairs.txt", pairs)
    found = read_pairs(tmp_path / "out" / "pairs.txt")
    assert [(os.path.normpath(p.image), os.path.normpath(p.mask)) for p in found] == [
        (str(p.image), str(p.mask)) for p in pairs
    ]


def test_a_list_behind_a_link_leads_to_the_files(tmp_path: Path) -> None:
    (tmp_path / "deep/down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/down")
    (tmp_path / "x.png").touch()
    write_pairs(tmp_path / "link" / "pairs.txt", [Pair(tmp_path / "x.png", tmp_path / "x.png")])
    (pair,) = read_pairs(tmp_path / "link" / "pairs.txt")
    assert pair.image.is_file()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a.jpg,b.png\n\nc.jpg\n", "line 3: 'c.jpg' is not an image and a mask"),
        (b'a.jpg,"b.png\nc.jpg,d.png\n', "line 1"),
        (b"a.jpg,\n", "line 1"),
        (b"a.jpg,b.png,c.png\n", "line 1"),
        ("a.jpg,b.png\n".encode("utf-16"), "it looks like UTF-16"),
        ("a.jpg,b.png\n".encode("utf-16-le"), "looks like UTF-16"),
    ],
)
def test_a_bad_list_is_one_sentence(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=reason):
        read_pairs(tmp_path / "pairs.txt")


def test_lists_of_other_programs_are_read(tmp_path: Path) -> None:
    for content in (
        b"\xef\xbb\xbfimage,mask\r\na.jpg,b.png\r\n",
        b"# pairs\na.jpg b.png\n",
        b'"a.jpg" , "b.png"',
        b"a.jpg\tb.png",
    ):
        (tmp_path / "pairs.csv").write_bytes(content)
        assert read_pairs(tmp_path / "pairs.csv") == (Pair(tmp_path / "a.jpg", tmp_path / "b.png"),)


def test_a_quote_that_nothing_closes_is_reported_without_reading_the_whole_list(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text('"a.jpg,b.png\n' + "c.jpg,d.png\n" * 300_000)

    def read() -> None:
        with pytest.raises(DatasetError, match="line 1: ") as error:
            read_pairs(tmp_path / "pairs.txt")
        assert len(str(error.value)) < 600

    assert lines_run(read) < 30_000


def test_a_tab_separates_names_with_commas(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a, b.jpg\ta, b.png\n")
    assert read_pairs(tmp_path / "pairs.txt") == (Pair(tmp_path / "a, b.jpg", tmp_path / "a, b.png"),)
