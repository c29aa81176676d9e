"""The command line: verbs to functions, no logic. A verb's module is imported when the verb is called."""

from __future__ import annotations

import importlib
import os
import sys

from vtr.errors import VtrError, unknown_name

VERBS = {
    "shards build": ("vtr.data.commands", "videos or images and captions into WebDataset shards"),
    "shards verify": ("vtr.data.commands", "check shards: counts, captions, media"),
    "index build": ("vtr.library.commands", "make a search library of folders of videos"),
    "index add": ("vtr.library.commands", "add files to a library"),
    "index remove": ("vtr.library.commands", "forget videos of a library"),
    "index info": ("vtr.library.commands", "what a library holds, what could not be read"),
    "search": ("vtr.library.commands", "find moments in words"),
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
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        pair = " ".join(words[:2])
        if pair not in VERBS:
            groups = [v for v in VERBS if v.split()[0] == verb]
            if groups and (not rest or rest[0] in ("-h", "--help")):
                print("\n".join(f"vtr {v:<16}{VERBS[v][1]}" for v in groups))
                return 0 if rest else 2
            raise unknown_name("verb", pair if groups else verb, groups or VERBS)
        verb, rest = pair, words[2:]
    settings_type, function = importlib.import_module(VERBS[verb][0]).COMMANDS[verb]
    import tyro

    return function(tyro.cli(settings_type, args=rest, prog=f"vtr {verb}"))


def main(argv: list[str] | None = None) -> int:
    """Entry of the `vtr` command."""
    try:
        return run(list(sys.argv[1:] if argv is None else argv))
    except VtrError as error:
        print(f"vtr: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("vtr: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing more can be said on stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
