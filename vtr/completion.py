"""`vtr completion bash|zsh|fish`: a script that completes verbs, flags and files."""

from __future__ import annotations

import dataclasses
import importlib
import re
from dataclasses import dataclass

import tyro

from vtr.errors import unknown_name

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
# vtr completion for bash: eval "$(vtr completion bash)" in ~/.bashrc
_vtr() {
  local word="${COMP_WORDS[COMP_CWORD]}" verbs flags
  local one="${COMP_WORDS[1]}" two="${COMP_WORDS[1]} ${COMP_WORDS[2]}"
  COMPREPLY=()
  case "$two" in
%(two)s
  esac
  [ -z "$flags" ] && case "$one" in
%(one)s
  esac
  if [ "$COMP_CWORD" = 1 ]; then verbs="%(verbs)s"; fi
  if [ "$COMP_CWORD" = 2 ]; then case "$one" in
%(groups)s
  esac; fi
  case "$word" in -*) verbs="$flags" ;; esac
  if [ -n "$verbs" ]; then COMPREPLY=($(compgen -W "$verbs" -- "$word")); fi
}
complete -o default -o bashdefault -F _vtr vtr
"""


@dataclass(frozen=True, kw_only=True)
class CompletionSettings:
    """Print the completion script of a shell: eval "$(vtr completion bash)"."""

    shell: tyro.conf.Positional[str]
    """bash, zsh or fish."""


def flags_of(module: str, verb: str) -> list[str]:
    """The flags of a verb, `--help` included."""
    from vtr.launch import ENTRIES, settings_of

    settings = settings_of(verb) if verb in ENTRIES else importlib.import_module(module).COMMANDS[verb][0]
    names = []
    for field in dataclasses.fields(settings):
        if "Positional" not in str(field.type):
            renamed = re.search(r"""arg\(name=["'](\w+)""", str(field.type))  # a flag that Python has a keyword for
            name = renamed[1] if renamed else field.name
            names.append(f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-"))
    return [*names, "--help"]


def script(shell: str, verbs: dict[str, tuple[str, str]]) -> str:
    """The completion script for these verbs.

    Raises:
        UsageError: A shell that we have no script for.
    """
    if shell not in SHELLS:
        raise unknown_name("shell", shell, SHELLS)
    flags = {verb: flags_of(module, verb) for verb, (module, _) in verbs.items()}
    groups: dict[str, list[str]] = {}
    for verb in verbs:
        first, _, second = verb.partition(" ")
        groups.setdefault(first, []).extend([second] if second else [])
    if shell == "fish":
        lines = [
            "# vtr completion for fish: vtr completion fish | source",
            "complete -c vtr -n __fish_use_subcommand -f",
        ]
        for first in groups:
            words = verbs[first][1] if first in verbs else f"{first} …"
            lines.append(f"complete -c vtr -n __fish_use_subcommand -a {first} -d '{words.replace(chr(39), '')}'")
        for first, seconds in groups.items():
            for second in seconds:
                lines.append(f"complete -c vtr -n '__fish_seen_subcommand_from {first}' -a {second}")
        for verb, names in flags.items():
            seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.split())
            lines += [
                f"complete -c vtr -n '{seen}' " + (f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}")
                for n in names
            ]
        return "\n".join(lines) + "\n"

    def cases(of: dict[str, list[str]], variable: str) -> str:
        return "\n".join(f'    "{key}") {variable}="{" ".join(names)}" ;;' for key, names in of.items() if names)

    text = _BASH % {
        "two": cases({v: f for v, f in flags.items() if " " in v}, "flags"),
        "one": cases({v: f for v, f in flags.items() if " " not in v}, "flags"),
        "verbs": " ".join(groups),
        "groups": cases(groups, "verbs"),
    }
    if shell == "zsh":  # zsh runs bash's completions
        return (
            '# vtr completion for zsh: eval "$(vtr completion zsh)" in ~/.zshrc\nautoload -U +X bashcompinit && bashcompinit\n'
            + text
        )
    return text


def run(settings: CompletionSettings) -> int:
    """`vtr completion`."""
    from vtr.verbs import VERBS

    print(script(settings.shell, VERBS), end="")
    return 0


COMMANDS = {"completion": (CompletionSettings, run)}
