"""Phantoms: computer-made radiographs in the on-disk layouts of ROCO and of CBIS-DDSM (Kaggle JPEG edition).

`tree` makes a whole folder of them. A layout (`roco_layout`, `cbis_layout`) plans what each picture shows, writes the
text and CSV files, and lists the pictures to draw; an anatomy (`breast` with the `lesions` in it, which are
`calcifications` or `masses`, `chest`, `ct`) draws a picture and names what is on it. They share `noise`, `drawing`,
`captions` and the `streams` of random numbers. The class of a lesion is in its shape only. Exposure (mean and spread
of the grey levels), size, texture and grain are drawn apart from it, and the summed brightness of a lesion follows its
extent, not its class.
"""

from tools.phantoms.tree import are_phantoms, make_phantoms

__all__ = ["are_phantoms", "make_phantoms"]
