"""DICOM files as 8-bit pictures: what is in a file, whether it is whole, and its pixels, which pydicom decodes.

Only runs with DICOM files import this module, since pydicom takes a while.
"""

import contextlib
import io
import logging
import os
import struct
import warnings
import zlib

import numpy as np
from PIL import Image
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import apply_color_lut, as_pixel_options, get_decoder
from pydicom.pixels.utils import get_expected_length
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from data import locations
from data.dicom_gray import to_gray
from utils import InputError

QUIET = "pydicom|pylibjpeg|libjpeg|openjpeg"
config.settings.reading_validation_mode = config.IGNORE  # headers are seldom valid; what matters is checked here
warnings.filterwarnings("ignore", module=QUIET)  # in all threads
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

SHOWN = (
    "SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated "
    "BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept "
    "ModalityLUTSequence WindowCenter WindowWidth VOILUTFunction VOILUTSequence SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData"
).split()
PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
ENDLESS = 0xFFFFFFFF  # the length of an element whose value ends with a delimiter
GRAY = ("MONOCHROME1", "MONOCHROME2")
AGAIN = "download it again or remove it, or pass --skip-broken"


class Refused(Exception):
    """Why a file is not read, and what to do about it."""

    def __init__(self, reason: str, remedy: str = AGAIN):
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def read(location: str) -> Image.Image:
    """The picture at a location (locations.py), mode "L" or "RGB". Raises InputError, in one line that names the file.

    A `window` of the location, in the units after rescale, takes the place of the header's.
    """
    with refusals(location), opened(location) as file:
        return picture(file, locations.split(location).window)


def elements(location: str, *keywords: str) -> list:
    """The values of these elements of the header, None for those that are not in it. Raises InputError as `read`."""
    with refusals(location), opened(location) as file:
        header, *_ = read_header(file, keywords)
        return [header.get(keyword) for keyword in keywords]


@contextlib.contextmanager
def refusals(location: str):
    """Makes an InputError of whatever pydicom raises."""
    path = locations.show(location)
    try:
        yield
    except Refused as refused:
        reason, remedy = refused.reason, refused.remedy
    except FileNotFoundError:
        raise InputError(f"{path}: the image is not there any more") from None
    except (struct.error, EOFError):
        reason, remedy = "cut short in its header", AGAIN
    except Exception as error:  # a damaged header or stream makes pydicom and its decoders raise almost anything
        reason, remedy = str(error) or type(error).__name__, AGAIN
    else:
        return
    reason = "".join(one if one.isprintable() else "?" for one in " ".join(reason.split())[:250])
    raise InputError(f"{path}: the DICOM image cannot be read ({reason}): {remedy}")


def looks_whole(location: str) -> bool:
    """Whether the header can be read, is that of one picture, and all bytes of its pixels are there.

    Only the header and the lengths of the pixel element are read. False for a deflated file, which has no lengths.
    """
    try:
        with opened(location) as file:
            header, syntax, file = read_header(file)
            find_pixels(file, header, syntax)
            return syntax != DeflatedExplicitVRLittleEndian
    except Exception:
        return False


def opened(location: str) -> io.BufferedIOBase:
    source = locations.source(location)
    return open(source, "rb") if isinstance(source, str) else source


def read_header(file, keywords=SHOWN) -> tuple[Dataset, UID, io.BufferedIOBase]:
    """The elements `keywords` that stand before the pixels, the transfer syntax, and the file at its pixel element.

    A deflated file is inflated, and returned in memory.
    """
    marked = read_preamble(file, force=True) is not None
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax = UID(meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian)
    if syntax == DeflatedExplicitVRLittleEndian:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        file = io.BytesIO(inflate.decompress(file.read(), 2 * Image.MAX_IMAGE_PIXELS))
        if inflate.unconsumed_tail:
            raise Refused(f"more than {2 * Image.MAX_IMAGE_PIXELS:,} bytes when inflated", "remove it")
    implicit = syntax == ImplicitVRLittleEndian  # pydicom sees for itself where a file differs from what it says
    little = not syntax.is_transfer_syntax or syntax.is_little_endian
    tags = [Tag(keyword) for keyword in keywords]
    header = read_dataset(file, implicit, little, stop_when=lambda tag, *_: tag in PIXELS, specific_tags=tags)
    if not marked and not header:
        raise Refused("not a DICOM file")
    header.set_original_encoding(implicit, little)
    return header, syntax, file


def find_pixels(file, header: Dataset, syntax: UID) -> tuple[str, str]:
    """Go to the value of the pixel element at which `file` stands -> its keyword and value representation.

    Raises Refused unless it is one picture of an allowed size, and whole.
    """
    start, end = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(start)
    tag, vr, length = read_element(file)
    if tag not in PIXELS:
        reason = "no pixel data in it: a report, a plan or a directory, or a file that was cut short"
        raise Refused(reason, "remove it, or pass --skip-broken")
    absent = [
        name for name in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation") if not header.get(name)
    ]
    if absent:
        raise Refused(f"its header lacks {absent[0]}")
    frames = str(header.get("NumberOfFrames") or 1)
    if frames != "1":
        raise Refused(f"{frames[:20]} frames and not one picture", "write the frames you need as files of their own")
    if header.Rows * header.Columns > Image.MAX_IMAGE_PIXELS:
        raise Refused(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels", "make it smaller or remove it")
    header.setdefault("SamplesPerPixel", 1)
    header.setdefault("BitsStored", header.BitsAllocated)
    value = file.tell()
    if syntax.is_encapsulated if syntax.is_transfer_syntax else length == ENDLESS:
        if length != ENDLESS:
            raise Refused(f"its pixels are not in fragments, as {syntax.name} has them")
        skip_fragments(file, end)
    else:
        expected = get_expected_length(header)
        if not expected <= min(length, end - value):
            raise Refused(f"cut short: {min(length, end - value):,} of {expected:,} bytes of its pixels")
    file.seek(value)
    return PIXELS[tag], vr


def read_element(file) -> tuple[int, str, int]:
    """The tag, value representation and length of the pixel element at which `file` stands; 0 at the file's end.

    The bytes of the tag tell the order of bytes, whatever the header said; so do those of the representation.
    """
    start = file.read(8)
    order = "<" if start[:2] == b"\xe0\x7f" else ">"
    if len(start) < 8:
        return 0, "", 0
    group, element, length = struct.unpack(f"{order}HHI", start)
    vr = start[4:6].decode("latin-1")
    if vr in ("OB", "OW", "OF", "OD", "UN"):
        (length,) = struct.unpack(f"{order}I", file.read(4).ljust(4, b"\0"))
    else:
        vr = "OW"
    return group << 16 | element, vr, length


def skip_fragments(file, end: int) -> None:
    """Go over the items of an encapsulated value by their lengths. Raises Refused if the file ends before they do."""
    while True:
        start = file.read(8)
        if len(start) < 8:
            raise Refused("cut short: its pixels have no end")
        tag, length = start[:4], int.from_bytes(start[4:], "little")
        if tag == b"\xfe\xff\xdd\xe0":
            return
        if tag != b"\xfe\xff\x00\xe0":
            raise Refused("its pixels are not in fragments, or damaged")
        if file.seek(length, os.SEEK_CUR) > end:
            raise Refused(f"cut short: {length - file.tell() + end:,} of {length:,} bytes of a fragment of its pixels")


def picture(file, window) -> Image.Image:
    header, syntax, file = read_header(file)
    keyword, vr = find_pixels(file, header, syntax)
    pixels, colours = decode(file, header, syntax, keyword, vr)
    # Where frames have headers of their own, what is said of the only one is said of the file.
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in header.get(groups) or ():
            for macro in ("FrameVOILUTSequence", "PixelValueTransformationSequence"):
                if group.get(macro):
                    header.update(group[macro][0])
    with np.errstate(all="ignore"):
        if colours in GRAY and pixels.ndim == 2:
            return Image.fromarray(to_gray(header, pixels, window))
        if colours == "PALETTE COLOR":
            pixels, bits = apply_color_lut(pixels, header), 0
        elif colours != "RGB":
            raise Refused(f"its colours are {colours}, of which nothing is known here", "convert it to RGB")
        else:
            bits = header.BitsStored
        bits = bits or 8 * pixels.dtype.itemsize
        if bits != 8:
            pixels = np.rint(pixels * np.float32(255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def decode(file, header: Dataset, syntax: UID, keyword: str, vr: str) -> tuple[np.ndarray, str]:
    """-> the stored pixels (h, w) or (h, w, 3), in the machine's order of bytes, and what their samples are."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Refused(
            f"the transfer syntax {syntax.name}, which pydicom does not decode",
            "convert it to an uncompressed one, as gdcmconv --raw does",
        ) from None
    if not decoder.is_available:
        raise Refused(
            f"the transfer syntax {syntax.name}, of which no decoder is installed",
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg pylibjpeg-rle",
        )
    size = header.Rows, header.Columns, header.SamplesPerPixel
    if syntax.is_encapsulated and syntax != RLELossless:
        start = file.tell()
        coded = coded_size(get_frame(file, 0, number_of_frames=1))
        if coded != size:  # which a decoder would believe, and allocate
            raise Refused(f"rows, columns and samples are {size} in its header and {coded} in its coded pixels")
        file.seek(start)
    options = as_pixel_options(header, pixel_keyword=keyword, pixel_vr=vr)
    try:
        pixels, properties = decoder.as_array(file, index=0, **options)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # pylibjpeg-rle's, of Rust
            raise
        reason = " ".join(str(error).split()).partition("plugins: ")
        raise Refused(f"its {syntax.name} data cannot be decoded: {(reason[2] or reason[0])[:160]}") from None
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False), properties["photometric_interpretation"]


def coded_size(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, samples) that a JPEG, JPEG-LS or JPEG 2000 stream says it has; None if it is none of them."""
    try:
        if frame[:2] != b"\xff\xd8":  # JPEG 2000, perhaps in a JP2 file
            start = frame.index(b"\xff\x4f\xff\x51")
            width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
            return height - top, width - left, struct.unpack_from(">H", frame, start + 40)[0]
        at = 2
        while frame[at] == 0xFF:
            marker = frame[at + 1]
            if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                return struct.unpack_from(">HHB", frame, at + 5)
            at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    except (struct.error, IndexError, ValueError):
        pass
    return None
