"""Random changes: what they do, and that they depend on the example's place in the run alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from lmrecipes.data.audio import log_mel
from lmrecipes.data.augment import ImageChange, LogMelChange, WaveChange, changes_of, noise
from lmrecipes.data.inputs import FLOOR, AudioSpec, own_specs
from lmrecipes.recipe import Model, Recipe
from lmrecipes.recipe_inputs import AudioAugment, ImageAugment

OWN = own_specs(Model())["audio"]
assert isinstance(OWN, AudioSpec)
PICTURE = np.asarray(np.add.outer(np.arange(15) * 10, np.arange(15) * 3), np.uint8)[:, :, None]
EVERYTHING = {"shift": 2, "rotate": 20, "scale": 0.2, "flip": True, "brightness": 0.3, "noise": 0.05}
EVERY_SOUND = {"gain_db": 6, "stretch": 0.1, "pitch": 0.1, "time_mask": 0.2, "mel_mask": 6, "noise_db": -10}


def image_change(**say: Any) -> ImageChange:
    return ImageChange(ImageAugment.model_validate(say), 7)


def pictures(k: int, **say: Any) -> np.ndarray:
    return np.stack(image_change(**say)([PICTURE] * k, np.arange(k)))


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-4, 2, (count, 40)).astype(np.float32)


def sound(clips: list[np.ndarray], indices: np.ndarray, **say: Any) -> list[np.ndarray]:
    assert isinstance(OWN, AudioSpec)
    return LogMelChange(AudioAugment.model_validate(say), 7, OWN)(clips, indices)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 11), st.integers(0, 2**40))
def test_an_example_is_changed_by_its_place_alone(order: list[int], cut: int, first: int) -> None:
    indices = first + np.array(order)
    images = [np.random.default_rng(i).integers(0, 256, (9, 7, 3), dtype=np.uint8) for i in order]
    clips = [frames(5 + i, i) for i in order]
    spec = OWN
    assert isinstance(spec, AudioSpec)
    waves = [np.random.default_rng(i).normal(0, 0.1, 40 + i).astype(np.float32) for i in order]
    wave_say = AudioAugment.model_validate({**EVERY_SOUND, "pitch": 0, "mel_mask": 0})
    changes = [(image_change(**EVERYTHING), images), (WaveChange(wave_say, 7), waves)]
    changes.append((LogMelChange(AudioAugment.model_validate(EVERY_SOUND), 7, spec), clips))  # type: ignore[arg-type]
    for change, items in changes:
        whole = change(items, indices)
        parts = change(items[:cut], indices[:cut]) + change(items[cut:], indices[cut:])
        assert all(np.array_equal(one, other) for one, other in zip(whole, parts, strict=True))
        assert all(new.shape == old.shape and new.dtype == old.dtype for new, old in zip(whole, items, strict=True))
        assert any(not np.array_equal(one, other) for one, other in zip(whole, items, strict=True))


def test_items_are_not_changed_in_place() -> None:
    clip, picture = frames(20), PICTURE.copy()
    sound([clip], np.array([3]), **EVERY_SOUND)
    pictures(4, **EVERYTHING)
    assert np.array_equal(clip, frames(20))
    assert np.array_equal(picture, PICTURE)


def test_shifted_images_are_the_same_but_moved_with_edges_repeated() -> None:
    found = set()
    for picture in pictures(200, shift=2)[..., 0].astype(int):
        fits = [
            (d, r)
            for d in range(-2, 3)
            for r in range(-2, 3)
            if np.array_equal(picture, np.pad(PICTURE[..., 0], 2, "edge")[2 - d : 17 - d, 2 - r : 17 - r])
        ]
        assert len(fits) == 1
        found |= set(fits)
    assert len(found) == 25


def test_every_other_image_is_mirrored() -> None:
    mirrored = [np.array_equal(picture, PICTURE[:, ::-1]) for picture in pictures(400, flip=True)]
    kept = [np.array_equal(picture, PICTURE) for picture in pictures(400, flip=True)]
    assert sum(mirrored) + sum(kept) == 400
    assert 150 < sum(mirrored) < 250


def test_a_quarter_turn_is_exact() -> None:
    from lmrecipes.data.augment import warped

    none = np.zeros(1, np.int64)
    turned = warped(PICTURE[None], none, none, np.array([np.pi / 2]), np.ones(1))[0]
    assert np.abs(turned.astype(int) - np.rot90(PICTURE).astype(int)).max() <= 1
    large = warped(PICTURE[None], none, none, np.zeros(1), np.full(1, 2.0))[0].astype(int)
    assert np.abs(large[1:14:2, 1:14:2] - PICTURE[4:11, 4:11].astype(int)).max() <= 1
    moved = warped(PICTURE[None], none + 3, none - 1, np.zeros(1), np.ones(1))[0]
    assert np.array_equal(moved[3:, :-1], PICTURE[:-3, 1:])


def test_turned_and_resized_images_stay_in_range_and_differ() -> None:
    found = pictures(50, rotate=15, scale=0.1)
    assert len(np.unique(found.reshape(50, -1), axis=0)) == 50
    assert found.min() >= PICTURE.min()
    assert found.max() <= PICTURE.max()
    assert np.abs(found[:, 7, 7, 0].astype(int) - int(PICTURE[7, 7, 0])).max() <= 1, "about the centre"


def test_brightness_and_noise() -> None:
    grey = [np.full((16, 16, 1), 100, np.uint8)] * 300
    means = np.array([x.mean() for x in image_change(brightness=0.5)(grey, np.arange(300))])
    assert 50 <= means.min() < 60
    assert 140 < means.max() <= 150
    noisy = np.stack(image_change(noise=0.1)(grey, np.arange(300))).astype(float) - 100
    assert abs(noisy.mean()) < 0.5
    assert abs(noisy.std() - 25.5) < 0.5


def test_noise_is_normal_and_independent() -> None:
    found = noise(3, np.arange(50), 1001)
    assert found.shape == (50, 1001)
    assert abs(found.mean()) < 0.02
    assert abs(found.std() - 1) < 0.02
    assert abs((found**4).mean() - 3) < 0.2
    assert np.abs(np.corrcoef(found) - np.eye(50)).max() < 0.2


def test_gain() -> None:
    clips = sound([frames(30)] * 50, np.arange(50), gain_db=10)
    db = np.array([(clip - frames(30)).mean() * 10 / np.log(10) for clip in clips])
    assert -10 <= db.min() < -8
    assert 8 < db.max() <= 10


def test_stretch_reads_faster_or_slower() -> None:
    ramp = np.repeat(np.arange(100, dtype=np.float32)[:, None], 40, 1)
    for clip in sound([ramp] * 40, np.arange(40), stretch=0.2):
        speed = clip[50, 0] / 50
        assert 0.8 <= speed <= 1.2
        heard = min(100, int(99 / speed) + 1)
        assert np.allclose(clip[:heard, 0], np.arange(heard) * speed, atol=0.01)
        assert (clip[heard:] == np.float32(FLOOR)).all()


def test_pitch_moves_a_tone_along_the_frequencies() -> None:
    assert isinstance(OWN, AudioSpec)
    time = np.arange(8000) / 16000
    one, other = (log_mel(np.sin(2 * np.pi * hz * time).astype(np.float32), OWN) for hz in (1500, 1350))
    change = LogMelChange(AudioAugment(pitch=0.2), 7, OWN)
    moved = change([one] * 60, np.arange(60))
    nearest = min(np.abs(clip - other).mean() for clip in moved)
    assert nearest < 0.35 * np.abs(one - other).mean()
    peaks = {int(clip.mean(0).argmax()) for clip in moved}
    assert min(peaks) < one.mean(0).argmax() < max(peaks)


def test_masks_hold_the_mean() -> None:
    widths, bands = set(), set()
    for clip in sound([frames(50)] * 200, np.arange(200), time_mask=0.2, mel_mask=5):
        masked = clip == frames(50).mean()
        rows, columns = masked.all(1), masked.all(0)
        assert np.array_equal(masked, rows[:, None] | columns)
        assert rows.sum() == (np.ptp(np.flatnonzero(rows)) + 1 if rows.any() else 0), "one span"
        widths.add(int(rows.sum()))
        bands.add(int(columns.sum()))
    assert widths == set(range(10))
    assert bands == set(range(6))


@pytest.mark.parametrize("db", [0.0, -20.0])
def test_noise_of_frames_is_that_of_samples(db: float) -> None:
    """White noise added to log-mel frames has the mean level, band by band, of white noise added to the samples."""
    assert isinstance(OWN, AudioSpec)
    random = np.random.default_rng(0)
    clip = lfilter([0.05], [1, -0.9], random.normal(0, 1, 32000)).astype(np.float32)  # louder where it is lower
    level = np.sqrt(np.square(clip).mean() * 10 ** (db / 10))
    with_samples = np.exp(log_mel(clip + random.normal(0, level, 32000).astype(np.float32), OWN)).mean(0)
    (found,) = sound([log_mel(clip, OWN)], np.array([1]), noise_db=db)
    ratio = np.log10(np.exp(found).mean(0) / with_samples) * 10
    assert np.abs(ratio).max() < 1.5, "decibels"


def test_waveforms() -> None:
    wave = np.sin(np.arange(4000) / 5).astype(np.float32)

    def changed(**say: Any) -> list[np.ndarray]:
        return WaveChange(AudioAugment.model_validate(say), 7)([wave] * 30, np.arange(30))

    gains = [float(np.abs(clip).max()) for clip in changed(gain_db=20)]
    assert min(gains) < 0.3
    assert max(gains) > 3
    silent = [np.flatnonzero(clip[1:] == 0) for clip in changed(time_mask=0.5)]
    assert all(len(span) == np.ptp(span) + 1 <= 2000 for span in silent)
    assert len({len(span) for span in silent}) > 20
    noisy = np.stack(changed(noise_db=-10)) - wave
    assert abs(noisy.var() / np.square(wave).mean() - 0.1) < 0.01
    assert any(not np.allclose(clip, wave, atol=0.1) for clip in changed(stretch=0.2))


def test_of_a_recipe() -> None:
    def task(**augment: Any) -> dict[str, Any]:
        source = {"files": "x.jsonl", "image": "i", "audio": "a"}
        return {"kind": "regression", "source": source, "augment": augment}

    tasks = {"plain": task(), "one": task(image={"shift": 1}), "two": task(image={"shift": 1}, audio={"gain_db": 3})}
    recipe = Recipe.model_validate({"name": "x", "tasks": tasks})
    found = changes_of(recipe.tasks, own_specs(recipe.model), 0)
    assert list(found) == [("one", "image"), ("two", "image"), ("two", "audio")]
    one, other = (found[name, "image"]([PICTURE] * 50, np.arange(50)) for name in ("one", "two"))
    assert not np.array_equal(one, other), "each task has numbers of its own"
    again = changes_of(recipe.tasks, own_specs(recipe.model), 1)["one", "image"]([PICTURE] * 50, np.arange(50))
    assert not np.array_equal(one, again), "so has each seed"
