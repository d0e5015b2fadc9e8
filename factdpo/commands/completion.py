"""`factdpo completion`: tab completion; a shell's script calls `factdpo completion --words ...` for the candidates."""

import re
from collections.abc import Iterable
from pathlib import Path

from factdpo.commands import table
from factdpo.commands.parser import Parser
from factdpo.config.folders import options
from factdpo.config.help import schema_keys
from factdpo.config.overrides import SHORT

RUN_OPTIONS = ("-m", "--multirun", "--cfg", "--help", "--hydra-help", "--version")
# A candidate that ends in `=`, `.` or `/` goes on; any other gets a space. In bash a word also ends at `=` and `:`.
SCRIPTS = {
    "bash": r"""_factdpo() {
    local line="${COMP_LINE:0:COMP_POINT}" word IFS=$' \t\n'
    local -a words
    read -ra words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    word="${words[-1]}"
    IFS=$'\n'
    COMPREPLY=($("${words[0]/#\~/$HOME}" completion --words "${words[@]:1}" 2>/dev/null))
    local ends="${COMP_WORDBREAKS//[^=:]/}"
    if [[ -n "$ends" && "$word" == *["$ends"]* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*["$ends"]}"}"}")
    fi
    local i
    for i in "${!COMPREPLY[@]}"; do
        [[ "${COMPREPLY[i]}" == *[=./,] ]] || COMPREPLY[i]+=" "
    done
}
complete -o nospace -o default -F _factdpo factdpo""",
    "zsh": r"""#compdef factdpo
_factdpo() {
    local -a found on
    found=("${(@f)$("${words[1]/#\~/$HOME}" completion --words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    on=("${(@M)found:#*[=./,]}")
    found=("${(@)found:#*[=./,]}")
    if [[ -z "${found[*]}${on[*]}" ]]; then
        _files
        return
    fi
    [[ -n "${on[*]}" ]] && compadd -Q -S '' -- "${on[@]}"
    [[ -n "${found[*]}" ]] && compadd -Q -- "${found[@]}"
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _factdpo factdpo""",
    "fish": r"""function __factdpo
    set -l words (commandline -opc)
    $words[1] completion --words $words[2..] (commandline -ct) 2>/dev/null
end
complete -c factdpo -f -a '(__factdpo)'""",
}


def main(arguments: list[str]) -> None:
    """Prints a shell's script, or with --words what the last word may become."""
    if arguments[:1] == ["--words"]:  # these are words of another command line, options included
        print("\n".join(candidates(arguments[1:] or [""])))
    else:
        print(SCRIPTS[make_parser().parse_args(arguments).shell])


def make_parser() -> Parser:
    parser = Parser(
        "completion",
        "Prints a script that completes commands, folders, keys, options and values on Tab.",
        """examples:
  echo 'source <(factdpo completion bash)' >> ~/.bashrc
  echo 'source <(factdpo completion zsh)' >> ~/.zshrc
  factdpo completion fish > ~/.config/fish/completions/factdpo.fish""",
    )
    parser.add_argument("shell", choices=sorted(SCRIPTS))
    return parser


def candidates(words: list[str]) -> list[str]:
    """What the last word may become, the words before it given, in alphabetical order."""
    *before, word = words
    command = table.find(before[0]) if before else None
    if command is table.HELP or (command is None and "--help" in before):
        choices: Iterable[str] = [*table.NAMES, *options(), *schema_keys()]
    elif command and command.name == "completion":
        choices = SCRIPTS
    elif command:
        usage = command.load().make_parser().format_usage()
        choices = [*re.findall(r"--[a-z][a-z-]*", usage), "--help"] if word.startswith("-") else _folders(word)
    elif word.startswith("-"):
        choices = RUN_OPTIONS
    elif before and before[-1] in ("--cfg", "-c"):
        choices = ("job", "hydra", "all")
    elif "=" in word:
        choices = _values(word)
    else:
        choices = [*_keys(word), *(() if before else table.NAMES)]
    return sorted({candidate for candidate in choices if candidate.startswith(word)})


def _keys(word: str) -> list[str]:
    """Groups, short names and keys; of a group's keys only its name until its dot is typed."""
    names = [*options(), *SHORT, *schema_keys()]
    dots = word.count(".")
    return [".".join(name.split(".")[: dots + 1]) + ("." if name.count(".") > dots else "=") for name in names]


def _values(word: str) -> list[str]:
    """`key=value` with each value that the key can have; of a sweep or a list the last item."""
    key, _, value = word.partition("=")
    head = word[: len(word) - len(re.split(r"[,\[]", value)[-1])]
    key = SHORT.get(key.lstrip("+"), key.lstrip("+"))
    if key in ("data.path", "out", "model.id"):
        return [head + path for path in _paths(word.removeprefix(head), only_folders=key == "out")]
    if key == "sweep":
        return [head + path.name for path in Path("outputs/sweeps").glob("*/")]
    values = list(options().get(key, ()))
    if declared := schema_keys().get(key):
        values += declared.options or (["true", "false"] if declared.default in ("true", "false") else [])
    return [head + value for value in values]


def _folders(word: str) -> list[str]:
    """The sweeps, and any other folder that begins so."""
    return [*(f"{path}/" for path in Path("outputs/sweeps").glob("*/")), *_paths(word, only_folders=True)]


def _paths(word: str, only_folders: bool = False) -> list[str]:
    """The paths that begin so, folders with a slash at their end; hidden ones only where a dot is typed."""
    head, _, start = word.rpartition("/")
    folder = Path(f"{head}/" if "/" in word else ".").expanduser()
    prefix = word.removesuffix(start)
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    return [
        f"{prefix}{path.name}{'/' if path.is_dir() else ''}"
        for path in paths
        if path.name.startswith(start) and (start or not path.name.startswith("."))
        if path.is_dir() or not only_folders
    ]
