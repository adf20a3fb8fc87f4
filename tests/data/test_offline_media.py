"""The offline data sets with images, clips and mails: what their rows promise, on stand-ins where one is needed."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lmrecipes import assets
from lmrecipes.data import offline
from lmrecipes.data.offline import amounts, cheques, grouping, mails, scans, speech
from lmrecipes.data.permutation import hash_key
from lmrecipes.problems import InputError

SKLEARN = Path(sklearn.__file__).parent


def picture(row: grouping.Row) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]["bytes"]))


def test_scans_are_parted_into_pools_that_have_all_digits() -> None:
    found = scans.scans(SKLEARN)
    assert len(found.digits) == 1797
    assert found.ink.max() == 255
    assert {len(found.of(digit, pool)) for digit in range(10) for pool in range(scans.POOLS)} <= {2, 3, 4}
    cut = Counter(hash_key("split", scans.pool_name(pool)) / 2**64 < 0.1 for pool in range(scans.POOLS))
    assert cut[True] >= 4, "the test has scans enough"


def test_digit_images_show_the_scans() -> None:
    rows, found = scans.digit_images(SKLEARN), scans.scans(SKLEARN)
    assert {picture(row).size for row in rows} == {(side, side) for side in scans.SIZES}
    small = [number for number, row in enumerate(rows) if picture(row).size == (8, 8)]
    for number in small[:20]:
        assert (np.asarray(picture(rows[number])) == 255 - found.ink[number]).all()
    assert [row["label"] for row in rows[:10]] == list("0123456789")
    assert {row["group"] for row in rows} == {scans.pool_name(pool) for pool in range(scans.POOLS)}


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (7, "seven"), (10, "ten"), (20, "twenty"), (42, "forty-two"), (100, "one hundred"),
        (110, "one hundred and ten"), (742, "seven hundred and forty-two"), (1005, "one thousand and five"),
        (9300, "nine thousand three hundred"), (1999, "one thousand nine hundred and ninety-nine"),
    ],
)  # fmt: skip
def test_amounts_in_words(amount: int, words: str) -> None:
    assert amounts.in_words(amount) == words


@settings(max_examples=50)
@given(st.integers(1, 9999), st.integers(1, 9999))
def test_words_say_one_amount(first: int, second: int) -> None:
    assert (amounts.in_words(first) == amounts.in_words(second)) == (first == second)
    assert (
        amounts.in_words(first, " ", " ").split()
        == amounts.in_words(first).replace(" and", "").replace("-", " ").split()
    )


def test_phrasings_say_the_amount_whatever_their_dress() -> None:
    said = {amounts.phrased(742, f"name {i}") for i in range(300)}
    assert len(said) > 60
    plain = {text.lower().replace("-", " ").replace("hundred and", "hundred") for text in said}
    assert plain == {frame.format("seven hundred forty two") for frame in amounts.FRAMES}


@pytest.fixture(scope="module")
def some_cheques() -> tuple[list[grouping.Row], list[grouping.Row]]:
    """The first cheques and amounts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cheques, "PAIRS", 120)
        patch.setattr(cheques, "READINGS", 6 * scans.POOLS)
        return cheques.cheques(SKLEARN), cheques.cheque_amounts(SKLEARN)


def amount_of(text: str) -> int:
    """The amount that a phrasing says, by trying all."""
    plain = " ".join(text.lower().replace("-", " ").split())
    for frame in amounts.FRAMES:
        head, _, tail = frame.partition("{}")
        if plain.startswith(head) and plain.endswith(tail):
            known = KNOWN.get(plain[len(head) : len(plain) - len(tail)].replace("hundred and ", "hundred ").strip())
            if known is not None:
                return known
    raise AssertionError(text)


KNOWN = {amounts.in_words(amount, " ", " "): amount for amount in range(2, 1000)}


def test_neither_half_of_a_cheque_tells_fraud(some_cheques: tuple[list[grouping.Row], list[grouping.Row]]) -> None:
    rows, _ = some_cheques
    said: dict[str, Counter[int]] = {"genuine": Counter(), "fraud": Counter()}
    for row in rows:
        said[row["label"]][amount_of(row["text"])] += 1
    assert said["genuine"] == said["fraud"], "the same amounts are said by both"
    drawn: dict[str, Counter[int]] = {"genuine": Counter(), "fraud": Counter()}
    changes: Counter[tuple[int, int]] = Counter()
    for pair in range(0, len(rows), 4):
        first, swapped, other, second = rows[pair : pair + 4]
        assert [row["label"] for row in (first, swapped, other, second)] == ["genuine", "fraud", "fraud", "genuine"]
        a, b = amount_of(first["text"]), amount_of(second["text"])
        assert (amount_of(swapped["text"]), amount_of(other["text"])) == (a, b)
        for label, amount in (("genuine", a), ("fraud", b), ("fraud", a), ("genuine", b)):
            drawn[label][amount] += 1
        differ = sum(x != y for x, y in zip(str(a), str(b), strict=True))
        changes[len(str(a)), differ] += 1
        assert differ in (1, len(str(a))) or (differ == 2 and sorted(str(a)) == sorted(str(b)))
        assert len({row["group"] for row in (first, swapped, other, second)}) == 1, "a pair is in one split"
    assert drawn["genuine"] == drawn["fraud"]
    assert set(changes) == {(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)}, "all lengths and changes"
    assert {picture(row).size for row in rows} == {(cheques.WIDTH, cheques.HEIGHT)}
    assert len({row["image"]["bytes"] for row in rows}) == len(rows)


def test_the_picture_follows_the_amount_and_the_pool() -> None:
    found = scans.scans(SKLEARN)
    first = cheques.draw(found, 3, 742, "a")
    assert (np.asarray(first) == np.asarray(cheques.draw(found, 3, 742, "a"))).all()
    for pool, amount, name in ((4, 742, "a"), (3, 743, "a"), (3, 742, "b")):
        assert (np.asarray(first) != np.asarray(cheques.draw(found, pool, amount, name))).any()


def test_readings_may_lack_words_or_picture(some_cheques: tuple[list[grouping.Row], list[grouping.Row]]) -> None:
    _, rows = some_cheques
    held = Counter((row["text"] is not None, row["image"] is not None) for row in rows)
    assert held == {(True, False): scans.POOLS, (True, True): scans.POOLS, (False, True): 4 * scans.POOLS}
    groups: dict[str, str] = {}
    for row in rows:
        if row["image"] is None:
            said = row["text"].casefold()
            assert groups.setdefault(said, row["group"]) == row["group"], "the same words are in one split"
        if row["text"] is not None:
            said = str(amount_of(row["text"]))
            assert row["label"] == [f"{place} {d}" for place, d in zip(cheques.PLACES[-len(said) :], said, strict=True)]


def test_digits_stand_in_their_boxes() -> None:
    found = scans.scans(SKLEARN)
    for number, amount in enumerate((7, 42, 742, 100, 999) * 4):
        dark = np.asarray(cheques.draw(found, number, amount, f"name {number}").convert("L")) < 110
        boxes = [dark[:, left : left + cheques.BOX] for left in range(0, cheques.WIDTH, cheques.BOX)]
        blank = len(boxes) - len(str(amount))
        assert [box.any() for box in boxes] == [False] * blank + [True] * len(str(amount))
        for box in boxes[blank:]:
            middle = np.argwhere(box).mean(axis=0)
            assert np.abs(middle - cheques.BOX / 2).max() < 6, "a digit stands in the middle of its box"


@pytest.mark.parametrize(("rate", "wanted"), [(22050, 8000), (22050, 16000), (8000, 22050), (22050, 22050)])
def test_resampled_keeps_what_both_rates_have(rate: int, wanted: int) -> None:
    time = np.arange(rate // 2) / rate
    window = np.hanning(len(time))
    low, high = np.sin(2 * np.pi * 440 * time) * window, np.sin(2 * np.pi * 9000 * time) * window
    found = speech.resampled(0.5 * low, rate, wanted)
    again = np.arange(len(found)) / wanted
    assert np.abs(found - 0.5 * np.sin(2 * np.pi * 440 * again) * np.hanning(len(again))).max() < 0.01
    if wanted < 18000 <= rate:
        assert np.abs(speech.resampled(0.5 * high, rate, wanted)).max() < 0.01, "nothing is folded back"


PROGRAM = """
import json, struct, sys
out = sys.stdout.buffer
out.write(struct.pack("<I", 22050))
for voice, rate, pitch, text in map(json.loads, sys.stdin):
    samples = [0] * 4000 + [1000 * (i % 20 - 10) for i in range(600 * len(text))] + [0] * 4000
    samples = [] if voice.endswith("m1") and text == "two" else samples
    out.write(struct.pack(f"<I{len(samples)}h", len(samples), *samples))
"""


@pytest.fixture
def voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An asset of two voices, with a program in eSpeak's place."""
    (tmp_path / "asset" / "espeak-ng-data" / "voices" / "!v").mkdir(parents=True)
    for voice in ("klatt2", "m1"):
        (tmp_path / "asset" / "espeak-ng-data" / "voices" / "!v" / voice).write_text("")
    (tmp_path / "espeak_process.py").write_text(PROGRAM)
    monkeypatch.setattr(speech, "__file__", str(tmp_path / "speech.py"))
    return tmp_path / "asset"


def test_spoken_digits_are_files_of_several_kinds_and_rates(voices: Path) -> None:
    rows = speech.spoken_digits(voices)
    assert Counter(row["label"] for row in rows) == {
        word: speech.TAKES * (1 if word == "two" else 2) for word in amounts.DIGITS
    }, "a voice that says nothing is left out"
    assert {row["group"] for row in rows} == {"voice klatt", "voice m1"}
    about = [soundfile.info(io.BytesIO(row["audio"]["bytes"])) for row in rows]
    assert {info.format for info in about} == {"WAV", "FLAC"}
    assert {info.samplerate for info in about} == {8000, 11025, 16000, 22050}
    for row, info in zip(rows, about, strict=True):
        assert info.duration == pytest.approx(600 * len(row["label"]) / 22050 + 0.06, abs=0.003), "silence is cut"


def test_the_rate_is_the_label(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[speech.Line] = []
    speak = speech.speak
    monkeypatch.setattr(speech, "speak", lambda folder, lines: (told.extend(lines), speak(folder, lines))[1])
    rows = speech.speaking_rate(voices)
    assert [row["label"] for row in rows] == [line[1] / 100 for line in told]
    assert len({row["label"] for row in rows}) > 20
    assert all(speech.SLOWEST <= rate < speech.FASTEST and 0 <= pitch < 100 for _, rate, pitch, _ in told)


def test_speech_that_stops_is_an_input_error(voices: Path) -> None:
    Path(speech.__file__).with_name("espeak_process.py").write_text("raise SystemExit('no such library')")
    with pytest.raises(InputError, match="no such library") as caught:
        speech.spoken_digits(voices)
    assert [problem.id for problem in caught.value.problems] == ["offline-speech"]


MAIL = """From a@b.c  Thu Aug 22 13:17:22 2002
Received: from phobos (localhost [127.0.0.1])
X-Spam-Status: Yes, hits=12.3
Subject: {subject}
Content-Type: {kind}
Content-Transfer-Encoding: {encoding}

{body}"""


def mail(group: str, subject: str, body: str, kind: str = "text/plain", encoding: str = "7bit") -> str:
    text = MAIL.format(subject=subject, body=body, kind=kind, encoding=encoding)
    return json.dumps({"group": group, "text": text}) + "\n"


LONG = "This very long sentence of more than ten words is sent to thousands of people."


def test_mails_are_subject_and_body_alone(tmp_path: Path) -> None:
    page = "<html><style>p {color: red}</style><body>Buy <b>now</b> &amp; save<!-- x12 --></body></html>"
    coded = base64.b64encode("Caf\u00e9 offer".encode("latin-1")).decode()
    (tmp_path / mails.FILE).write_text(
        mail(
            "easy-ham-1",
            "Re: [ILUG] Re: kernel here: now",
            "Hi  all,\n\nit works.\n-- \nJo\n____________________\nlist",
        )
        + mail("spam-1", "=?iso-8859-1?Q?Caf=E9?=", page, "text/html")
        + mail("spam-2", "Coded", coded, "text/plain; charset=iso-8859-1", "base64")
        + mail("easy-ham-2", "News", "URL: http://x.org/\nDate: 2002-09-30\n\nAll is well at jmason's.")
        + mail("easy-ham-2", "News", "URL: http://x.org/2\n\nAll is well at jmason's.")
        + mail("spam-1", "", "   \n")
    )
    rows = mails.spam_mails(tmp_path)
    assert [(row["text"], row["label"]) for row in rows] == [
        ("kernel here: now\nHi all,\nit works.", "ham"),
        ("Caf\u00e9\nBuy now & save", "spam"),
        ("Coded\nCaf\u00e9 offer", "spam"),
        ("News\nAll is well at 's.", "ham"),
    ]


def test_threads_and_campaigns_share_a_group(tmp_path: Path) -> None:
    (tmp_path / mails.FILE).write_text(
        mail("easy-ham-1", "Linux", "One.")
        + mail("easy-ham-1", "Re: linux", "Two.")
        + mail("spam-1", "Offer 1", f"First!\n{LONG}")
        + mail("spam-1", "Offer 2", f"> {LONG}\nSecond!")
        + mail("spam-1", "Offer 3", "Short one.")
    )
    groups = [row["group"] for row in mails.spam_mails(tmp_path)]
    assert groups[0] == groups[1]
    assert groups[2] == groups[3]
    assert len(set(groups)) == 3


def test_mails_end_in_time(tmp_path: Path) -> None:
    """Patterns that try all ways to part a text take hours on these."""
    hard = ["-" * 30 + "\n" + "x\n" * 5000, "<" * 5000, "<!--" * 1500, "Re: [" * 1500, "<style" * 1500]
    (tmp_path / mails.FILE).write_text("".join(mail("spam-1", text[:900], text, "text/html") for text in hard))
    assert mails.spam_mails(tmp_path)


@pytest.mark.skipif(not assets.is_cached(assets.find("espeak")), reason="asset espeak is not in the cache")
def test_espeak_says_words_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = assets.locate("espeak")
    lines: list[speech.Line] = [
        ("en-us+m3", 120, 50, "seven"),
        ("en-us+f2", 240, 50, "seven"),
        ("en+m3", 120, 50, "six"),
    ]
    first, again = (list(speech.speak(folder, lines)) for _ in range(2))
    assert [rate for _, rate in first] == [22050] * 3
    assert all((a[0] == b[0]).all() for a, b in zip(first, again, strict=True))
    assert 0.2 < len(first[1][0]) / 22050 < len(first[0][0]) / 22050 < 1.0
    with pytest.raises(InputError, match="no voice nobody"):
        next(iter(speech.speak(folder, [("nobody", 120, 50, "seven")])))


@pytest.mark.skipif(not assets.is_cached(assets.find("spam")), reason="asset spam is not in the cache")
def test_the_real_mails() -> None:
    rows = offline.load("spam_mails")
    assert Counter(row["label"] for row in rows) == {"ham": 4099, "spam": 1763}
    assert max(Counter(row["group"] for row in rows).values()) < 150
    headed = [row for row in rows if re.match(r"(?:.*\n)?(?:Received|Return-Path|X-[\w-]+):", row["text"])]
    assert len(headed) < 5, "a few bodies begin with another mail's headers"


def test_the_version_follows_all_code_that_makes_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: offline.version(name) for name in offline.OFFLINE}
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read(file) + (b"#" if file.name == "amounts.py" else b""))
    changed = {name for name in before if offline.version(name) != before[name]}
    assert changed == {"cheques", "cheque_amounts", "spoken_digits", "speaking_rate"}
