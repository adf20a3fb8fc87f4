"""Named members of zip and tar archives, also of an archive inside another one."""

from __future__ import annotations

import fnmatch
import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

_AFTER_ARCHIVE = re.compile(r"(?<=\.tar\.gz)!|(?<=\.zip)!")
"""Parts an inner archive from its member; a name may have other exclamation marks."""


class BadArchiveError(Exception):
    """The archive cannot be read, a member is missing, or a name would leave the target folder."""


def extract(archive: Path, members: Sequence[tuple[str, str]], target: Path) -> list[str]:
    """Write the named members below `target`, nothing else; returns the written names.

    A member is (name inside the archive, name below the target). `inner.tar.gz!name` is a member of an archive inside
    the archive. In `folder/*.txt` the pattern stands for file names of that folder, and the second name is then a
    folder that ends in `/`. Links and other special members are never written. Raises BadArchiveError.
    """
    written: list[str] = []
    by_container: dict[str, list[tuple[str, str]]] = {}
    for source, name in members:
        *outer, inside = _AFTER_ARCHIVE.split(source, maxsplit=1)
        by_container.setdefault("".join(outer), []).append((inside, name))
    try:
        with archive.open("rb") as stream:
            for container, pairs in by_container.items():
                written += _extract_from(stream, archive.name, container, pairs, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise BadArchiveError(f"{archive.name} is not a readable archive: {error}") from error
    return written


def _extract_from(
    stream: IO[bytes], label: str, container: str, pairs: list[tuple[str, str]], target: Path
) -> Iterator[str]:
    """Members of the archive itself, or of the `container` inside it."""
    stream.seek(0)
    with _opened(stream) as (names, read):
        if container:
            if container not in names:
                raise BadArchiveError(f"{label} has no member {container!r}")
            yield from _extract_from(io.BytesIO(read(container)), f"{label}!{container}", "", pairs, target)
            return
        for source, name in pairs:
            matching = _matching(names, source)
            if not matching:
                raise BadArchiveError(f"{label} has no member {source!r}")
            for found in matching:
                relative = name + found.rpartition("/")[2] if name.endswith("/") else name
                file = target / relative
                if relative.startswith("/") or ".." in PurePosixPath(relative).parts or set("\\:") & set(relative):
                    raise BadArchiveError(f"{label}: member {found!r} would be written outside of its folder")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(read(found))
                yield relative


def _matching(names: Sequence[str], source: str) -> list[str]:
    """The member of that name, or those in its folder that match its pattern, in order."""
    if "*" not in source:
        return [source] if source in names else []
    folder, _, pattern = source.rpartition("/")
    in_folder = [name for name in names if name.rpartition("/")[0] == folder]
    return sorted(name for name in in_folder if fnmatch.fnmatchcase(name.rpartition("/")[2], pattern))


@contextmanager
def _opened(stream: IO[bytes]) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Names of the regular files of a zip or tar archive, and a function that reads one."""
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as package:
            yield [info.filename for info in package.infolist() if not info.is_dir()], package.read
        return
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        files = {info.name: info for info in archive.getmembers() if info.isfile()}

        def read(name: str) -> bytes:
            content = archive.extractfile(files[name])
            if content is None:
                raise BadArchiveError(f"member {name!r} is not a file")
            return content.read()

        yield list(files), read
