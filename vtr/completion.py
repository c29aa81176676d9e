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


def settings_of(verb: str) -> type:
    """The settings that a verb's flags describe."""
    from vtr import launch
    from vtr.verbs import VERBS

    if verb in launch.ENTRIES:
        return launch.settings_of(verb)
    found: type = importlib.import_module(VERBS[verb][0]).COMMANDS[verb][0]
    return found


def flag_of(field: dataclasses.Field[object]) -> str:
    """A setting's flag, as it is typed; nothing for one that stands alone."""
    if "Positional" in str(field.type):
        return ""
    renamed = re.search(r"""arg\(name=["'](\w+)""", str(field.type))  # a flag that Python has a keyword for
    name = renamed[1] if renamed else field.name
    return f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-")


def flags_of(verb: str) -> list[str]:
    """The flags of a verb, `--help` included."""
    return [*filter(None, map(flag_of, dataclasses.fields(settings_of(verb)))), "--help"]


def script(shell: str, verbs: dict[str, tuple[str, str]]) -> str:
    """The completion script for these verbs.

    Raises:
        UsageError: A shell that we have no script for.
    """
    if shell not in SHELLS:
        raise unknown_name("shell", shell, SHELLS)
    flags = {verb: flags_of(verb) for verb in verbs}
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
