"""Synthetic speech (asset `espeak`): English words in about a hundred voices, as WAV and FLAC files of several rates.

A process of its own speaks (`espeak_process`). It carries a little over from one clip to the next, so that clips are
what they are by their order too, which is fixed.
"""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.offline.amounts import DIGITS, in_words
from lmrecipes.data.offline.grouping import Row, pick
from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.problems import InputError, Problem

TAKES = 3
"""Clips of each word in each voice, each with an accent, a rate and a pitch of its own."""
NUMBERS = 16
"""Two-digit numbers that each voice says in `speaking_rate`."""
SLOWEST, FASTEST = 90, 300
"""Words per minute, as eSpeak NG counts them."""
ACCENTS = (
    "en", "en-us", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc",
)  # fmt: skip
SAMPLE_RATES = ("8000", "11025", "16000", "22050")
FILE_KINDS = ("WAV", "FLAC")
_QUIET = 0.01  # of the loudest sample: silence around a word, of which 30 ms are left
_OTHER_SPEED = ("fast",)
"""Voices that speak at another rate than they are told to."""

Line = tuple[str, int, int, str]
"""Voice, rate, pitch (0 to 99), text."""


def spoken_digits(folder: Path) -> list[Row]:
    """Columns audio and label: a word from zero to nine. Group: the voice, of which variants count as one."""
    lines, rows = [], []
    for voice in _voices(folder):
        for word in DIGITS:
            for take in range(TAKES):
                name = f"spoken_digits {voice} {word} {take}"
                lines.append(_line(voice, name, word))
                rows.append((name, {"label": word, "group": _family(voice)}))
    return _clips(folder, lines, rows)


def speaking_rate(folder: Path) -> list[Row]:
    """Columns audio and label: hundreds of words per minute, of two-digit numbers. Group: as in `spoken_digits`."""
    lines, rows = [], []
    for voice in _voices(folder):
        if voice not in _OTHER_SPEED:
            for take in range(NUMBERS):
                name = f"speaking_rate {voice} {take}"
                lines.append(_line(voice, name, in_words(10 + hash_key("number", name) % 90)))
                rows.append((name, {"label": lines[-1][1] / 100, "group": _family(voice)}))
    return _clips(folder, lines, rows)


def _voices(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "espeak-ng-data" / "voices" / "!v").iterdir())


def _family(voice: str) -> str:
    """`steph2` and `steph` sound alike; `m1` to `m8` and `f1` to `f5` are people of their own."""
    return f"voice {voice if len(voice) == 2 else re.sub(r'[0-9]+$', '', voice)}"


def _line(voice: str, name: str, text: str) -> Line:
    rate, pitch = hash_uniform(hash_key("speech", name), np.arange(2)).tolist()
    words_per_minute = SLOWEST + int((FASTEST - SLOWEST) * rate)
    return f"{pick(ACCENTS, 'accent', name)}+{voice}", words_per_minute, 25 + int(50 * pitch), text


def _clips(folder: Path, lines: Sequence[Line], rows: Sequence[tuple[str, Row]]) -> list[Row]:
    """The rows with what was said; a voice that says nothing is left out."""
    spoken = zip(rows, speak(folder, lines), strict=True)
    return [
        {"audio": {"bytes": _file(samples, rate, name), "path": None}} | row
        for (name, row), (samples, rate) in spoken
        if len(samples)
    ]


def speak(folder: Path, lines: Sequence[Line]) -> Iterator[tuple[NDArray[np.float64], int]]:
    """Samples from -1 to 1 without the silence around them, and their rate, of each line. folder: of the asset."""
    command = [sys.executable, "-I", str(Path(__file__).with_name("espeak_process.py")), str(folder)]
    told = "".join(json.dumps(line) + "\n" for line in lines).encode()
    done = subprocess.run(command, input=told, capture_output=True)
    if done.returncode:
        what = f"eSpeak NG stopped ({done.returncode}): {done.stderr.decode(errors='replace').strip()[-300:]}"
        fix = "run `lmrecipes assets verify espeak`; leave out the tasks that need it if this machine cannot run it"
        raise InputError(Problem("source.offline", what, fix, "offline-speech"))
    (rate,), place = struct.unpack_from("<I", done.stdout), 4
    for _ in lines:
        (count,) = struct.unpack_from("<I", done.stdout, place)
        samples = np.frombuffer(done.stdout, "<i2", count, place + 4) / 2**15
        place += 4 + 2 * count
        yield _trimmed(samples, rate), rate


def _trimmed(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    loud = np.flatnonzero(np.abs(samples) > _QUIET * np.abs(samples).max(initial=0.0))
    margin = round(0.03 * rate)
    return samples[max(0, loud[0] - margin) : loud[-1] + margin] if len(loud) else samples[:0]


def _file(samples: NDArray[np.float64], rate: int, name: str) -> bytes:
    """A clip as a file of a kind and sample rate that are chosen by hash of its name."""
    import soundfile

    wanted = int(pick(SAMPLE_RATES, "sample rate", name))
    stream = io.BytesIO()
    soundfile.write(stream, resampled(samples, rate, wanted), wanted, "PCM_16", format=pick(FILE_KINDS, "kind", name))
    return stream.getvalue()


def resampled(samples: NDArray[np.float64], rate: int, wanted: int) -> NDArray[np.float64]:
    """At another sample rate, of a clip that begins and ends in silence: the frequencies that both rates have."""
    count = max(2, round(len(samples) * wanted / rate))
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return np.clip(np.fft.irfft(spectrum, count) * (count / len(samples)), -1, 1)
