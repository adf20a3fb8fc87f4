"""Rows with images and clips: how they are read, split, counted, refused and kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_media import png, wav, write_rows
from PIL import Image

from lmrecipes.data import encode, media_readers
from lmrecipes.data.encode import encode_tasks, task_texts
from lmrecipes.data.encoded import EncodedTask
from lmrecipes.data.facts import mixture_facts
from lmrecipes.data.images import ImageReader
from lmrecipes.data.inputs import ImageSpec, own_specs
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe

MODEL = {
    "image": {"height": 8, "width": 8, "channels": 1, "patch": 4},
    "audio": {"sample_rate": 8000, "mels": 6, "stack": 3, "longest_seconds": 0.15},
    "max_length": 12,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path / "cache"))


def recipe_of(tiny: Path | None, **source: Any) -> Recipe:
    task = {"kind": "classification", "source": source, "labels": ["0", "1", "2"]}
    model = MODEL | ({} if tiny is None else {"pretrained": str(tiny / "model")})
    return Recipe.model_validate({"name": "x", "tasks": {"t": task}, "model": model})


def encoded(tiny: Path | None, **source: Any) -> EncodedTask:
    return encode_tasks(recipe_of(tiny, **source), progress=False)["t"]


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def rows_of(task: EncodedTask) -> dict[str, int]:
    return {split: len(rows) for split, rows in task.splits.items()}


def test_positions_of_text_image_and_clip_follow_each_other(tiny: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 60)
    task = encoded(tiny, files=jsonl(tmp_path, rows), text="text", image="image", audio="audio", group="group")
    texts = task_texts(recipe_of(tiny, **task.task.source.model_dump(exclude_defaults=True)))
    total = {"without_text": 0, "without_image": 0, "without_audio": 0}
    for split, part in task.splits.items():
        image, audio = part.media["image"], part.media["audio"]
        every = np.arange(len(part))
        assert isinstance(image.spec, ImageSpec)
        assert image.values.shape[1:] == (8, 8, 1)
        assert audio.values.shape[1:] == (6,)
        media = image.positions_of(every) + audio.positions_of(every)
        assert set(image.positions_of(every)) <= {0, 4}
        assert audio.positions_of(every).max() == 5, "0.15 s are 14 frames, three at a time"
        for i, (start, end, count) in enumerate(zip(part.offsets, part.offsets[1:], media, strict=False)):
            tokens = part.tokens[start:end]
            assert (tokens[len(tokens) - count :] == 0).all()
            assert (tokens[: len(tokens) - count] > 0).all()
            assert (count == end - start) == (texts["t"].splits[split].texts[i] == "")
        assert task.counts[split]["tokens"] == part.offsets[-1]
        for name in total:
            total[name] += task.counts[split][name]
    assert total == {"without_text": 7, "without_image": 7, "without_audio": 6}
    assert sum(rows_of(task).values()) == 60


def test_what_is_kept_is_what_was_read(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 40, several=False)
    task = encoded(None, files=jsonl(tmp_path, rows), image="image", audio="audio", group="group")
    reader = ImageReader("image", ImageSpec(8, 8, 1, 4))
    expected = {reader(tmp_path / row["image"], Path()).values.tobytes() for row in rows}
    found = {image.tobytes() for part in task.splits.values() for image in part.media["image"].values}
    assert found == expected
    assert "without_image" in task.counts["train"], "a row may lack one of two inputs"


def test_images_alone_need_no_tokenizer(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 40, several=False)
    files = jsonl(tmp_path, rows)
    recipe = recipe_of(None, files=files, image="image")
    nowhere = recipe.model_copy(update={"model": recipe.model.model_copy(update={"pretrained": "/nowhere"})})
    task = encode_tasks(nowhere, progress=False)["t"]
    assert task.train.lengths.tolist() == [4] * len(task.train)
    assert "without_image" not in task.counts["train"]
    assert task.train.media["image"].rows.tolist() == list(range(len(task.train) + 1))


def test_every_source_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"image": row["image"], "label": str(row["label"])} for row in write_rows(tmp_path, 40, several=False)]
    held = [{**row, "image": (tmp_path / row["image"]).read_bytes()} for row in rows]
    parquet.write_table(pa.Table.from_pylist(held), tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    datasets.Dataset.from_list(held, features=features).save_to_disk(tmp_path / "saved")
    (tmp_path / "made_rows.py").write_text(
        "from pathlib import Path\nfrom PIL import Image\nhere = Path(__file__).parent\n"
        f"def rows():\n    return [{{**row, 'image': Image.open(here / row['image'])}} for row in {rows!r}]\n"
        f"def paths():\n    return {rows!r}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sources: list[dict[str, str]] = [
        {"files": jsonl(tmp_path, rows)}, {"files": "rows.csv"}, {"files": "rows.parquet"},
        {"dataset": str(tmp_path / "saved")}, {"function": "made_rows:paths"},
    ]  # fmt: skip
    first, *others = (encoded(None, image="image", **source) for source in sources)
    for other in others:
        for split in first.splits:
            one, two = first.splits[split], other.splits[split]
            assert np.array_equal(one.media["image"].values, two.media["image"].values), other.task.source
            assert np.array_equal(one.targets, two.targets)
    decoded = encoded(None, image="image", function="made_rows:rows")
    every = [sorted(i.tobytes() for s in t.splits.values() for i in s.media["image"].values) for t in (first, decoded)]
    assert len(every[0]) == len(every[1]) == 40


def test_clips_of_a_dataset_stay_files(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa

    rows = write_rows(tmp_path, 40, several=False)
    held = [{"audio": {"bytes": (tmp_path / row["audio"]).read_bytes(), "path": None}} for row in rows]
    labels = pa.array([str(row["label"]) for row in rows])
    table = pa.Table.from_pylist(held).append_column("label", labels)
    features = datasets.Features({"audio": datasets.Audio(), "label": datasets.Value("string")})
    datasets.Dataset(table.cast(features.arrow_schema)).cast(features).save_to_disk(tmp_path / "saved")
    assert sum(rows_of(encoded(None, audio="audio", dataset=str(tmp_path / "saved"))).values()) == 40


def test_bad_rows_are_named_or_left_out(tiny: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 40)
    (tmp_path / "broken.png").write_bytes(png(np.zeros((90, 90), np.uint8))[:50])
    rows[3]["image"], rows[8]["audio"] = "broken.png", "nowhere.wav"
    rows[9] = {"text": " ", "image": None, "audio": {"bytes": None, "path": None}, "label": 1, "group": 9}
    source = {"files": jsonl(tmp_path, rows), "text": "text", "image": "image", "audio": "audio", "group": "group"}
    with pytest.raises(InputError) as caught:
        encoded(tiny, **source)
    said = str(caught.value)
    assert "3 bad row(s)" in said
    assert "rows.jsonl line 4: 'image' is a broken image" in said
    assert "rows.jsonl line 9: 'audio': " in said
    assert "nowhere.wav cannot be read" in said
    assert "line 10: 'text', 'image', 'audio' are all missing" in said
    task = encoded(tiny, **source, on_bad_row="skip")
    assert task.skipped == 3
    assert sum(rows_of(task).values()) == 37


def test_one_input_may_not_be_missing(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 40)
    with pytest.raises(InputError, match="line 4: 'image' is missing"):
        encoded(None, files=jsonl(tmp_path, rows), image="image")


def test_the_split_does_not_depend_on_the_front_end(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 60, several=False)
    recipe = recipe_of(None, files=jsonl(tmp_path, rows), image="image")
    large = recipe.model_dump(mode="json", exclude_defaults=True)
    large["model"]["image"] = {"height": 16, "width": 16, "patch": 8}
    one, other = (encode_tasks(r, progress=False)["t"] for r in (recipe, Recipe.model_validate(large)))
    assert one.train.folder != other.train.folder
    assert other.train.media["image"].values.shape[1:] == (16, 16, 3)
    for split in one.splits:
        assert np.array_equal(one.splits[split].targets, other.splits[split].targets)


def test_the_same_image_in_two_splits_is_counted_whatever_its_name(tmp_path: Path) -> None:
    for name in ("train", "test", "validation"):
        (tmp_path / name).mkdir()
        rows = write_rows(tmp_path / name, 12, several=False)
        jsonl(tmp_path / name, [{**row, "image": row["image"]} for row in rows[: 12 if name == "train" else 4]])
    splits = {name: str(tmp_path / name / "rows.jsonl") for name in ("train", "test", "validation")}
    task = encoded(None, splits=splits, image="image")
    assert task.duplicates == {"train/validation": 4, "train/test": 4, "validation/test": 4}


def test_max_length_cuts_the_text_only(tiny: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 40, several=False)
    for row in rows:
        row["text"] = "many words " * 20
    task = encoded(tiny, files=jsonl(tmp_path, rows), text="text", image="image", group="group")
    assert set(task.train.lengths.tolist()) == {12 + 4}
    assert task.counts["train"]["truncated"] == len(task.train)


def test_pairs_of_texts_with_an_image(tiny: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 40, several=False)
    for i, row in enumerate(rows):
        row["second"] = "another"
        if i % 4 == 0:
            row["text"] = row["second"] = None
    source = {"files": jsonl(tmp_path, rows), "text": "text", "text_pair": "second", "image": "image", "group": "group"}
    part = encoded(tiny, **source).train
    assert part.types is not None
    assert len(part.types) == len(part.tokens)
    assert part.types.max() == 1
    assert (part.types[part.tokens == 0] == 0).all()
    rows[1]["text"] = None
    with pytest.raises(InputError, match="line 2: 'text' is None, not a text"):
        encoded(tiny, **{**source, "files": jsonl(tmp_path, rows)})


def test_media_are_read_in_bounded_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path, 50, several=False)
    source = {"files": jsonl(tmp_path, rows), "image": "image", "audio": "audio"}
    whole = encoded(None, **source)
    held, write = [], encode.MediaEncoder.__call__

    def noted(self: Any, split: str, piece: Any) -> Any:
        held.append(len(piece))
        return write(self, split, piece)

    monkeypatch.setattr(encode.MediaEncoder, "__call__", noted)
    monkeypatch.setattr(media_readers, "MOST_HELD", 2000)
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path / "other"))
    parts = encoded(None, **source)
    assert max(held) <= 8
    for split in whole.splits:
        for modality in ("image", "audio"):
            one, other = (task.splits[split].media[modality] for task in (whole, parts))
            assert np.array_equal(one.values, other.values)
            assert np.array_equal(one.rows, other.rows)


def test_a_split_without_any_image(tiny: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 40, several=False)
    for row in rows:
        row["image"] = None
    part = encoded(tiny, files=jsonl(tmp_path, rows), text="text", image="image").train
    assert part.media["image"].values.shape == (0, 8, 8, 1)
    assert part.media["image"].positions_of(np.arange(len(part))).sum() == 0


def test_the_mixture_says_what_rows_lack(tiny: Path, tmp_path: Path) -> None:
    from rich.console import Console

    from lmrecipes.mixture_text import lines, print_mixture

    source = {"files": jsonl(tmp_path, write_rows(tmp_path, 60)), "text": "text", "image": "image", "group": "group"}
    recipe = recipe_of(tiny, **source)
    facts = mixture_facts(recipe, encode_tasks(recipe, progress=False))
    fact = facts["t"]
    assert fact["without_text"] > 0
    console = Console(width=200, record=True)
    print_mixture(recipe, facts, [], console)
    said = console.export_text()
    assert "no text" in said
    assert "no image" in said
    assert "no audio" not in said
    assert f"{fact['without_image']:,} without image" in " ".join(lines(recipe, facts))


def test_check_finds_broken_images(tmp_path: Path) -> None:
    from lmrecipes.planning.check import check_data

    rows = write_rows(tmp_path, 40, several=False)
    rows[5]["image"] = "nowhere.png"
    (found,) = check_data(recipe_of(None, files=jsonl(tmp_path, rows), image="image"))
    assert "line 6: 'image'" in found.what


def test_specs_of_the_recipe_reach_the_split(tmp_path: Path) -> None:
    recipe = recipe_of(None, files=jsonl(tmp_path, write_rows(tmp_path, 40, several=False)), audio="audio")
    task = encode_tasks(recipe, progress=False)["t"]
    assert task.train.inputs == {"audio": own_specs(recipe.model)["audio"]}


def test_cells_that_hold_pillow_images_and_arrays_have_a_size() -> None:
    from lmrecipes.data.sources import _size

    assert _size(Image.new("RGB", (4, 5))) == 60
    assert _size({"array": np.zeros(7), "sampling_rate": 8000}) == 8
    assert _size(wav(np.zeros(10), 8000)) > 20


def test_a_tokenizer_is_trained_on_the_texts_that_there_are(tmp_path: Path) -> None:
    files = jsonl(tmp_path, write_rows(tmp_path, 60))
    both = {"files": files, "text": "text", "image": "image", "group": "group", "on_bad_row": "skip"}
    pixels = {"files": files, "image": "image", "group": "group", "on_bad_row": "skip"}
    tasks = {name: {"kind": "regression", "source": source} for name, source in (("pixels", pixels), ("both", both))}
    model = {**MODEL, "config": {"model_type": "bert"}, "tokenizer_vocabulary": 512}
    found = encode_tasks(Recipe.model_validate({"name": "x", "tasks": tasks, "model": model}), progress=False)
    part = found["both"].train
    written = np.flatnonzero(part.lengths - part.media["image"].positions_of(np.arange(len(part))))
    assert len(written) == len(part) - found["both"].counts["train"]["without_text"] < len(part)
