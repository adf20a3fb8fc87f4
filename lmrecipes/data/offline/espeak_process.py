"""A program of its own that speaks by eSpeak NG: run by `speech`, never imported, so that ours is not linked with it.

    python espeak_process.py FOLDER < lines of JSON [voice, rate, pitch, text]

FOLDER: of the asset `espeak`. Writes the sample rate (4 bytes), then for each line the number of samples (4 bytes) and
the samples (16 bits each), mono, little-endian.
"""

import ctypes
import json
import struct
import sys

SYNCHRONOUS, UTF8, END_OF_TEXT = 2, 1, 0
RATE, PITCH = 1, 3  # parameters


def main(folder: str) -> None:
    """Speak all lines."""
    library = ctypes.CDLL(f"{folder}/libespeak-ng")
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, folder.encode(), 0)
    if rate <= 0:
        sys.exit(f"eSpeak NG does not start with the data in {folder}")
    heard = bytearray()

    def hear(samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int) -> int:
        if samples and count:
            heard.extend(ctypes.string_at(samples, 2 * count))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(hear)
    library.espeak_SetSynthCallback(callback)
    out = sys.stdout.buffer
    out.write(struct.pack("<I", rate))
    for voice, speed, pitch, text in map(json.loads, sys.stdin):
        if library.espeak_SetVoiceByName(voice.encode()):
            sys.exit(f"eSpeak NG has no voice {voice}")
        library.espeak_SetParameter(RATE, speed, 0)
        library.espeak_SetParameter(PITCH, pitch, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath and noise, the same in every run
        content = text.encode()
        library.espeak_Synth(content, len(content) + 1, 0, 0, END_OF_TEXT, UTF8, None, None)
        library.espeak_Synchronize()
        out.write(struct.pack("<I", len(heard) // 2) + heard)
        heard.clear()


if __name__ == "__main__":
    main(sys.argv[1])
