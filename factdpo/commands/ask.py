"""`factdpo ask`: what the base and the trained model say to a prompt, side by side."""

import sys
from collections.abc import Iterator
from pathlib import Path

from factdpo import console
from factdpo.commands.parser import Parser, folder
from factdpo.config.schema import ConfigError
from factdpo.using.ask import Chat
from factdpo.using.finished import read_finished


def main(arguments: list[str]) -> None:
    """Prints what both models say to a prompt, or to each line of standard input; raises ConfigError."""
    args = make_parser().parse_intermixed_args(arguments)
    chat = Chat(read_finished(Path(args.folder)))
    if chat.note:
        console.say(chat.note, "yellow")
    options = {"tokens": args.tokens, "temperature": args.temperature, "seed": args.seed, "top": args.top}
    if args.prompt is not None:
        console.console.print(chat.ask(args.prompt, **options))
        return
    for prompt in _typed():
        try:
            console.console.print(chat.ask(prompt, **options))
        except ConfigError as error:
            console.say(f"factdpo: {error}", "bold red")
        console.say("")


def _typed() -> Iterator[str]:
    """The lines of standard input that are not empty; on a terminal each is asked for, until Ctrl-D."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    console.say("a prompt for both models; Ctrl-D ends", "dim")
    while True:
        try:
            if line := input("> ").strip():
                yield line
        except EOFError:
            print()
            return


def make_parser() -> Parser:
    parser = Parser(
        "ask",
        "Continue a prompt with the base and with the trained model of a run, side by side.",
        """Of a prompt that is one of the run's facts, the probabilities of its true and its
false answer are shown, of any other prompt the likeliest next tokens. Without a prompt
each line of standard input is one.

examples:
  factdpo ask outputs/runs/<run> "Severus Snape is Lucius Malfoy's"
  factdpo ask outputs/runs/<run>                                     asks for prompts
  factdpo ask outputs/runs/<run> --tokens 40 < prompts.txt""",
    )
    parser.add_argument("folder", type=folder, metavar="FOLDER", help="of a finished run")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="a text to continue")
    parser.add_argument("--tokens", type=int, default=20, metavar="N", help="length of a continuation (default: 20)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="of the sampled continuation (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampled continuation (default: 0)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="next tokens of each model (default: 5)")
    return parser
