"""The folder of a search: `settings.json`, the recipe that its proxies share, and `results.jsonl`, one line a proxy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from lmrecipes.files import json_text, write_json, write_text_atomically
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import FREE_ON_RESUME, mismatches
from lmrecipes.search.plan import Result
from lmrecipes.series import held
from lmrecipes.tracking.record import read_metrics

FREE = tuple(field for field in FREE_ON_RESUME if field != "evaluation.")
"""Fields that may change between two parts of a search: no result depends on them."""


@dataclass(frozen=True)
class SearchFolder:
    """Paths and contents of one search."""

    path: Path

    @property
    def settings(self) -> Path:
        """The recipe that all proxies share."""
        return self.path / "settings.json"

    @property
    def journal(self) -> Path:
        """The results, in the order in which they came."""
        return self.path / "results.jsonl"

    def base(self) -> Recipe:
        """The recipe that all proxies share."""
        return Recipe.model_validate(json.loads(self.settings.read_text(encoding="utf-8")))

    def results(self) -> list[Result]:
        """The finished proxies. A last line that was cut off is left out."""
        return [Result.from_dict(row) for row in read_metrics(self.journal)]

    def alone(self) -> AbstractContextManager[None]:
        """Hold the folder for one command. Raises InputError where another runs proxies there now."""
        return held(self.path, "search")

    def write(self, results: Sequence[Result]) -> None:
        """All results so far; what stood there is a part of them."""
        write_text_atomically(self.journal, "".join(json_text(result.as_dict()) + "\n" for result in results))


def open_search(path: Path, base: Recipe) -> SearchFolder:
    """The search of this recipe in the folder `path`, begun now where there is none.

    Raises InputError where another search lives there, or something else.
    """
    folder, now = SearchFolder(path), base.model_dump(mode="json")
    if folder.settings.exists():
        saved = json.loads(folder.settings.read_text(encoding="utf-8"))
        if problems := mismatches(saved, now, FREE, f"the search {path} was begun with"):
            fix = "repeat the flags of its start, or begin another with --folder"
            raise InputError([Problem(field, what, fix, "search-mismatch") for field, what in problems.items()])
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = f"{path} exists and holds no search"
        raise InputError(Problem("--folder", what, "name a new folder", "search-folder"))
    path.mkdir(parents=True, exist_ok=True)
    write_json(folder.settings, now)
    return folder
