"""data/tar.py: the members that tarfile finds, in all three formats, and one line for every archive that is damaged."""

import gzip
import io
import re
import subprocess
import tarfile

import pytest

from data import tar
from utils import InputError

SHORT = ("a.jpg", "folder/b.txt", "é ü.json", "d/" * 70 + "y" * 90 + ".png")
NAMES = (*SHORT, "x" * 100 + ".jpg", "d/" * 99 + "n" * 300 + ".txt")
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def write(path, members, kind=tarfile.PAX_FORMAT, **how):
    """An archive of (name or TarInfo, contents)."""
    with tarfile.open(path, "w", format=kind, **how) as archive:
        for name, contents in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))
    return path


def found(path) -> list:
    with tar.Archive(path) as archive:
        return [(one.name.decode(), one.offset, one.size, one.kind) for one in archive.members()]


def expected(path) -> list:
    with tarfile.open(path) as archive:
        return [(one.name, one.offset_data, one.size, "") for one in archive if one.isreg()]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_members_that_tarfile_finds(tmp_path, kind):
    names = enumerate(SHORT if kind == "ustar" else NAMES)
    members = [(name, bytes([k]) * size) for k, name in names for size in (0, 1, 511, 512, 20_000)]
    path = write(tmp_path / "a.tar", members, FORMATS[kind])
    assert found(path) == expected(path) and len(found(path)) == len(members)
    places = found(path)
    contents = path.read_bytes()
    assert [contents[start : start + size] for _, start, size, _ in places] == [one for _, one in members]


@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_what_gnu_tar_writes(tmp_path, kind):
    for k, name in enumerate(("b.txt", "a.png", "l" * (150 if kind in ("gnu", "oldgnu", "pax") else 50) + ".txt")):
        (tmp_path / "in" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "deep" / name).write_bytes(bytes(700 * k))
    subprocess.run(["tar", f"--format={kind}", "-cf", "a.tar", "-C", "in", "."], cwd=tmp_path, check=True)
    places = found(tmp_path / "a.tar")
    assert [one for one in places if not one[3]] == [
        (f"./{one[0].removeprefix('./')}", *one[1:]) for one in expected(tmp_path / "a.tar")
    ]
    assert [one[3] for one in places].count("a folder") == 2


def test_sizes_and_names_of_pax_headers_and_binary_sizes(tmp_path):
    """A pax record counts over the header's field; GNU's binary size is that of a file of 8 GB, here of 3 bytes."""
    long = tarfile.TarInfo("plain.txt")
    long.pax_headers = {"path": "other/ä.txt", "comment": "a=b\nc", "size": "3"}
    path = write(tmp_path / "a.tar", [(long, b"abc"), ("next.txt", b"d")])
    assert [one[::2] for one in found(path)] == [("other/ä.txt", 3), ("next.txt", 1)]
    header = bytearray(tarfile.TarInfo("b.txt").tobuf(tarfile.GNU_FORMAT)[:512])
    header[124:136] = b"\x80" + (3).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + b"abc".ljust(512, b"\0"))
    assert found(path) == expected(path) == [("b.txt", 512, 3, "")]


def test_the_end_may_lack_its_zeros_and_nothing_follows_it(tmp_path):
    path = write(tmp_path / "a.tar", [("a.txt", b"a"), ("b.txt", b"b")])
    whole = path.read_bytes()
    path.write_bytes(whole[:2048])
    assert [one[0] for one in found(path)] == ["a.txt", "b.txt"]
    path.write_bytes(whole + whole)
    with tar.Archive(path) as archive:
        assert len(list(archive.members())) == 2 and "joined by cat" in archive.faults[0]


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "a.txt"
    return info


def test_what_is_no_file_is_said(tmp_path):
    kinds = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    path = write(tmp_path / "a.tar", [(link("x", kind), b"") for kind in kinds] + [("a.txt", b"a")])
    words = ["a hard link", "a link", "a device", "a device", "a pipe", "a folder", ""]
    assert [one[3] for one in found(path)] == words


def changed(contents: bytes, at: int, new: bytes) -> bytes:
    """A header at 0 with a field replaced, and its checksum made right."""
    header = bytearray(contents[:512])
    header[at : at + len(new)] = new
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + contents[512:]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda c: c[:700], "cut short in 'a.txt', of which 188 of 1,024 bytes are there"),
        (lambda c: c[:1100], "cut short in 'a.txt', of which 588 of 1,024"),
        (lambda c: c[:1400], "cut short in 'a.txt'"),  # within the zeros that fill the last block
        (lambda c: c[:1600], "cut short in the header at byte 1536"),
        (lambda c: b"", "an empty file"),
        (lambda c: b"no tar at all" * 99, "not a tar archive"),
        (lambda c: b"short", "not a tar archive"),
        (gzip.compress, "compressed, so that its members have no positions: unpack it with gunzip"),
        (lambda c: c[:1540] + b"!" + c[1541:], "damaged at byte 1536, where a header should be"),
        (lambda c: changed(c, 124, b"77777777777\0"), "cut short in 'a.txt', of which"),
        (lambda c: changed(c, 124, b"\x80" + b"\x7f" * 11), "cut short in 'a.txt', of which"),
        (lambda c: changed(c, 124, b"\xff" * 12), "not a tar archive"),  # less than nothing
        (lambda c: changed(c, 124, b"-0000000777\0"), "not a tar archive"),
        (lambda c: changed(c, 124, b"99999999999\0"), "not a tar archive"),
        (lambda c: changed(c, 156, b"S"), "'a.txt' is sparse"),
        (lambda c: changed(c, 0, b"../b\0"), "the name '../b' leads out of the shard"),
        (lambda c: changed(c, 0, b"a/../../b\0"), "leads out of the shard"),
        (lambda c: changed(c, 0, b"/etc/passwd\0"), "the name '/etc/passwd' leads out of the shard"),
        (lambda c: changed(c, 156, b"x"), "damaged"),  # what it says of the next member is no record
        (lambda c: changed(changed(c, 156, b"L"), 124, b"77777777777\0"), "in the long header at byte 0"),
        (lambda c: changed(c[:1536], 156, b"L"), "cut short in the header at byte 1536"),  # of no member
    ],
)
def test_one_line_for_a_damaged_archive(tmp_path, how, message):
    path = write(tmp_path / "a.tar", [("a.txt", b"a" * 800), ("b.txt", b"b" * 100)])
    path.write_bytes(how(path.read_bytes()))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        found(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "record", [b"0 path=b\n", b"9 path=b\n\n", b"99 path=b\n", b"-1 path=b\n", b"path", b"9 pathb\n"]
)
def test_damaged_records_of_a_pax_header(tmp_path, record):
    path = write(tmp_path / "a.tar", [(link("h", b"x"), b""), ("b.txt", b"b")])
    contents = changed(path.read_bytes(), 124, b"%011o\0" % len(record))
    path.write_bytes(contents[:512] + record.ljust(512, b"\0") + contents[512:])
    with pytest.raises(InputError, match="damaged"):
        found(path)


def test_a_sparse_file_of_gnu_tar(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(1 << 20)
    for kind in ("gnu", "pax"):
        subprocess.run(["tar", "-S", f"--format={kind}", "-cf", "a.tar", "a.jpg"], cwd=tmp_path, check=True)
        with pytest.raises(InputError, match="is sparse: pack the shard without"):
            found(tmp_path / "a.tar")


def test_not_there_and_no_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        found(tmp_path / "a.tar")
    with pytest.raises(InputError, match="not a file"):
        found(tmp_path)
