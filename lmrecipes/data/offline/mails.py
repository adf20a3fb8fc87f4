"""Real mails, spam and not, of 2002 and 2003 (asset `spam`): subject and body alone.

Headers are left out: which machines and lists a mail went through and what a filter said of it gives the answer away.
So do names of the people who collected the mails, footers of lists, and the lines by which a news reader begins.
"""

from __future__ import annotations

import email
import html
import json
import re
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from pathlib import Path

from lmrecipes.data.offline.grouping import Row, join_duplicates
from lmrecipes.mail_corpus import FILE

MOST_CHARACTERS = 1000
"""Of a mail; the rest is left out."""
_TAGS = re.compile(
    r"<(?:style|script)\b.*?</(?:style|script)[^>]*>|<!--.*?-->|</?[a-z!][^>]*>", re.IGNORECASE | re.DOTALL
)
_FOOTER = re.compile(r"\n(?:_{20,}|-{20,}|-- ?)\n")
_LONGEST_FOOTER = 600  # characters
_NEWS = re.compile(r"\A(?:(?:URL|Date): [^\n]*\n\s*)+")
_COLLECTORS = re.compile(r"spamassassin|netnoteinc|jmason|justin ?mason|taint\.org|\b[qyz]{4,}\b", re.IGNORECASE)
_BEFORE_SUBJECT = re.compile(r"\A(?:(?:re|fwd?|aw)(?:\[\d+\])?: *|\[[^\]]{1,40}\] *)+", re.IGNORECASE)
_LONG_SENTENCE = 10  # words; shorter ones are in mails that have nothing to do with each other


def spam_mails(folder: Path) -> list[Row]:
    """Columns text (subject, a line break, body) and label (spam or ham). A text that comes twice is taken once.

    Group: threads and campaigns, which are the mails of one subject (whatever stands before it: Re, the name of a
    list) and those that share a long sentence.
    """
    told: dict[str, Row] = {}
    with (folder / FILE).open(encoding="ascii") as lines:
        for mail in map(json.loads, lines):
            message = email.message_from_string(re.sub(r"\AFrom .*\n", "", mail["text"]))
            subject = _BEFORE_SUBJECT.sub("", _COLLECTORS.sub("", _subject(message)), count=1)
            text = f"{subject}\n{_COLLECTORS.sub('', _body(message))}".strip()[:MOST_CHARACTERS]
            label = "spam" if mail["group"].startswith("spam") else "ham"
            if re.search(r"\w", text):
                row = {"text": text, "label": label, "group": subject.casefold() or text.casefold()}
                told.setdefault(text.casefold(), row)
    return join_duplicates(list(told.values()), _long_sentences)


def _subject(message: Message) -> str:
    """Decoded, on one line."""
    written = str(message["subject"] or "")
    try:
        parts = [part if isinstance(part, str) else _decoded(part, charset) for part, charset in decode_header(written)]
    except (HeaderParseError, ValueError):  # base64 that is cut
        parts = [written]
    return " ".join("".join(parts).split())


def _body(message: Message) -> str:
    """The first text of a mail, without markup, footers and repeated spaces."""
    for part in message.walk():
        if part.get_content_maintype() == "text":
            text, content = part.get_payload(), part.get_payload(decode=True)
            if str(part["content-transfer-encoding"]).strip().lower() in ("base64", "quoted-printable"):
                assert isinstance(content, bytes)
                text = _decoded(content, part.get_content_charset())
            assert isinstance(text, str)
            if part.get_content_subtype() == "html" or "<html" in text[:500].lower():
                text = html.unescape(_TAGS.sub(" ", text))
            text = _NEWS.sub("", text.replace("\r\n", "\n").strip())
            ends = (found.start() for found in _FOOTER.finditer(text) if len(text) - found.start() < _LONGEST_FOOTER)
            text = text[: next(ends, None)]
            return "\n".join(line for line in (" ".join(line.split()) for line in text.split("\n")) if line)
    return ""


def _decoded(content: bytes, charset: str | None) -> str:
    try:
        return content.decode(charset or "latin-1", "replace")
    except LookupError:
        return content.decode("latin-1")


def _long_sentences(row: Row) -> Iterator[str]:
    for sentence in re.split(r"[.!?]\s|\n", re.sub(r"[\d>]+", " ", row["text"])):
        if len(words := sentence.rstrip(".!?").split()) >= _LONG_SENTENCE:
            yield " ".join(words)
