"""The command line: verbs to functions, no logic. A verb's module is imported when the verb is called."""

from __future__ import annotations

import importlib
import sys

from vtr.errors import reports_errors, unknown_name
from vtr.verbs import VERBS

_EXAMPLES = """\
examples:
  vtr index build my_videos --model runs/demo --out my.library
  vtr search my.library "a dog catches a frisbee" -k 5 --html hits.html
  vtr pretrain --corpus demo --ranks 2
  vtr eval --model runs/demo --data demo

vtr VERB --help explains a verb's flags."""


def usage() -> str:
    """The text of `vtr --help`."""
    lines = ["usage: vtr VERB …", "", "verbs:"]
    wide = max(map(len, VERBS)) + 2
    lines += [f"  {verb:<{wide}}{words}" for verb, (_, words) in VERBS.items()]
    return "\n".join([*lines, "", _EXAMPLES])


def run(words: list[str]) -> int:
    """Run one command; returns its exit code, raises VtrError for what the user can mend."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        words = ["version"]
    verb, rest = words[0].replace("_", "-"), words[1:]
    if verb not in VERBS or (rest and f"{verb} {rest[0]}" in VERBS):
        groups = [v for v in VERBS if v.split()[0] == verb]
        if groups and (not rest or rest[0] in ("-h", "--help")):
            print("\n".join(f"vtr {v:<16}{VERBS[v][1]}" for v in groups))
            return 0 if rest else 2
        pair = " ".join([verb, *rest[:1]])
        if pair not in VERBS and groups:
            raise unknown_name("verb", rest[0], [v.partition(" ")[2] for v in groups if " " in v], f"{verb} ")
        if pair not in VERBS:
            raise unknown_name("verb", words[0], {*VERBS, *(v.split()[0] for v in VERBS)})
        verb, rest = pair, rest[1:]
    if VERBS[verb][0] == "vtr.launch":
        from vtr.launch import launched

        return launched(verb, rest)
    module = importlib.import_module(VERBS[verb][0])
    from vtr.settings import parsed

    settings_type, function = module.COMMANDS[verb]
    return function(parsed(settings_type, rest, f"vtr {verb}"))


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """Entry of the `vtr` command."""
    # A terminal or pipe that is not UTF-8 gets escapes instead of a crash.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return run(list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
