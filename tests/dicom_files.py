"""DICOM files written for tests, and where those of the pydicom wheel lie."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

WHEEL = Path(pydicom.__file__).parent / "data"
MAMMOGRAM = "1.2.840.10008.5.1.4.1.1.1.2"  # Digital Mammography X-Ray Image Storage - For Presentation


def write_dicom(path, pixels: np.ndarray | None, syntax: str = ExplicitVRLittleEndian, **elements) -> str:
    """Write `pixels` (h, w) or (h, w, 3), of 8 to 32 bits or floats; None writes none.

    `elements` are added or replaced, or left out where they are None. In another transfer syntax pydicom encodes them.
    """
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = MAMMOGRAM
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    if pixels is not None:
        bits = 8 * pixels.dtype.itemsize
        file.Rows, file.Columns = pixels.shape[:2]
        file.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
        file.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit = bits, bits, bits - 1
        file.PixelRepresentation = int(pixels.dtype.kind == "i")
        if pixels.ndim == 3:
            file.PlanarConfiguration = 0
        if pixels.dtype.kind == "f":
            file.FloatPixelData = pixels.tobytes()
        else:
            file.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
            file["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in elements.items():
        if value is None:
            del file[name]
        else:
            setattr(file, name, value)
    if syntax != ExplicitVRLittleEndian:
        file.compress(syntax)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return str(path)


def table_item(first: int, values: list[int], bits: int) -> Dataset:
    """The item of a LUT sequence: `values` of the stored values from `first` on."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", values)
    return item


VINDR = """\
study_id,series_id,laterality,image_id,view_position,height,width,breast_birads,breast_density,split
aa,s,L,a1,CC,3518,2800,BI-RADS 2,DENSITY C,training
aa,s,R,a2,MLO,3518,2800,BI-RADS 4,DENSITY C,training
bb,s,L,b1,CC,3518,2800,BI-RADS 1,DENSITY A,test
cc,s,L,c1,CC,3518,2800,BI-RADS 5,DENSITY D,training
bb,s,R,b2,CC,3518,2800,BI-RADS 3,DENSITY B,test
"""
FINDINGS = """\
image_id,study_id,finding_categories,finding_birads,xmin
a1,aa,['No Finding'],,
a2,aa,"['Suspicious Calcification', 'Mass']",BI-RADS 4,1.5
a2,aa,['Skin Retraction'],BI-RADS 4,7.5
b1,bb,['No Finding'],,
b2,bb,['Mass'],BI-RADS 3,3
c1,cc,['Global Asymmetry'],BI-RADS 5,2
"""


def write_vindr(root: Path) -> Path:
    """VinDr-Mammo's tree of five images, each of one gray level: 0, 64, 128, 191 and 255 in the order of the rows."""
    root.mkdir(exist_ok=True)
    (root / "breast-level_annotations.csv").write_text(VINDR)
    (root / "finding_annotations.csv").write_text(FINDINGS)
    for number, row in enumerate(VINDR.splitlines()[1:]):
        study, _, _, image, *_ = row.split(",")
        pixels = np.full((9, 7), 1000 * number, np.uint16)
        write_dicom(root / "images" / study / f"{image}.dicom", pixels, WindowCenter=2000, WindowWidth=4001)
    return root
