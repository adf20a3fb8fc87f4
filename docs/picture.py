"""Turns what a terminal showed into a picture: `tmux capture-pane -e -p | python docs/picture.py docs/progress.svg`."""

import io
import sys

from rich.console import Console
from rich.text import Text

console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
console.print(Text.from_ansi(sys.stdin.read().rstrip()))
console.save_svg(sys.argv[1], title="lmrecipes")
