"""The command line: verbs to functions, no logic. A verb's module is imported when the verb is called."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
from typing import Any

from vtr.errors import COMMAND_LINE, UsageError, VtrError, unknown_name

VERBS = {
    "shards build": ("vtr.data.commands", "videos or images and captions into WebDataset shards"),
    "shards verify": ("vtr.data.commands", "check shards: counts, captions, media"),
    "index build": ("vtr.library.commands", "make a search library of folders of videos"),
    "index add": ("vtr.library.commands", "add files to a library"),
    "index sync": ("vtr.library.commands", "bring a library up to date with its folders"),
    "index remove": ("vtr.library.commands", "forget videos of a library"),
    "index info": ("vtr.library.commands", "what a library holds, what could not be read"),
    "index verify": ("vtr.library.commands", "check that a library's files agree with each other"),
    "index compact": ("vtr.library.commands", "free the room of forgotten videos, mend the index"),
    "index export": ("vtr.library.commands", "a library's vectors and metadata as Parquet"),
    "index push": ("vtr.library.commands", "bring a collection on Milvus up to date with a library"),
    "embed": ("vtr.library.commands", "embed the samples of shards, for index build --from"),
    "search": ("vtr.library.commands", "find moments in words"),
    "serve": ("vtr.library.commands", "search a library in a browser, and a REST API"),
    "models": ("vtr.models.commands", "official checkpoints: list, describe, fetch"),
    "benchmarks": ("vtr.eval.commands", "evaluation protocols: list them"),
    "benchmarks check": ("vtr.eval.commands", "what of a benchmark is there, missing, broken"),
    "results": ("vtr.eval.commands", "table and plot of evaluation results"),
    "runs plot": ("vtr.pretrain.commands", "loss and retrieval curves of training runs as a PNG"),
    "export": ("vtr.pretrain.commands", "a training checkpoint as a model folder"),
    "doctor": ("vtr.doctor", "what is installed, which kernel runs and why"),
    "demo": ("vtr.demo", "train a small search engine from nothing and query it"),
}

_EXAMPLES = """\
examples:
  vtr index build my_videos --model runs/demo --out my.library
  vtr search my.library "a dog catches a frisbee" -k 5 --html hits.html
  accelerate launch pretrain/run.py --corpus demo
  accelerate launch eval/zero_shot.py --model runs/demo --data demo

vtr VERB --help explains a verb's flags."""


def usage() -> str:
    """The text of `vtr --help`."""
    lines = ["usage: vtr VERB …", "", "verbs:"]
    lines += [f"  {verb:<16}{words}" for verb, (_, words) in VERBS.items()]
    return "\n".join([*lines, "", _EXAMPLES])


def run(words: list[str]) -> int:
    """Run one command; returns its exit code, raises VtrError for what the user can mend."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        import vtr

        print(f"vtr {vtr.__version__}")
        return 0
    verb, rest = words[0].replace("_", "-"), words[1:]
    if verb not in VERBS or (rest and f"{verb} {rest[0]}" in VERBS):
        groups = [v for v in VERBS if v.split()[0] == verb]
        if groups and (not rest or rest[0] in ("-h", "--help")):
            print("\n".join(f"vtr {v:<16}{VERBS[v][1]}" for v in groups))
            return 0 if rest else 2
        pair = " ".join([verb, *rest[:1]])
        if pair not in VERBS:
            raise unknown_name("verb", pair if groups else words[0], groups or VERBS)
        verb, rest = pair, rest[1:]
    module = importlib.import_module(VERBS[verb][0])
    settings_type, function = module.COMMANDS[verb]
    return function(_parsed(settings_type, rest, f"vtr {verb}"))


def _parsed(settings_type: Any, words: list[str], program: str) -> Any:
    """The settings that flags describe; wrong flags become one line instead of tyro's box."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(settings_type, args=words, prog=program, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        lines = [line for line in said.getvalue().splitlines() if "\u256d" not in line]  # without the box's title
        text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", " ", "\n".join(lines))
        raise UsageError(" ".join(text.split())) from None


def main(argv: list[str] | None = None) -> int:
    """Entry of the `vtr` command.

    Returns:
        0 done, 1 failed, 2 bad usage, 130 stopped by Ctrl-C, 141 the reader of the output has gone.
    """
    # A terminal or pipe that is not UTF-8 gets escapes instead of a crash.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except VtrError as error:
        print(f"vtr: {' '.join(error.said(COMMAND_LINE).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("vtr: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing more can be said on stdout, also not when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
