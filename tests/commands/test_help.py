"""Help: every line fits the terminal, the keys used most come first, and each name tells all about itself."""

import re

import pytest

from factdpo.commands import help as command
from factdpo.commands.parser import folded
from factdpo.commands.table import COMMANDS, NAMES
from factdpo.config.folders import options
from factdpo.config.help import schema_keys
from factdpo.config.schema import ConfigError


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_every_line_of_help_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int):
    monkeypatch.setenv("COLUMNS", str(columns))
    texts = {"": command.overview()} | {name: command.about(name) for name in [*NAMES, *options(), *schema_keys()]}
    for name, text in texts.items():
        too_long = [line for line in text.splitlines() if len(line) > columns and not line.startswith("  factdpo ")]
        assert not too_long, name  # a command is for copying: never broken
        assert "  \n" not in text + "\n"


def test_help_opens_with_the_ten_keys_that_one_uses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    first = command.overview().split("\n\n")[2].splitlines()
    assert first[0] == "THE KEYS THAT ARE USED MOST: key, default, meaning"
    assert [line.split()[0] for line in first[1:] if line[2] != " "] == ["model", *command.USED[1:]]
    assert len(command.USED) == 10 and {*command.USED} <= schema_keys().keys()
    assert re.search(r"dpo\.learning_rate +0\.001 .*short: lr", "\n".join(first))


def test_help_names_every_command_group_and_key():
    text = command.overview()
    for one in COMMANDS:
        assert re.search(rf"^  {one.name}  ", text, re.MULTILINE)
    listed = re.split(r"[\s,]+", text)
    assert {key.rpartition(".")[2] for key in schema_keys()} | options().keys() <= {*listed}


def test_a_group_tells_its_options_and_its_keys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = command.about("lora")
    assert text.startswith("lora=OPTION\n  default  A LoRA adapter on every linear layer.")
    assert "\n\nlora: key, default, meaning\n  lora.method " in text and "lora | full" in text
    assert command.about("sweeps").startswith("sweeps=OPTION\n  beta           Does a stronger pull to the reference")


def test_a_key_a_short_name_and_an_override_tell_the_same():
    assert command.about("dpo.learning_rate") == command.about("lr") == command.about("lr=3")
    assert "AdamW" in command.about("lr")


def test_a_command_tells_what_its_own_help_tells(capsys: pytest.CaptureFixture[str]):
    for name in NAMES:
        module = next(one for one in COMMANDS if one.name == name).load()
        with pytest.raises(SystemExit) as end:
            module.main(["--help"])
        assert end.value.code == 0 and capsys.readouterr().out.strip() == command.about(name)


def test_a_wrong_name_is_refused_with_the_next_best():
    with pytest.raises(ConfigError, match=r"help resluts: .* \(did you mean results\?\)"):
        command.about("resluts")


def test_text_is_wrapped_by_paragraph_and_rows_by_column(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert folded("one two three four five six seven\neight\n\nrows:\n  a    what is a and no more than that\n") == (
        "one two three four five six\nseven eight\n\nrows:\n  a    what is a and no more\n       than that"
    )
    assert folded("  factdpo status outputs     of sweeps") == "  factdpo status outputs\n      of sweeps"
