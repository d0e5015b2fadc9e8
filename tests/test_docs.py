"""README.md and docs/: links lead somewhere, commands can be typed, the first screen says what it must."""

import copy
import io
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import factdpo
import factdpo.commands.run  # registers the schema
from factdpo.commands import table
from factdpo.config.folders import conf_folder
from factdpo.config.help import schema_keys
from factdpo.config.overrides import for_hydra
from factdpo.config.schema import Config
from factdpo.config.validate import validate
from factdpo.runs import summary
from factdpo.store.result import KEYS
from tests.helpers.floors import FLOORS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MANUAL = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*MANUAL, ROOT / "CHANGELOG.md", ROOT / "LOG.md"]
FIRST_SCREEN = 45  # lines of README.md

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^|(?<=\n\n))((?: {4}.*\n|\n(?= {4}))+)")
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

REFUSED = "factdpo dpo.betaa=1"  # what start.md shows a refusal with
YOURS = {"experiment=mine"}  # an option that the reader writes

KEY_NAMES = set(schema_keys())
GROUPS = {path.name for path in conf_folder().iterdir() if path.is_dir()} - {"hydra"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def code_blocks(page: Path) -> list[str]:
    """Fenced blocks but for those in a programming language, and indented ones."""
    text = page.read_text(encoding="utf-8")
    fenced = [code for language, code in FENCED.findall(text) if language in ("", "bash", "sh")]
    return fenced + INDENTED.findall(FENCED.sub("", text))


def spans(page: Path) -> list[str]:
    """What stands in backticks in the prose."""
    prose = INDENTED.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    return [" ".join(span.split()) for span in SPAN.findall(prose)]


def prose_of(page: Path) -> str:
    return SPAN.sub("", INDENTED.sub("", FENCED.sub("", page.read_text(encoding="utf-8"))))


def typed(line: str) -> Iterator[list[str]]:
    """The arguments of each `factdpo` on a command line."""
    line = re.sub(r"<\((.*?)\)", r"; \1", line)  # source <(factdpo ...)
    for part in re.split(r"; | \| | && ", re.split(r"\s#", line)[0]):
        words = re.sub(r"^(\s*[A-Z_]+=\S+)+ ", "", part).strip()
        if words == "factdpo" or words.startswith("factdpo "):
            yield shlex.split(words)[1:]


def commands() -> Iterator[str]:
    for page in MANUAL:
        lines = list(chain.from_iterable(block.replace("\\\n", "").splitlines() for block in code_blocks(page)))
        for arguments in chain.from_iterable(map(typed, lines)):
            yield shlex.join(["factdpo", *arguments])
        for arguments in chain.from_iterable(map(typed, spans(page))):
            if not (len(arguments) == 1 and table.find(arguments[0])):  # else it only names the command
                yield shlex.join(["factdpo", *arguments])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", INDENTED.sub("", text), re.MULTILINE)
    found: list[str] = []
    for heading in headings:
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(prose_of(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}: no such file"
        assert target.is_relative_to(ROOT), f"{page.name}: {link}: outside of the repository"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}: no such heading"


@each_page
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/.-])((?:factdpo|tests|hydra_plugins|benchmarks|docs)/[\w./-]*\.\w+)", text):
        assert (ROOT / name).is_file(), f"{page.name}: {name}: no such file"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_the_readme_links_every_page(page: Path) -> None:
    assert f"](docs/{page.name})" in README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[[list[str]], Config]]:
    """composed(["lora=none", "seed=1"]): the validated config; a choice of options is composed once."""
    chosen: dict[tuple[str, ...], DictConfig] = {}

    def make(overrides: list[str]) -> Config:
        choices = tuple(text for text in overrides if text.partition("=")[0] not in KEY_NAMES)
        if choices not in chosen:
            chosen[choices] = hydra.compose("config", overrides=list(choices))
        cfg = copy.deepcopy(chosen[choices])
        for one in OverridesParser.create().parse_overrides([text for text in overrides if text not in choices]):
            OmegaConf.update(cfg, one.key_or_group, one.value())
        return validate(cfg)

    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield make


@pytest.mark.parametrize("command", sorted({*commands()} - {REFUSED}))
def test_every_command_can_be_typed(command: str, composed: Callable[[list[str]], Config]) -> None:
    arguments = shlex.split(command)[1:]
    if arguments and (found := table.find(arguments[0])):
        found.load().make_parser().parse_args(arguments[1:])
    elif arguments[:1] in (["--help"], ["--version"]):
        assert all(table.find(name) or name in KEY_NAMES | GROUPS for name in arguments[1:])
    else:
        composed(one_of_many(arguments[2:] if arguments[:2] == ["--cfg", "job"] else arguments))


def one_of_many(arguments: list[str]) -> list[str]:
    """The overrides of one run: of what is swept the first value, of a range to be searched none."""
    overrides = [
        argument for argument in for_hydra(arguments)[0] if argument not in ("-m", "--", "hydra.mode=MULTIRUN")
    ]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [
        f"{one.key_or_group}={next(iter(one.sweep_string_iterator()))}" if one.is_sweep_override() else text
        for one, text in zip(parsed, overrides, strict=True)
        if not one.is_interval_sweep()
    ]


def test_the_refused_command_is_refused() -> None:
    assert REFUSED in set(commands()) and REFUSED.split()[1].partition("=")[0] not in KEY_NAMES


@pytest.mark.parametrize("page", MANUAL, ids=lambda path: path.name)
def test_every_key_and_option_in_the_prose_exists(page: Path) -> None:
    for span in spans(page):
        for key, value in re.findall(r"(?:^|\s)([a-z_.0-9]+)=([\w.]*)", span if "<" not in span else ""):
            if f"{key}={value}" in YOURS or "." in value or key.startswith("hydra."):
                continue
            options = {path.stem for path in (conf_folder() / key).glob("*.yaml")} | (
                {path.stem for path in (ROOT / "sweeps").glob("*.yaml")} if key == "sweeps" else set()
            )
            if options and value:
                assert value in options, f"{page.name}: `{span}`: {key} has no such option"
            elif key != "sweeps":
                assert key in KEY_NAMES, f"{page.name}: `{span}`: no such key"


def test_the_first_screen_has_question_sentence_picture_three_commands_answers_and_five_links() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()[:FIRST_SCREEN]
    paragraphs = [block.strip("\n") for block in re.split(r"\n{2,}", "\n".join(lines))]
    title, question, sentence, picture, typed_lines, answers, links = paragraphs[:7]
    assert title == "# factdpo"
    assert question.startswith("**") and question.endswith("?**")
    assert sentence.endswith(".") and ". " not in sentence.replace("\n", " ")
    assert re.fullmatch(r"!\[.{20,}\]\(\S+\)", picture)
    assert all(line.startswith("    ") for line in typed_lines.splitlines()) and len(typed_lines.splitlines()) == 3
    assert all(line.startswith("|") for line in answers.splitlines()) and 5 <= len(answers.splitlines()) - 2 <= 10
    assert len(LINK.findall(links)) == 5 and all(link.startswith("docs/") for link in LINK.findall(links))


def test_every_finding_stands_beside_its_command_and_a_date_of_the_log() -> None:
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if re.match(r"\| .*\?", line)]
    dates = set(re.findall(r"^## (\d{4}-\d\d-\d\d)", (ROOT / "LOG.md").read_text(encoding="utf-8"), re.MULTILINE))
    for row in rows:
        source = row.split("|")[-2]
        assert re.findall(r"\d{4}-\d\d-\d\d", source) and set(re.findall(r"\d{4}-\d\d-\d\d", source)) <= dates
        assert "`" in source, row


def test_every_key_of_a_result_is_explained() -> None:
    record, glossary = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("record.md", "glossary.md"))
    for key in KEYS:
        names = [part for part in key.split(".") if not part.startswith("<")]
        assert f"`{names[0]}" in record, f"{key}: record.md does not name it"
        assert f"{names[-1]}`" in record + glossary or f"`{names[-1]}" in record + glossary, f"{key}: is not explained"


def test_the_sample_of_a_run_is_what_a_run_prints() -> None:
    printed = io.StringIO()
    summary.print_result(sample(), Path("outputs/runs/sample"), Console(file=printed, width=120))
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    (block,) = [block for block in code_blocks(ROOT / "docs" / "start.md") if "train_reversed" in block]
    for line in block.splitlines():
        assert line.removeprefix("    ").rstrip() in lines


def sample() -> dict:
    """The result behind the table in start.md, as far as it is printed."""
    rows = {  # split: n, base, base balanced, best baseline, its accuracy, flips
        "train": (300, 0.52, 0.52, "additive", 0.69, 144),
        "train_reversed": (300, 0.51, 0.51, "bag_of_names", 0.63, 147),
        "test": (561, 0.49, 0.49, "chance", 0.50, 284),
        "test_reversed": (561, 0.48, 0.47, "chance", 0.50, 292),
    }
    says, says_after = {"train": 0.44, "test": 0.44}, {"train": 0.94, "test": 0.93}
    after = {"accuracy": 1.0, "accuracy_low": 0.99, "accuracy_high": 1.0, "balanced_accuracy": 1.0}
    return {
        "name": "nano b=0.2 r=32 s=0", "id": "d684835e6021", "state": "FINISHED", "warnings": [], "error": None,
        "base": {
            split: {"n": n, "accuracy": base, "balanced_accuracy": balanced, "greedy_accuracy": says.get(split)}
            for split, (n, base, balanced, *_) in rows.items()
        },
        "trained": {
            split: {
                "n": n, **after, "wrong_to_right": flips, "right_to_wrong": 0, "reward_accuracy": 1.0,
                "greedy_accuracy": says_after.get(split),
            }
            for split, (n, *_, flips) in rows.items()
        },
        "baselines": {split: {rule: best, "implied": 1.0} for split, (_, _, _, rule, best, _) in rows.items()},
        "across": {
            "base": {"symmetry_train": 0.78, "symmetry_test": 0.76, "retention_nats_per_token": 1.37},
            "trained": {"symmetry_train": 1.0, "symmetry_test": 1.0, "retention_nats_per_token": 2.03},
        },
    }  # fmt: skip


def test_the_house_is_the_one_that_stands() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    floors = re.findall(r"^\| \d \| (.*) \|$", design, re.MULTILINE)
    assert [row.replace("`", "").split(", ") for row in floors] == FLOORS
    for folder in {path.parent for path in (ROOT / "factdpo").rglob("*.py")} - {ROOT / "factdpo"}:
        assert f"| `{folder.relative_to(ROOT).as_posix()}/` |" in design


def test_the_sweep_file_that_is_shown_is_the_one_that_lies_there() -> None:
    shown = [textwrap.dedent(block) for block in INDENTED.findall((ROOT / "docs" / "sweeps.md").read_text())]
    assert (ROOT / "sweeps" / "beta.yaml").read_text() in shown


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [factdpo.__version__]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest[1] == factdpo.__version__
