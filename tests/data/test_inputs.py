"""What front ends read: positions of images and clips."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.data.audio import log_mel
from lmrecipes.data.inputs import AudioSpec, ImageSpec, longest_example, own_specs
from lmrecipes.recipe import Model, Recipe

WAV2VEC2 = AudioSpec(
    "waveform", 16000, 32000, kernels=(10, 3, 3, 3, 3, 2, 2), strides=(5, 2, 2, 2, 2, 2, 2)
)  # fmt: skip


def test_our_own_front_ends() -> None:
    specs = own_specs(Model.model_validate({"image": {"height": 28, "width": 28, "channels": 1, "patch": 7}}))
    assert specs["image"] == ImageSpec(28, 28, 1, 16)
    assert specs["audio"] == AudioSpec("log_mel", 16000, 32000, mels=40, window=400, hop=160, stack=4)
    assert specs["audio"].longest == 50  # 199 frames: one of 25 ms, then every 10 ms
    assert list(own_specs(Model.model_validate({"image": {"pretrained": "vit"}}))) == ["audio"]


@given(st.integers(1, 40000), st.integers(1, 9))
def test_positions_are_those_of_the_frames(samples: int, stack: int) -> None:
    spec = AudioSpec("log_mel", 8000, 20000, mels=8, window=200, hop=80, stack=stack)
    frames = len(log_mel(np.zeros(min(samples, 20000), np.float32), spec))
    assert frames == spec.frames_of(samples)
    assert spec.positions_of(samples) == -(-frames // stack) <= spec.longest


@given(st.integers(400, 40000))
def test_positions_of_a_waveform(samples: int) -> None:
    length = min(samples, WAV2VEC2.longest_samples)
    for kernel, stride in zip(WAV2VEC2.kernels, WAV2VEC2.strides, strict=True):
        length = len(range(0, length - kernel + 1, stride))
    assert WAV2VEC2.positions_of(samples) == length


def test_the_shortest_clip_has_one_position() -> None:
    assert WAV2VEC2.shortest_samples == 400
    assert WAV2VEC2.positions_of(400) == 1
    assert WAV2VEC2.positions_of(399) == 0
    assert WAV2VEC2.positions_held(np.array([0, 400, 16000])).tolist() == [0, 1, 49]


def test_the_longest_example_counts_media_on_top_of_the_text() -> None:
    def task(**source: str) -> dict[str, object]:
        return {"kind": "regression", "source": {"files": "x.jsonl", **source}}

    fields = {"image": task(image="i"), "short": task(text="t") | {"max_length": 5}}
    recipe = Recipe.model_validate({"name": "x", "tasks": fields, "model": {"max_length": 300}})
    specs = own_specs(recipe.model)
    assert longest_example(recipe, specs) == 16, "a task without a text has no tokens"
    both = {**fields, "both": task(text="t", image="i", audio="a")}
    recipe = Recipe.model_validate({"name": "x", "tasks": both, "model": {"max_length": 300}})
    assert longest_example(recipe, specs) == 300 + 16 + 50
