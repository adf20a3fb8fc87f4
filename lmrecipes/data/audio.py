"""Clips of any kind -> mono samples at one rate, by libsndfile and scipy -> log-mel frames or samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.conversations import BadRow
from lmrecipes.data.inputs import LOWEST_POWER, AudioSpec
from lmrecipes.data.labels import short
from lmrecipes.data.media_cells import ReadMedia, array_digest, digest, file_bytes

Samples = NDArray[np.float32]

RATES = (1_000, 768_000)
"""Sample rates that are believed, in Hz."""
FINEST_RATIO = 2000
"""Rates are changed by a ratio of whole numbers up to this: exact for all usual ones, else to about 1e-7."""
LOWEST_HZ = 20.0
"""Where the lowest mel band begins."""


@dataclass(frozen=True)
class AudioReader:
    """Reads the cells of a column."""

    column: str
    spec: AudioSpec

    def __call__(self, cell: Any, folder: Path | None) -> ReadMedia:
        """float16 [frames, mels], or int16 [samples] of a waveform. Raises BadRow."""
        if isinstance(cell, Mapping) and cell.get("array") is not None:
            samples, rate = self._of_array(cell)
            found = digest(array_digest(samples), str(rate))
        else:
            content = file_bytes(cell, self.column, folder)
            samples, rate = self._decoded(content)
            found = digest(content)
        return ReadMedia(self._fitted(samples, rate), found)

    def _decoded(self, content: bytes) -> tuple[NDArray[Any], int]:
        """[samples, channels] and their rate; of a long file only what is used."""
        import soundfile

        try:
            with soundfile.SoundFile(BytesIO(content)) as file:
                rate = int(file.samplerate)
                self._check_rate(rate)
                return file.read(self._enough(rate), dtype="float32", always_2d=True), rate
        except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().rstrip(".") or type(error).__name__
            what = f"is no clip that libsndfile reads ({len(content):,} bytes; {reason})"
            raise BadRow(f"{self.column!r} {what}") from None

    def _of_array(self, cell: Mapping[str, Any]) -> tuple[NDArray[Any], int]:
        """[samples, channels] of {array: [samples] or [channels, samples], sampling_rate}."""
        rate = cell.get("sampling_rate")
        if not isinstance(rate, (int, np.integer)) or isinstance(rate, bool):
            raise BadRow(f"{self.column!r} has the sampling_rate {short(rate)}, not a whole number of Hz")
        self._check_rate(int(rate))
        try:
            array = np.asarray(cell["array"])
        except ValueError:  # lists of different lengths
            array = np.zeros((0, 0, 0), object)
        whole = {"int16": 2.0**15, "int32": 2.0**31}.get(array.dtype.name)
        if array.ndim not in (1, 2) or (array.dtype.kind != "f" and whole is None):
            what = f"is {array.dtype} {list(array.shape)}, neither floats from -1 to 1 nor int16 or int32"
            raise BadRow(f"{self.column!r} {what}, as [samples] or [channels, samples]")
        array = np.atleast_2d(array).T[: self._enough(int(rate))]
        return array.astype(np.float32) if whole is None else (array / whole).astype(np.float32), int(rate)

    def _check_rate(self, rate: int) -> None:
        if not RATES[0] <= rate <= RATES[1]:
            raise BadRow(f"{self.column!r} has a rate of {rate:,} Hz, not one from {RATES[0]:,} to {RATES[1]:,}")

    def _enough(self, rate: int) -> int:
        """Samples at a rate from which all that is used can be made; beyond them is half the filter's length."""
        seconds = self.spec.longest_samples / self.spec.sample_rate
        return math.ceil(seconds * rate) + 10 * max(1, math.ceil(rate / self.spec.sample_rate)) + 1

    def _fitted(self, samples: NDArray[Any], rate: int) -> NDArray[Any]:
        if samples.size == 0:
            raise BadRow(f"{self.column!r} holds no samples")
        mono = samples.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise BadRow(f"{self.column!r} holds samples that are not finite")
        spec = self.spec
        mono = resampled(mono, rate, spec.sample_rate)[: spec.longest_samples]
        mono = np.pad(mono, (0, max(0, spec.shortest_samples - len(mono))))
        if spec.kind == "log_mel":
            return log_mel(mono, spec).astype(np.float16)
        return np.rint(np.clip(mono, -1, 1) * 32767).astype(np.int16)


def resampled(samples: Samples, rate: int, wanted: int) -> Samples:
    """Samples [n] of one rate at another: polyphase filtering with the anti-alias filter of `scipy.signal`."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    ratio = Fraction(wanted, rate).limit_denominator(FINEST_RATIO)
    up, down = ratio.numerator, ratio.denominator
    return resample_poly(samples, up, down, window=_low_pass(max(up, down)))


@lru_cache(maxsize=64)
def _low_pass(ratio: int) -> Samples:
    """The filter that `resample_poly` would design for every clip anew."""
    from scipy.signal import firwin

    return firwin(20 * ratio + 1, 1 / ratio, window=("kaiser", 5.0)).astype(np.float32)


class MelBank(NamedTuple):
    """What makes log-mel frames of samples. window: [window]. filters: [fft // 2 + 1, mels]; sparse: the same, turned.
    centres: Hz [mels]."""

    fft: int
    window: Samples
    filters: NDArray[np.float32]
    sparse: Any
    centres: NDArray[np.float64]


def log_mel(samples: Samples, spec: AudioSpec) -> Samples:
    """Samples [n] -> natural logarithm of the power in triangular mel bands: float32 [frames, mels]."""
    bank = mel_bank(spec)
    frames = spec.frames_of(len(samples))
    padded = np.zeros((frames - 1) * spec.hop + spec.window, np.float32)
    padded[: len(samples)] = samples[: len(padded)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spec.window)[:: spec.hop] * bank.window
    spectrum = np.fft.rfft(windows, bank.fft)
    power = spectrum.real.astype(np.float32) ** 2 + spectrum.imag.astype(np.float32) ** 2
    bands = (bank.sparse @ power.T).T  # a dense product would start threads of its own in each of the reader's
    return np.log(np.maximum(bands, LOWEST_POWER))


@lru_cache(maxsize=16)
def mel_bank(spec: AudioSpec) -> MelBank:
    """Hann window and bands equally wide on the mel scale 2595 log10(1 + f / 700) from 20 Hz to half the sample rate.

    The transform is made longer until every band holds a frequency, where at most eight times the window does.
    """
    from scipy.sparse import csr_array

    top = spec.sample_rate / 2
    edges = _hz(np.linspace(_mel(min(LOWEST_HZ, top / 2)), _mel(top), spec.mels + 2))
    fft = 1 << (spec.window - 1).bit_length()
    while True:
        frequencies = np.linspace(0, top, fft // 2 + 1)[:, None]
        rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
        filters = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
        if filters.any(axis=0).all() or fft >= 8 * spec.window:
            break
        fft *= 2
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.window) / spec.window)).astype(np.float32)
    return MelBank(fft, window, filters, csr_array(filters.T), edges[1:-1])


def _mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return 700 * (10 ** (mel / 2595) - 1)
