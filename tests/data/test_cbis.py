"""cbis_table on tiny trees made by hand as Kaggle has them, each with a trap of the real files."""

import logging
import os

import pytest
from PIL import Image

from data.cbis import cbis_table
from utils import InputError

HEADER = (
    "patient_id,breast density,left or right breast,image view,abnormality id,abnormality type,calc type,"
    "calc distribution,assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path"
)
CROP, MASK, FULL = "cropped images", "ROI mask images", "full mammogram images"
SMALL, BIG = (12, 10), (40, 60)
CALC_TRAIN = "csv/calc_case_description_train_set.csv"


def case(number, full, crop, mask=None, pathology="BENIGN", abnormality=1, name="Calc-Training_P_{:05d}_LEFT_CC"):
    """A row of a case CSV, with the line feed that ends a quoted cell in the real ones."""
    scan = name.format(number)
    one, two = ("000001.dcm", "000000.dcm") if mask is None else ("000000.dcm", "000000.dcm")
    return (
        f"P_{number:05d},3,LEFT,CC,{abnormality},calcification,AMORPHOUS,CLUSTERED,3,{pathology},3,"
        f'{scan}/1.9.1/{full}/000000.dcm,"{scan}_{abnormality}/1.9.2/{crop}/{one}\n",'
        f"{scan}_{abnormality}/1.9.2/{mask or crop}/{two}"
    )


def write_cases(root, *rows, file=CALC_TRAIN, header=HEADER):
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{row}\r\n" for row in (header, *rows)).encode())


def write_info(root, *rows):
    """rows: (series, name, description, (columns, rows) of the DICOM)"""
    lines = ["file_path,image_path,Columns,PatientID,Rows,SeriesDescription,SeriesInstanceUID"]
    for series, name, description, (width, height) in rows:
        lines.append(f"CBIS-DDSM/dicom/x.dcm,CBIS-DDSM/jpeg/{series}/{name},{width},x,{height},{description},{series}")
    (root / "csv/dicom_info.csv").write_text("\n".join(lines) + "\n")


def write_image(root, series, name, size):
    path = root / "jpeg" / series / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path)
    return str(path)


@pytest.fixture
def tree(tmp_path):
    """Two abnormalities of one mammogram and one of another; crop and mask share a series, and so base names."""
    write_cases(
        tmp_path,
        case(5, "1.1", "1.11", pathology="MALIGNANT"),
        case(5, "1.1", "1.12", abnormality=2),
        case(3, "1.2", "1.13", pathology="BENIGN_WITHOUT_CALLBACK"),
    )
    for series in ("1.1", "1.2"):
        write_image(tmp_path, series, "1-007.jpg", BIG)
    for series, crop, mask in (
        ("1.11", "1-007.jpg", "2-008.jpg"),
        ("1.12", "2-008.jpg", "1-007.jpg"),
        ("1.13", "1-007.jpg", "1-001.jpg"),
    ):
        write_image(tmp_path, series, crop, SMALL)
        write_image(tmp_path, series, mask, BIG)
    write_info(
        tmp_path,
        ("1.13", "1-001.jpg", MASK, BIG),
        ("1.1", "1-007.jpg", FULL, BIG),
        ("1.12", "1-007.jpg", MASK, BIG),
        ("1.12", "2-008.jpg", CROP, SMALL),
        ("1.11", "1-007.jpg", CROP, SMALL),
        ("1.11", "2-008.jpg", "", BIG),
        ("1.13", "1-007.jpg", CROP, SMALL),
        ("1.2", "1-007.jpg", "", BIG),
        ("1.77", "1-001.jpg", CROP, SMALL),
    )
    return tmp_path


def pick(root, **arguments):
    """-> the path under jpeg/ that each row of the table has."""
    jpeg = os.path.join(os.path.abspath(root), "jpeg")
    return [os.path.relpath(path, jpeg) for path in cbis_table(root, **arguments).path]


CROPS = ["1.11/1-007.jpg", "1.12/2-008.jpg", "1.13/1-007.jpg"]
FULLS = ["1.1/1-007.jpg", "1.1/1-007.jpg", "1.2/1-007.jpg"]


def test_each_abnormality_gets_its_own_crop_in_the_order_of_the_csv(tree):
    table = cbis_table(tree, "calcification", "train")
    assert list(table.columns) == ["id", "patient_id", "path", "label"]
    scans = ["Calc-Training_P_00005_LEFT_CC_1", "Calc-Training_P_00005_LEFT_CC_2", "Calc-Training_P_00003_LEFT_CC_1"]
    assert list(table.id) == scans
    assert list(table.patient_id) == ["P_00005", "P_00005", "P_00003"]
    assert list(table.label) == ["MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"]
    assert list(table.index) == [0, 1, 2] and table.attrs["missing"] == []
    assert pick(tree) == CROPS


@pytest.mark.parametrize("size", ["9" * 5000, "none", "-3"])
def test_a_size_that_is_none_is_left_aside(tree, size):
    before = cbis_table(tree, "calcification", "train")
    info = tree / "csv/dicom_info.csv"
    header, *rows = (line.split(",") for line in info.read_text().splitlines())
    for row in rows:
        row[2] = row[4] = size
    info.write_text("\n".join(",".join(row) for row in (header, *rows)) + "\n")
    assert cbis_table(tree, "calcification", "train").equals(before)


def test_full_has_one_row_an_abnormality(tree):
    assert pick(tree, image="full") == FULLS
    assert cbis_table(tree, image="full").id.is_unique


def test_without_dicom_info_the_sizes_tell(tree):
    (tree / "csv/dicom_info.csv").unlink()
    assert pick(tree) == CROPS
    assert pick(tree, image="full") == FULLS


def test_without_dicom_info_other_extensions_count_and_other_files_do_not(tree):
    (tree / "csv/dicom_info.csv").unlink()
    os.rename(tree / "jpeg/1.11/1-007.jpg", tree / "jpeg/1.11/1-007.JPEG")
    os.remove(tree / "jpeg/1.12/2-008.jpg")
    write_image(tree, "1.12", "2-008.png", SMALL)
    for name in ("._1-007.jpg", "Thumbs.db", "notes.txt"):
        (tree / "jpeg/1.11" / name).write_bytes(b"no image")
    assert pick(tree)[:2] == ["1.11/1-007.JPEG", "1.12/2-008.png"]


def test_images_that_the_index_lacks_are_found_on_disk(tree):
    write_info(tree, ("1.11", "2-008.jpg", MASK, BIG), ("1.12", "2-008.jpg", CROP, SMALL))
    assert pick(tree) == CROPS
    assert pick(tree, image="full") == FULLS


def test_sizes_are_compared_on_one_scale(tmp_path):
    # The JPEGs are all reduced to one size; only the sizes of the DICOMs tell them apart.
    write_cases(tmp_path, case(1, "1.1", "1.2"))
    for series, name in (("1.1", "a.jpg"), ("1.2", "a.jpg"), ("1.2", "b.jpg")):
        write_image(tmp_path, series, name, SMALL)
    write_info(tmp_path, ("1.2", "a.jpg", "", (3000, 4500)), ("1.2", "b.jpg", "", (300, 200)))
    assert pick(tmp_path) == ["1.2/b.jpg"]
    # A DICOM's size is not compared with a JPEG's: a.jpg's real partner is smaller in the file only.
    write_info(tmp_path, ("1.2", "a.jpg", "", (30, 20)))
    write_image(tmp_path, "1.2", "a.jpg", (8, 6))
    assert pick(tmp_path) == ["1.2/a.jpg"]


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("swapped", [True, False])
def test_crop_and_mask_in_two_series_even_when_the_cells_are_swapped(tmp_path, described, swapped):
    write_cases(tmp_path, case(1, "1.1", "1.2", "1.3"))
    crop, mask = ("1.3", "1.2") if swapped else ("1.2", "1.3")
    write_image(tmp_path, crop, "1-001.jpg", SMALL)
    write_image(tmp_path, mask, "1-001.jpg", BIG)
    if described:
        write_info(tmp_path, (mask, "1-001.jpg", MASK, BIG), (crop, "1-001.jpg", CROP, SMALL))
    assert pick(tmp_path) == [f"{crop}/1-001.jpg"]


def test_mask_is_never_taken_for_a_missing_crop(tree, caplog):
    os.remove(tree / "jpeg/1.11/1-007.jpg")
    first = "Calc-Training_P_00005_LEFT_CC_1"

    def left_out():
        table = cbis_table(tree)
        assert pick(tree) == CROPS[1:] and list(table.index) == [0, 1]
        return [case_id for case_id, reason in table.attrs["missing"] if reason]

    with caplog.at_level(logging.WARNING, "medslip"):
        assert left_out() == [first]
    assert "1 of 3 rows" in caplog.text and first in caplog.text
    write_info(tree, ("1.11", "2-008.jpg", "", BIG), ("1.1", "1-007.jpg", "", BIG))  # as if it had never been there
    assert left_out() == [first]
    os.remove(tree / "csv/dicom_info.csv")
    assert left_out() == [first]
    os.remove(tree / "jpeg/1.1/1-007.jpg")  # no mammogram to compare with either
    assert left_out() == [first]


def test_lone_crop_is_kept_without_its_mask(tree):
    os.remove(tree / "jpeg/1.11/2-008.jpg")
    assert pick(tree) == CROPS
    os.remove(tree / "csv/dicom_info.csv")
    assert pick(tree) == CROPS


@pytest.mark.parametrize(("indexed", "content"), [(True, b""), (False, b""), (False, b"no JPEG")])
def test_empty_and_unreadable_files(tree, indexed, content):
    if not indexed:
        os.remove(tree / "csv/dicom_info.csv")
    (tree / "jpeg/1.11/1-007.jpg").write_bytes(content)
    assert [case_id for case_id, _ in cbis_table(tree).attrs["missing"]] == ["Calc-Training_P_00005_LEFT_CC_1"]


def test_one_readable_mammogram_of_two_is_taken(tree):
    os.remove(tree / "csv/dicom_info.csv")
    (tree / "jpeg/1.1/1-000.jpg").write_bytes(b"no JPEG")
    assert pick(tree, image="full") == FULLS
    assert pick(tree) == CROPS


def test_equal_candidates_are_not_guessed_at(tree):
    os.remove(tree / "csv/dicom_info.csv")
    write_image(tree, "1.12", "2-008.jpg", BIG)
    assert "equal" in cbis_table(tree).attrs["missing"][0][1]


def test_no_image_at_all_is_an_error(tree):
    for series in ("1.11", "1.12", "1.13"):
        os.rename(tree / "jpeg" / series, tree / f"away{series}")
    with pytest.raises(InputError, match="3 of 3 rows"):
        cbis_table(tree)
    assert pick(tree, image="full") == FULLS


def test_mass_test_split_with_its_own_spelling_and_quoting(tree):
    header = HEADER.replace("breast density", "breast_density").replace("calc type", "mass shape")
    row = case(7, "1.2", "1.13", name="Mass-Test_P_{:05d}_LEFT_CC").replace("\n", "")
    write_cases(tree, row[: row.rindex(",") + 1] + f'"{row[row.rindex(",") + 1 :]}\n"', file="x", header=header)
    os.rename(tree / "x", tree / "csv/mass_case_description_test_set.csv")
    table = cbis_table(tree, "mass", "test")
    assert list(table.id) == ["Mass-Test_P_00007_LEFT_CC_1"] and table.path[0].endswith("1.13/1-007.jpg")


def test_a_csv_under_the_name_of_another_split_is_reported(tree, caplog):
    os.rename(tree / CALC_TRAIN, tree / "csv/calc_case_description_test_set.csv")
    with caplog.at_level(logging.WARNING, "medslip"):
        cbis_table(tree, split="test")
    assert "Calc-Test_" in caplog.text


def test_paths_open_from_any_folder(tree, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tree.parent)
    table = cbis_table(tree.name)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    for path in table.path:
        with Image.open(path) as file:
            assert file.size == SMALL


def test_root_and_its_folders_may_be_links(tree, tmp_path_factory):
    place = tmp_path_factory.mktemp("links")
    (place / "root").symlink_to(tree)
    assert pick(place / "root") == CROPS
    (place / "parts").mkdir()
    for name in ("csv", "jpeg"):
        (place / "parts" / name).symlink_to(tree / name)
    assert pick(str(place / "parts")) == CROPS


def test_byte_order_mark_and_blank_rows_do_no_harm(tree):
    path = tree / CALC_TRAIN
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n,,,,,,,,,,,,,\r\n")
    assert pick(tree) == CROPS


def test_column_names_may_be_spelt_with_underscores(tree):
    write_cases(tree, case(1, "1.1", "1.11"), header=HEADER.replace(" ", "_"))
    assert pick(tree) == CROPS[:1]


def refused(*arguments, **keywords):
    with pytest.raises(InputError) as caught:
        cbis_table(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


def test_wrong_arguments(tree):
    assert "calcification, mass" in refused(tree, "calc")
    assert "train, test" in refused(tree, split="val")
    assert "crop, full" in refused(tree, image="mask")
    for root in ("", "a\0b", tree / "nowhere", tree / CALC_TRAIN):
        assert "csv/ and jpeg/" in refused(root)
    assert "mass_case_description_train_set.csv" in refused(tree, "mass")


@pytest.mark.parametrize("folder", ["csv", "jpeg"])
def test_missing_folder(tree, folder):
    os.rename(tree / folder, tree / "renamed")
    assert folder in refused(tree)


@pytest.mark.parametrize("file", [CALC_TRAIN, "csv/dicom_info.csv"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        HEADER.encode(),
        b"\x89PNG\r\n\x1a\n\0\0\xff\xfe",
        bytes(range(128)) * 9,
        "patient_id,é\n".encode("utf-16"),
        b'patient_id,image_path\n"never closed',
        b"patient_id\n" + b"x" * 200_000,
        HEADER.encode() + b"\nonly,three,cells\n",
    ],
)
def test_broken_csv(tree, file, content):
    (tree / file).write_bytes(content)
    assert file in refused(tree)


def test_csv_cut_off_inside_a_cell(tree):
    content = (tree / CALC_TRAIN).read_bytes()
    (tree / CALC_TRAIN).write_bytes(content + b'P_1,,,,,,,,,BENIGN,,a/b/1.1/c,a/b/1.11/c,"a/b/1.11/c')
    assert "not a CSV file" in refused(tree)


def test_csv_that_is_a_folder(tree):
    os.remove(tree / CALC_TRAIN)
    (tree / CALC_TRAIN).mkdir()
    assert CALC_TRAIN in refused(tree)


@pytest.mark.parametrize("place", [CALC_TRAIN, "csv/dicom_info.csv", "jpeg/1.11"])
def test_what_the_system_refuses_to_open(tree, place):
    os.rename(tree / place, tree / "away")
    (tree / place).symlink_to(tree / place)  # a link to itself: an OSError for every user, root included
    assert place in refused(tree)


@pytest.mark.parametrize("column", ["patient_id", "pathology", "image file path", "ROI mask file path"])
def test_missing_column(tree, column):
    write_cases(tree, case(1, "1.1", "1.11"), header=HEADER.replace(f",{column}", ",other").replace("patient", "no"))
    assert "column" in refused(tree)


@pytest.mark.parametrize("value", ["benign", "", "UNPROVEN", "BENIGN\x1b[31m"])
def test_unknown_pathology_is_named_with_its_row(tree, value):
    write_cases(tree, case(1, "1.1", "1.11"), case(2, "1.2", "1.13", pathology=value))
    assert "row 3: pathology" in refused(tree)


def test_duplicate_id(tree):
    write_cases(tree, case(1, "1.1", "1.11"), case(2, "1.2", "1.13"), case(1, "1.1", "1.12"))
    message = refused(tree)
    assert "row 4" in message and "row 2" in message and "Calc-Training_P_00001_LEFT_CC_1" in message


@pytest.mark.parametrize("uid", ["", ".", "..", "../../../etc", "a\0b", "C:", "..\\up", "1\x07", "1\n2", "1" * 300])
@pytest.mark.parametrize("cell", ["full", "crop", "mask"])
def test_malformed_or_hostile_series(tree, uid, cell):
    row = case(1, "FULL", "CROP", "MASK").replace(cell.upper(), uid)
    write_cases(tree, row)
    assert CALC_TRAIN in refused(tree)


@pytest.mark.parametrize("cell", ["", "only_an_id", "id/1.2/000000.dcm", "/etc/passwd/1.2/x", "a/b/c/d/e"])
def test_cell_without_a_series(tree, cell):
    row = case(1, "1.1", "1.11")
    start, end = row.index('"'), row.rindex('"') + 1
    write_cases(tree, row[:start] + cell + row[end:])
    assert "row 2: cropped image file path" in refused(tree)


@pytest.mark.parametrize(
    "path",
    ["/etc/jpeg/1.2/x.jpg", "C/jpeg/../x.jpg", "C/jpeg/1.2/..", "jpeg/a/b/c.jpg", "x.jpg", "jpeg/a\0/b", "jpeg/a/"],
)
def test_hostile_dicom_info(tree, path):
    (tree / "csv/dicom_info.csv").write_text(f"image_path,SeriesDescription\n{path},{CROP}\n")
    assert "dicom_info.csv" in refused(tree)


def test_nothing_outside_the_root_is_read(tmp_path):
    root = tmp_path / "root"
    (root / "jpeg").mkdir(parents=True)
    (root / "csv").mkdir()
    write_image(tmp_path, "1.2", "1-001.jpg", SMALL)
    for up in ("../../jpeg/1.2", str(tmp_path / "jpeg/1.2"), ".."):
        write_cases(root, case(1, "1.1", up))
        refused(root)
    write_cases(root, case(1, "1.1", "1.2"))
    write_info(root, ("../../jpeg/1.2", "1-001.jpg", CROP, SMALL))
    refused(root)
