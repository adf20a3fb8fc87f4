"""Clips of every kind become frames at one rate; what is broken is a bad row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_media import tone, wav

from lmrecipes.data.audio import AudioReader, log_mel, mel_bank, resampled
from lmrecipes.data.conversations import BadRow
from lmrecipes.data.inputs import FLOOR, AudioSpec, own_specs
from lmrecipes.recipe import Model

OWN = own_specs(Model())["audio"]
assert isinstance(OWN, AudioSpec)
WAVE = AudioReader("sound", AudioSpec("waveform", 16000, 32000, kernels=(10, 3), strides=(5, 2)))
FRAMES = AudioReader("sound", OWN)


def samples(cell: Any, folder: Path | None = None) -> np.ndarray:
    values = WAVE(cell, folder).values
    assert values.dtype == np.int16
    return values / 32767


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (8000, 2), (44100, 2), (22050, 1), (48000, 3)])
def test_every_kind_of_file(kind: str, rate: int, channels: int) -> None:
    if kind == "MP3" and channels == 3:
        pytest.skip("MP3 has two channels at most")
    given = np.repeat(tone(440, 0.5, rate)[:, None], channels, axis=1)
    found = samples(wav(given, rate, kind))
    assert abs(len(found) - 8000) <= (0 if kind != "MP3" else 2000)
    middle = found[2000:6000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(4000)))
    assert spectrum.argmax() * 4 == 440
    assert abs(np.abs(middle).max() - 0.5) < 0.03


def test_every_way_to_give_a_clip(tmp_path: Path) -> None:
    given = tone(300, 0.2, 16000)
    content = wav(given, 16000, subtype="FLOAT")
    (tmp_path / "a.wav").write_bytes(content)
    arrays = [given, given.astype(np.float32).tolist(), np.rint(given * 2**15).astype(np.int16)]
    arrays += [(given * 2**31).astype(np.int32), np.stack([given * 2, given * 0])]
    cells = [content, "a.wav", tmp_path / "a.wav", {"bytes": content, "path": "x"}, {"bytes": None, "path": "a.wav"}]
    for cell in cells + [{"array": array, "sampling_rate": 16000} for array in arrays]:
        assert np.abs(samples(cell, tmp_path) - given).max() < 1e-4, str(cell)[:60]


def test_resampling_lets_nothing_through_that_the_new_rate_cannot_say() -> None:
    high, low = (resampled(tone(hz, 0.5, 44100).astype(np.float32), 44100, 16000) for hz in (12000, 1000))
    assert np.abs(high[500:-500]).max() < 0.01
    assert np.abs(low[500:-500] - tone(1000, 0.5, 16000)[500:-500]).max() < 0.01


def test_resampling_is_that_of_scipy() -> None:
    from scipy.signal import resample_poly

    noise = np.random.default_rng(0).normal(0, 1, 5000)
    for rate, wanted, up, down in ((44100, 16000, 160, 441), (8000, 16000, 2, 1), (22050, 8000, 160, 441)):
        assert np.abs(resampled(noise.astype(np.float32), rate, wanted) - resample_poly(noise, up, down)).max() < 1e-4
    assert abs(len(resampled(noise.astype(np.float32), 44101, 16000)) - 5000 * 16000 / 44101) < 2


def test_a_long_clip_is_cut_and_the_rest_not_needed() -> None:
    given = np.random.default_rng(0).normal(0, 0.1, 100_000)
    whole = resampled(given.astype(np.float32), 22050, 16000)[:32000]
    found = samples(wav(given, 22050, subtype="FLOAT"))
    assert len(found) == 32000
    assert np.abs(found - whole).max() < 1e-4


def test_a_short_clip_is_filled_up() -> None:
    assert WAVE.spec.shortest_samples == 20
    assert len(samples({"array": [0.5], "sampling_rate": 16000})) == 20
    assert FRAMES({"array": [0.5], "sampling_rate": 16000}, None).values.shape == (1, 40)


def test_log_mel_is_that_of_transformers() -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    assert isinstance(OWN, AudioSpec)
    given = np.random.default_rng(0).normal(0, 0.2, 400 + 160 * 30).astype(np.float32)
    filters = mel_filter_bank(257, 40, 20.0, 8000.0, 16000, norm=None, mel_scale="htk")
    window = window_function(400, "hann")
    theirs = spectrogram(
        given, window, 400, 160, fft_length=512, power=2.0, center=False, mel_filters=filters, mel_floor=1e-6,
        log_mel="log",
    )  # fmt: skip
    ours = log_mel(given, OWN)
    assert ours.shape == (31, 40)
    assert np.abs(ours - theirs.T).max() < 1e-3


@pytest.mark.parametrize(("mels", "rate"), [(8, 8000), (40, 16000), (80, 16000), (128, 48000)])
def test_every_band_hears_something(mels: int, rate: int) -> None:
    spec = AudioSpec("log_mel", rate, rate, mels=mels, window=rate // 40, hop=rate // 100)
    assert mel_bank(spec).filters.any(axis=0).all()


def test_silence_is_the_floor() -> None:
    frames = FRAMES({"array": np.zeros(1000), "sampling_rate": 16000}, None).values
    assert frames.dtype == np.float16
    assert np.allclose(frames, FLOOR, atol=0.01)


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (b"RIFF and so on", "no clip that libsndfile reads"),
        (b"", "no clip"),
        ("nowhere.wav", "nowhere.wav cannot be read"),
        (wav(np.zeros(0), 8000), "holds no samples"),
        (wav(np.array([0.0, np.nan]), 8000, subtype="FLOAT"), "not finite"),
        (3.5, "neither a path nor"),
        ({"array": [0.1], "sampling_rate": None}, "sampling_rate None"),
        ({"array": [0.1], "sampling_rate": 10}, "a rate of 10 Hz"),
        ({"array": [1, 2, 3], "sampling_rate": 16000}, "int64 .3., neither floats"),
        ({"array": ["a"], "sampling_rate": 16000}, "neither floats"),
        ({"array": np.zeros((1, 2, 3)), "sampling_rate": 16000}, r"float64 \[1, 2, 3\]"),
    ],
)
def test_bad_rows(cell: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(BadRow, match=f"^'sound'.*{why}"):
        WAVE(cell, tmp_path)
