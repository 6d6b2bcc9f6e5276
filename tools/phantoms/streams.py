"""Random numbers: one stream a plan and one a picture, so that no file depends on another or on who draws it."""

import numpy as np

ROCO_PICTURES, CBIS_PICTURES = (1,), (2,)  # then the picture's number
ROCO_PLAN, ROCO_CAPTIONS, CBIS_PLAN, CBIS_ORDER = (3, 0), (3, 1), (3, 2), (3, 3)  # captions: then the pair's number


def generator(seed, stream, *number):
    return np.random.default_rng([seed, *stream, *number])
