"""Compile DeepSpeed's operators ahead of their first use; `launch/setup` runs this in `.venv`.

The compiled files go to TORCH_EXTENSIONS_DIR, where later runs find them. Exit codes: 0 all built, 1 one of the needed
failed, 3 only optional ones failed.
"""

import argparse
import logging
import sys
import traceback

from deepspeed.ops.op_builder.all_ops import ALL_OPS


def build(name: str) -> bool:
    """Compile and load the operator `name`; False, with the traceback on stderr, where that fails."""
    try:
        ALL_OPS[name].load(verbose=True)
    except Exception:  # noqa: BLE001 - whatever stops a compiler: the log keeps it, the exit code tells it
        traceback.print_exc()
        return False
    return True


def main() -> int:
    """Build the operators named on the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--needed", nargs="*", default=[], help="operators without which training cannot start")
    parser.add_argument("--optional", nargs="*", default=[], help="operators that only some settings use")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    failed = [name for name in (*arguments.needed, *arguments.optional) if not build(name)]
    if not failed:
        return 0
    return 1 if set(failed) & set(arguments.needed) else 3


if __name__ == "__main__":
    sys.exit(main())
