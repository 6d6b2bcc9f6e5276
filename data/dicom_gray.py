"""The gray levels of a DICOM picture, as a viewer shows it at first.

Rescale or modality LUT, then VOI LUT or window, then MONOCHROME1 inverted (PS3.3 C.11.1, C.11.2 and C.7.6.3.1.2).
"""

import math

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi

BLOCK = 1 << 20  # pixels that are looked up at once


def to_gray(header: Dataset, stored: np.ndarray, window) -> np.ndarray:
    """Stored pixels (h, w) of up to 32 bits, or floats -> (h, w) uint8. Raises ValueError if they cannot be shown.

    `window` (center, width) takes the place of the header's.

    Of 8 and 16 bits every possible value is shaded once and looked up: no array of floats as large as the picture.
    """
    if stored.dtype.kind == "f" or stored.dtype.itemsize > 2:
        return shade(header, stored, np.ones(stored.shape, bool), window)
    unsigned = np.dtype(f"u{stored.dtype.itemsize}")
    every = np.arange(2 ** (8 * unsigned.itemsize), dtype=unsigned).view(stored.dtype)
    flat = np.ascontiguousarray(stored).view(unsigned).ravel()
    blocks = [slice(start, start + BLOCK) for start in range(0, flat.size, BLOCK)]
    present, shown = np.zeros(every.shape, bool), np.empty(flat.shape, np.uint8)
    for block in blocks:
        present[flat[block]] = True
    table = shade(header, every, present, window)
    for block in blocks:
        shown[block] = table[flat[block]]
    return shown.reshape(stored.shape)


def shade(header: Dataset, stored: np.ndarray, present: np.ndarray, window) -> np.ndarray:
    """Stored values -> their gray levels 0 to 255, uint8. `present` says which of them the picture has."""
    values = apply_modality_lut(stored, header)
    center, width = window or (first(header.get("WindowCenter")), first(header.get("WindowWidth")))
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if window:
        function = "LINEAR" if width >= 1 else "LINEAR_EXACT"
    padding = is_padding(header, stored)
    if header.get("VOILUTSequence") and not window:
        bits = header.VOILUTSequence[0].LUTDescriptor[2]
        shown = apply_voi(values, header) / (2**bits - 1)
    elif math.isfinite(center) and width >= (1 if function == "LINEAR" else 1e-9):
        shown = windowed(values, center, width, function)
    elif header.BitsStored == 8 and stored.dtype.kind == "u" and np.array_equal(values, stored):
        shown = values / 255
    else:
        used = values[present & ~padding]
        low, high = (float(used.min()), float(used.max())) if used.size else (0.0, 1.0)
        shown = (values - low) / max(high - low, 1e-30)
    if not np.isfinite(shown[present]).all():
        raise ValueError("its rescale or window leads to no number")
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    shown = np.rint(shown.clip(0, 1) * 255).astype(np.uint8)
    shown[padding] = 0
    return shown


def windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """A window's share of the full range, 0 to 1 (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ValueError(f"its VOI LUT function is '{function[:20]}'")
    return ((values - center) / width + 0.5).clip(0, 1) if width else (values > center).astype(float)


def is_padding(header: Dataset, stored: np.ndarray) -> np.ndarray:
    """Which stored values fill the picture where there was no measurement; they are shown black."""
    value = header.get("PixelPaddingValue")
    if not isinstance(value, int) or stored.dtype.kind == "f":
        return np.zeros(stored.shape, bool)
    # Its representation is that of the pixels, but is often written as the other one.
    ends = [np.int64(end).astype(stored.dtype) for end in (value, header.get("PixelPaddingRangeLimit", value))]
    return (stored >= min(ends)) & (stored <= max(ends))


def first(value) -> float:
    """The first of a header's values, nan if there is none."""
    try:
        return float(value if isinstance(value, (int, float, str)) else value[0])
    except (TypeError, ValueError, IndexError):
        return math.nan
