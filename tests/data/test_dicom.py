"""DICOM: every file of the pydicom wheel, values worked out by hand, and what is refused in one line."""

import itertools
import logging
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut
from pydicom.uid import JPEGLSLossless

from conftest import REPOSITORY, picture
from data import cache, dicom, images, locations
from data.folders import image_folder
from dicom_files import WHEEL, table_item, write_dicom
from utils import InputError

FILES = WHEEL / "test_files"
NO_PIXELS, FRAMES = "no pixel data", "frames and not one picture"
# Of the wheel's DICOM files: the mode and size of the picture, or a part of the line that says why there is none.
OUTCOMES = {
    "L 32x32": "chrArab chrFren chrFrenMulti chrGerm chrGreek chrH31 chrH32 chrHbrw chrI2 chrRuss chrX1 chrX2",
    "L 512x512": "693_J2KI J2K_pixelrep_mismatch image_dfl liver_1frame liver_expb_1frame",
    "L 128x128": "CT_small",
    "L 64x64": "MR_small MR_small_RLE MR_small_bigendian MR_small_expb MR_small_implicit MR_small_jp2klossless "
    "MR_small_jpeg_ls_lossless MR_small_padded",
    "L 256x1024": "JPEG2000 JPGExtended",
    "L 10x45": "JPEGLSNearLossless_08",
    "L 10x50": "JPEGLSNearLossless_16",
    "L 10x10": "rtdose_1frame rtdose_expb_1frame rtdose_rle_1frame",
    "L 16x16": "6154 6247 6278 17106 17136 17166 17196 6293 6924 2062 2392 2693 3023 3353 15820 4919 5641 15970 4950 "
    "4981 5011 6273 6605 6935 4467 4528 4558 4588 4618 4648 4678",
    "L 484x300": "examples_overlay",
    "RGB 3x3": "SC_rgb_small_odd SC_rgb_small_odd_big_endian SC_rgb_small_odd_jpeg",
    "RGB 80x60": "ExplVR_BigEnd",
    "RGB 100x100": "SC_rgb_dcmtk_+eb+cr SC_rgb_dcmtk_+eb+cy+n1 SC_rgb_dcmtk_+eb+cy+n2 SC_rgb_dcmtk_+eb+cy+np "
    "SC_rgb_dcmtk_+eb+cy+s2 SC_rgb_dcmtk_+eb+cy+s4 SC_rgb_gdcm_KY SC_rgb_jls_lossy_line SC_rgb_jls_lossy_sample "
    "SC_rgb_jpeg_dcmtk SC_rgb_jpeg_gdcm SC_rgb_jpeg_lossy_gdcm SC_rgb_rle SC_rgb_rle_16bit SC_rgb_rle_32bit "
    "SC_ybr_full_422_uncompressed",
    "RGB 256x256": "SC_jpeg_no_color_transform SC_jpeg_no_color_transform_2 SC_rgb_jpeg SC_rgb_jpeg_app14_dcmd "
    "SC_rgb_jpeg_dcmd",
    "RGB 320x240": "examples_rgb_color",
    "RGB 400x400": "GDCMJ2K_TextGBR",
    "RGB 640x480": "examples_jpeg2k",
    "RGB 800x350": "examples_palette",
    "cut short: 8,130 of 8,192 bytes": "MR_truncated",
    "cannot be decoded: pylibjpeg: libjpeg error": "JPEG-lossy",
    "in its header and (1024, 3722445056, 1) in its coded pixels": "JPEG2000-embedded-sequence-delimiter",
    "not a DICOM file": "ExplVR_BigEndNoMeta no_meta",
    "lacks Rows": "meta_missing_tsyntax nested_priv_SQ",
    f"1A {FRAMES}": "badVR",
    f"2 {FRAMES}": "SC_rgb_rle_16bit_2frame SC_rgb_rle_2frame SC_rgb_rle_32bit_2frame",
    f"15 {FRAMES}": "rtdose rtdose_expb rtdose_rle",
    f"30 {FRAMES}": "examples_ybr_color",
    NO_PIXELS: "chrJapMulti chrJapMultiExplicitIR6 chrKoreanMulti chrSQEncoding chrSQEncoding1 fall hotiron "
    "hotmetalblue pet pet20step spring summer winter ExplVR_LitEndNoMeta UN_sequence DICOMDIR DICOMDIR-bigEnd "
    "DICOMDIR-empty DICOMDIR-implicit DICOMDIR-nooffset DICOMDIR-nopatient DICOMDIR-reordered empty_charset_LEI "
    "no_meta_group_length priv_SQ reportsi reportsi_with_empty_number_tags rtplan rtplan_truncated rtstruct test-SR "
    "waveform_ecg " + " ".join(f"IM0000{one}" for one in "00 01 02 03 0Z 1D".split()),
}
EXPECTED = {name: outcome for outcome, names in OUTCOMES.items() for name in names.split()}


def wheel_files() -> list:
    """The DICOM files of the wheel; of a series of like ones without pixels the first four and the last two."""
    found = [
        path for path in sorted(WHEEL.rglob("*")) if path.is_file() and path.suffix not in (".json", ".gz", ".txt")
    ]
    marked = [path for path in found if path.suffix == ".dcm" or images.has_dicom_mark(path.read_bytes())]
    return [path for path in marked if not path.name.startswith("IM0000") or path.name in EXPECTED]


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        dicom.read(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and message.isprintable()
    return message


def pixels(path, window: str = "") -> np.ndarray:
    return np.asarray(dicom.read(locations.make(str(path), window=window)))


@pytest.mark.parametrize("path", wheel_files(), ids=lambda path: path.name)
def test_each_file_of_the_wheel_is_read_or_refused_in_a_line_that_says_why(path):
    expected = EXPECTED.get(path.name.removesuffix(".dcm"))
    if expected is None:  # of a wheel newer than this table
        try:
            dicom.read(str(path))
        except InputError as error:
            assert "\n" not in str(error)
    elif expected.startswith(("L ", "RGB ")):
        image = dicom.read(str(path))
        assert f"{image.mode} {image.width}x{image.height}" == expected
        assert dicom.looks_whole(str(path)) == (path.name != "image_dfl.dcm")
    else:
        message = refusal(path)
        assert expected in message and (expected != NO_PIXELS or "pass --skip-broken" in message)


def test_the_table_is_of_this_wheel():
    found = {path.name.removesuffix(".dcm") for path in wheel_files()}
    assert len(found & EXPECTED.keys()) > 100


# Golden values: worked out with NumPy from the stored pixels


def test_a_ct_through_rescale_and_window():
    stored = np.frombuffer(pydicom.dcmread(FILES / "CT_small.dcm").PixelData, "<i2").reshape(128, 128).astype(float)
    hounsfield = stored - 1024
    window = np.rint(255 * ((hounsfield - 39.5) / 399 + 0.5).clip(0, 1))
    assert np.array_equal(pixels(FILES / "CT_small.dcm", window="40/400"), window)
    full = np.rint(255 * (hounsfield - hounsfield.min()) / (hounsfield.max() - hounsfield.min()))
    assert np.array_equal(pixels(FILES / "CT_small.dcm"), full)  # its header has no window


@pytest.mark.parametrize("twin", OUTCOMES["L 64x64"].split()[1:])
def test_one_mr_in_eight_encodings_is_one_picture(twin):
    stored = np.frombuffer(pydicom.dcmread(FILES / "MR_small.dcm").PixelData, "<i2").reshape(64, 64).astype(float)
    expected = np.rint(255 * ((stored - 599.5) / 1599 + 0.5).clip(0, 1))
    assert np.array_equal(pixels(FILES / "MR_small.dcm"), expected)
    assert np.array_equal(pixels(FILES / f"{twin}.dcm"), expected)


def test_a_monochrome1_film_is_inverted_after_its_window():
    path = FILES / "dicomdirtests" / "77654033" / "CR1" / "6154"
    stored = np.frombuffer(pydicom.dcmread(path).PixelData, "<u2").reshape(16, 16).astype(float)
    shown = ((0.684 * stored + 200 - 1599.5) / 2799 + 0.5).clip(0, 1)
    assert np.array_equal(pixels(path), np.rint(255 * (1 - shown)))


@pytest.mark.parametrize("name", [*OUTCOMES["RGB 100x100"].split()])
def test_colour_bars(name):
    image = pixels(FILES / f"{name}.dcm").astype(int)
    bars = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255), (0, 0, 0),
            (64, 64, 64), (192, 192, 192), (255, 255, 255)]  # fmt: skip
    lossless = name.startswith("SC_rgb_rle") or name == "SC_rgb_jpeg_gdcm"
    assert np.abs(image[5::10, 50] - bars).max() <= (0 if lossless else 5)


def test_other_colours():
    odd = pixels(FILES / "SC_rgb_small_odd.dcm")
    assert np.array_equal(
        odd.ravel(), np.frombuffer(pydicom.dcmread(FILES / "SC_rgb_small_odd.dcm").PixelData, "u1")[:27]
    )
    assert np.array_equal(pixels(FILES / "SC_rgb_small_odd_big_endian.dcm"), odd)
    text = pixels(FILES / "GDCMJ2K_TextGBR.dcm")  # the words red, green and blue, in their colours, on gray
    for row, channel in ((80, 0), (190, 1), (300, 2)):
        strip = text[row - 40 : row + 40].reshape(-1, 3).astype(int)
        coloured = strip[np.ptp(strip, axis=1) > 200]
        assert len(coloured) and (coloured.argmax(axis=1) == channel).all()
    palette = pydicom.dcmread(FILES / "examples_palette.dcm")
    red = np.frombuffer(palette.RedPaletteColorLookupTableData, "<u2") >> 8
    assert np.abs(pixels(FILES / "examples_palette.dcm")[..., 0] - red[palette.pixel_array].astype(int)).max() <= 1


# Files written here


@pytest.mark.parametrize(
    ("function", "window"),
    [
        *itertools.product(("LINEAR", "LINEAR_EXACT", "SIGMOID"), [(1000, 1500), (500.5, 1), (4000, 9000)]),
        *itertools.product(("LINEAR_EXACT", "SIGMOID"), [(-2000, 0.5)]),
    ],
)
def test_windows_are_those_of_pydicom(tmp_path, function, window):
    stored = np.arange(4096, dtype=np.int16).reshape(64, 64) - 2048
    path = write_dicom(
        tmp_path / "a.dcm", stored, WindowCenter=[window[0], 7], WindowWidth=[window[1], 7], VOILUTFunction=function,
        RescaleSlope=2, RescaleIntercept=-10,
    )  # fmt: skip
    file = pydicom.dcmread(path)
    full = 2 * np.array([-32768, 32767]) - 10  # the range that pydicom maps a window to
    with np.errstate(over="ignore"):
        shown = (apply_voi_lut(2.0 * stored - 10, file) - full[0]) / (full[1] - full[0])
    assert np.abs(pixels(path) - 255 * shown).max() < 0.5 + 1e-9  # on a half either neighbour is right


def test_tables_of_modality_and_voi(tmp_path):
    stored = np.array([[0, 1, 2, 3, 4, 9]], np.uint16)
    modality = table_item(1, [100, 90, 50, 20], 16)
    path = write_dicom(tmp_path / "a.dcm", stored, ModalityLUTSequence=[modality])
    assert pixels(path).tolist() == [[255, 255, round(255 * 70 / 80), round(255 * 30 / 80), 0, 0]]
    voi = table_item(20, [0] * 30 + list(range(0, 4080, 80)), 12)  # 20 to 49 are black, then 80 a step
    path = write_dicom(
        tmp_path / "b.dcm", stored, ModalityLUTSequence=[modality], VOILUTSequence=[voi], WindowCenter=1, WindowWidth=2
    )
    shown = [4000, 4000, 3200, 0, 0, 0]
    assert pixels(path).tolist() == [[round(255 * one / 4095) for one in shown]]
    assert pixels(path, window="60/81").tolist() == [[255, 255, 225, 97, 2, 2]]  # instead of the header's table


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_no_part_of_the_range(tmp_path, kind):
    stored = np.array([[0, 100, 200, 300, 4000, 4095]], np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm", stored, PhotometricInterpretation=kind, PixelPaddingValue=4095, PixelPaddingRangeLimit=4000
    )
    shown = [0, 85, 170, 255]
    assert pixels(path).tolist() == [[*(shown if kind == "MONOCHROME2" else shown[::-1]), 0, 0]]
    window = {"WindowCenter": 200, "WindowWidth": 201}
    path = write_dicom(tmp_path / "b.dcm", stored, PhotometricInterpretation=kind, PixelPaddingValue=0, **window)
    shown = [0, 1, 128, 255, 255, 255]
    assert pixels(path).tolist() == [[0, *(shown if kind == "MONOCHROME2" else [255 - one for one in shown])[1:]]]


def test_a_signed_padding_that_is_written_as_unsigned(tmp_path):
    stored = np.array([[-2000, 0, 50, 100]], np.int16)
    path = write_dicom(tmp_path / "a.dcm", stored)
    raw = pydicom.dcmread(path)
    raw.add_new("PixelPaddingValue", "US", 65536 - 2000)
    raw.save_as(path)
    assert pixels(path).tolist() == [[0, 0, 128, 255]]


def test_eight_bits_are_left_as_they_are(tmp_path):
    stored = np.asarray(picture(0)) // 2 + 50
    assert np.array_equal(pixels(write_dicom(tmp_path / "a.dcm", stored)), stored)
    inverse = write_dicom(tmp_path / "b.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(pixels(inverse), 255 - stored)
    wide = write_dicom(tmp_path / "c.dcm", stored.astype(np.uint16), BitsStored=8, HighBit=7)
    assert np.array_equal(pixels(wide), stored)
    colour = np.asarray(picture(1, colour=True))
    assert np.array_equal(pixels(write_dicom(tmp_path / "d.dcm", colour)), colour)
    planes = write_dicom(
        tmp_path / "e.dcm", colour, PlanarConfiguration=1, PixelData=colour.transpose(2, 0, 1).tobytes()
    )
    assert np.array_equal(pixels(planes), colour)


def test_windows_that_cannot_be_used_leave_the_full_range(tmp_path):
    stored = np.array([[1000, 1500, 3000]], np.uint16)
    for center, width in (([], []), (100, 0), (100, -5), (None, 100)):
        elements = {"WindowCenter": center, "WindowWidth": width} if center is not None else {"WindowWidth": width}
        assert pixels(write_dicom(tmp_path / "a.dcm", stored, **elements)).tolist() == [[0, 64, 255]]


def test_bits_that_are_not_stored_are_left_out(tmp_path):
    stored = np.array([[0xF000, 0xA400, 0x0FFF]], np.uint16)  # an old overlay in the upper four bits
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11)
    assert pixels(path).tolist() == [[0, 64, 255]]


def test_one_picture_has_one_gray_level(tmp_path):
    assert pixels(write_dicom(tmp_path / "a.dcm", np.full((3, 2), 700, np.uint16))).tolist() == [[0, 0]] * 3


def test_float_pixels(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.array([[-1.5, 0.0, 2.5]], np.float32), PixelRepresentation=None)
    assert pixels(path).tolist() == [[0, 96, 255]]
    path = write_dicom(tmp_path / "b.dcm", np.array([[0.0, np.nan]], np.float32), PixelRepresentation=None)
    assert "no number" in refusal(path)


def test_the_window_of_the_only_frame_of_an_enhanced_file(tmp_path):
    def item(**elements):
        made = Dataset()
        for name, value in elements.items():
            setattr(made, name, value)
        return made

    shared = item(PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1000)])
    frame = item(FrameVOILUTSequence=[item(WindowCenter=0.5, WindowWidth=101)])
    path = write_dicom(
        tmp_path / "a.dcm", np.array([[900, 950, 1000, 1050]], np.uint16), NumberOfFrames=1,
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=[frame],
    )  # fmt: skip
    assert pixels(path).tolist() == [[0, 0, 128, 255]]


# What is refused


def test_a_size_that_is_absurd_is_refused_before_it_is_allocated(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), Rows=65535, Columns=65535)
    assert "more than 89,478,485 pixels" in refusal(path)
    for name, mark in (("MR_small_jp2klossless", b"\xff\x4f\xff\x51"), ("SC_rgb_jpeg_dcmtk", b"\xff\xc0\0\x11")):
        contents = bytearray((FILES / f"{name}.dcm").read_bytes())
        start = contents.index(mark)
        if mark[1] == 0x4F:
            contents[start + 8 : start + 16] = (60_000).to_bytes(4, "big") * 2
        else:
            contents[start + 5 : start + 9] = (60_000).to_bytes(2, "big") * 2
        (tmp_path / "b.dcm").write_bytes(contents)
        assert "(60000, 60000, " in refusal(tmp_path / "b.dcm")


@pytest.mark.parametrize(
    "name", ["CT_small", "MR_small_RLE", "MR_small_jp2klossless", "SC_rgb_jpeg", "MR_small_implicit"]
)
def test_a_file_that_is_cut_short_is_found_by_its_lengths_and_refused(tmp_path, name):
    contents = (FILES / f"{name}.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    start = contents.rindex(b"\xe0\x7f\x10\0")
    for end in (0, 100, 140, start // 2, start, start + 4, start + 11, start + 100, (start + len(contents)) // 2):
        path.write_bytes(contents[:end])
        assert not images.looks_whole(str(path))
        message = refusal(path)
        assert any(part in message for part in ("cut short", NO_PIXELS, "not a DICOM file")), message
        assert list(images.unreadable([str(path)])) == [str(path)]
    if name == "SC_rgb_jpeg":  # the others have an element after the pixels
        path.write_bytes(contents[:-4])
        assert "cut short" in refusal(path) and not images.looks_whole(str(path))


def test_pixels_shorter_than_the_header_says(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), Rows=5)
    assert "cut short: 32 of 40 bytes" in refusal(path) and not images.looks_whole(path)


@pytest.mark.parametrize(
    ("uid", "part"),
    [
        ("1.2.840.10008.1.2.4.102", "MPEG-4"),
        ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.110"),
        ("1.2.840.10008.1.2.4.94", "JPIP"),
        ("1.2.3.4", "1.2.3.4"),
    ],
)
def test_an_unknown_transfer_syntax_is_named(tmp_path, uid, part):
    path = tmp_path / "a.dcm"
    contents = (FILES / "MR_small_RLE.dcm").read_bytes()
    known = b"UI\x14\0" + b"1.2.840.10008.1.2.5\0"
    assert contents.count(known) == 1
    uid = uid.encode() + b"\0" * (len(uid) % 2)
    path.write_bytes(contents.replace(known, b"UI" + bytes([len(uid), 0]) + uid))
    message = refusal(path)
    assert part in message and "does not decode" in message


def test_a_decoder_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(dicom.get_decoder(JPEGLSLossless), "_available", {})
    message = refusal(FILES / "MR_small_jpeg_ls_lossless.dcm")
    assert "JPEG-LS Lossless" in message and "pip install pylibjpeg pylibjpeg-libjpeg" in message


def test_a_run_of_rle_that_is_too_long(tmp_path):
    contents = bytearray((FILES / "MR_small_RLE.dcm").read_bytes())
    contents[contents.rindex(b"\xe0\x7f\x10\0") + 32 + 64] = 0x81  # the first byte of the first segment: 128 pixels
    (tmp_path / "a.dcm").write_bytes(contents)
    assert "its RLE Lossless data cannot be decoded" in refusal(tmp_path / "a.dcm")


def test_a_deflated_file_is_not_inflated_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom.Image, "MAX_IMAGE_PIXELS", 100_000)
    path = tmp_path / "a.dcm"
    path.write_bytes((FILES / "image_dfl.dcm").read_bytes())
    assert "more than 200,000 bytes when inflated" in refusal(path)


def test_hostile_text_is_not_printed(tmp_path):
    stored = np.zeros((4, 4), np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, WindowCenter=1, WindowWidth=2, VOILUTFunction="\x1b[2J\n")
    assert "VOI LUT function" in refusal(path)


def test_a_missing_file_and_a_folder(tmp_path):
    assert "not there any more" in refusal(tmp_path / "none.dcm")
    (tmp_path / "a.dcm").mkdir()
    with pytest.raises(InputError, match=r"a\.dcm: not a file"):
        images.read_image(str(tmp_path / "a.dcm"))


# Wherever an image is read


@pytest.mark.parametrize("name", ["a.dcm", "A.DCM", "b.Dicom", "no_suffix", "IM.0001"])
def test_by_suffix_or_mark(tmp_path, name):
    path = write_dicom(tmp_path / name, np.asarray(picture(0)))
    assert images.read_image(path).mode == "L" and images.looks_whole(path)
    assert np.array_equal(np.asarray(images.read_small(path, 8)), np.asarray(picture(0)))
    assert images.unreadable([path], decode=True) == {}


def test_in_a_stretch_of_a_file(tmp_path):
    contents = Path(write_dicom(tmp_path / "a.dcm", np.asarray(picture(0)))).read_bytes()
    (tmp_path / "0.tar").write_bytes(b"before" + contents + b"after")
    for name in ("case/7.dcm", "case/7"):
        place = locations.make(str(tmp_path / "0.tar"), at=f"6+{len(contents)}", name=name)
        assert np.array_equal(np.asarray(images.read_image(place)), np.asarray(picture(0)))
        assert images.looks_whole(place)
        cut = locations.make(str(tmp_path / "0.tar"), at=f"6+{len(contents) - 50}", name=name)
        assert not images.looks_whole(cut)
        with pytest.raises(InputError, match=rf"0\.tar, {name}: .*cut short"):
            images.read_image(cut)


def test_colour_that_is_gray_takes_one_plane(tmp_path):
    gray = np.asarray(picture(0))
    path = write_dicom(tmp_path / "a.dcm", np.stack([gray] * 3, axis=2))
    assert images.read_image(path).mode == "L"


def test_a_picture_named_dcm_and_text_named_dicom(tmp_path):
    picture(0).save(tmp_path / "a.dcm", "PNG")
    (tmp_path / "b.dicom").write_text("no image at all, and long enough to have a mark at its 128th byte. " * 4)
    for name in ("a.dcm", "b.dicom"):
        assert "not a DICOM file" in refusal(tmp_path / name)


def test_a_cache_and_a_folder_of_classes(tmp_path):
    for label in ("dark", "bright"):
        for number in range(2):
            write_dicom(tmp_path / "set" / "train" / label / f"{number}.DCM", np.asarray(picture(number)))
    data = image_folder({"path": str(tmp_path / "set"), "train": "train"}, "train")
    assert data.ids == ["bright/0.DCM", "bright/1.DCM", "dark/0.DCM", "dark/1.DCM"]
    assert np.array_equal(data[1].levels[0], np.asarray(picture(1)))
    made = cache.Cache(tmp_path / "cache", data.images.__getitem__, len(data))
    made.folder.mkdir()
    made.build(made.open())
    assert made.open() == [] and np.array_equal(made[3].levels[0], np.asarray(picture(1)))


def test_threads_read_as_one_does_and_nothing_is_said(capfd, caplog):
    paths = [
        str(path) for path in wheel_files() if EXPECTED.get(path.name.removesuffix(".dcm"), "").startswith(("L", "R"))
    ]
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", module=dicom.QUIET)  # as at its import, which pytest has undone
        alone = [dicom.read(path).tobytes() for path in paths]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda path: dicom.read(path).tobytes(), paths)) == alone
    assert capfd.readouterr() == ("", "") and not said
    assert not [record for record in caplog.records if record.name.startswith("pydicom")]


def test_runs_without_dicom_do_not_import_pydicom():
    """Only dicom.py imports it, and no module imports dicom.py before a function that needs it runs."""
    files = [
        *REPOSITORY.glob("*.py"),
        *(file for wing in ("data", "training", "evaluation") for file in (REPOSITORY / wing).glob("*.py")),
    ]
    early = {}
    for file in files:
        lines = [line for line in file.read_text().splitlines() if line.startswith(("import ", "from "))]
        early[file.name] = [line for line in lines if re.search(r"\b(py)?dicom\b", line)]
    assert len(early.pop("dicom.py")) > 5 and early.pop("dicom_gray.py") and not any(early.values())
