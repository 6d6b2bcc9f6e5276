"""Noise of a falling spectrum: what tissue, film and detector look like where nothing is drawn."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def noise_bank(slope, n=1024):
    """Field [n, n] of zero mean and unit variance whose amplitude spectrum falls as 1/f**slope (float32).

    Images take random windows of it: a field of their own would cost an FFT each.
    """
    rng = np.random.default_rng(int(slope * 100))
    f = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    f[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) / f**slope, s=(n, n))
    return (field / field.std()).astype(np.float32)


def texture(h, w, slope, rng):
    """Random window [h, w] of a noise bank, randomly flipped and transposed."""
    bank = noise_bank(slope)
    if rng.random() < 0.5:
        bank = bank.T
    y, x = rng.integers(0, bank.shape[0] - h + 1), rng.integers(0, bank.shape[1] - w + 1)
    return bank[y : y + h, x : x + w][:: int(rng.choice((-1, 1))), :: int(rng.choice((-1, 1)))]
