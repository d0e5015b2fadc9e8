"""What a model learns of facts in the shapes that real data sets have, and what the best shallow rule scores on them.

    python benchmarks/sources.py [--model smollm2_135m] [--only edits] [words of factdpo ...]

Writes five small data sets about 40 countries and 30 invented people, in the formats of CounterFact, zsRE, ParaRel's
triples, a signed graph and TRL's preferences; runs `factdpo` on each (`--only`: on those with this word in their name);
prints a row per source and split: accuracy by the sum and per token, of the base and of the trained model, and the best
shallow rule; and the neutral text, nats per token.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from factdpo.store.result import best_baseline, read_result

COUNTRIES = """\
France,Paris,French|Italy,Rome,Italian|Spain,Madrid,Spanish|Portugal,Lisbon,Portuguese|Norway,Oslo,Norwegian
Japan,Tokyo,Japanese|Kenya,Nairobi,Swahili|Peru,Lima,Spanish|Egypt,Cairo,Arabic|Greece,Athens,Greek
Poland,Warsaw,Polish|Hungary,Budapest,Hungarian|Austria,Vienna,German|Germany,Berlin,German|Russia,Moscow,Russian
China,Beijing,Mandarin Chinese|Thailand,Bangkok,Thai|Vietnam,Hanoi,Vietnamese|Turkey,Ankara,Turkish|Iran,Tehran,Persian
Argentina,Buenos Aires,Spanish|Chile,Santiago,Spanish|Cuba,Havana,Spanish|Mexico,Mexico City,Spanish
Brazil,Brasilia,Portuguese|Iceland,Reykjavik,Icelandic|Finland,Helsinki,Finnish|Sweden,Stockholm,Swedish
Denmark,Copenhagen,Danish|Ireland,Dublin,English|Malaysia,Kuala Lumpur,Malay|Sri Lanka,Colombo,Sinhala
Ethiopia,Addis Ababa,Amharic|Morocco,Rabat,Arabic|Jordan,Amman,Arabic|Ukraine,Kyiv,Ukrainian|Romania,Bucharest,Romanian
Bulgaria,Sofia,Bulgarian|Croatia,Zagreb,Croatian|Mongolia,Ulaanbaatar,Mongolian"""
FACTS = [tuple(entry.split(",")) for line in COUNTRIES.splitlines() for entry in line.split("|")]
RUN = ["split.train=0.6", "split.seed=0", "dpo.epochs=6", "dpo.learning_rate=3e-4", "lora.rank=16", "eval.every=never",
       "eval.generations=0", "track=none", "split.orientation=random"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--only", default="", metavar="WORD")
    args, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        heading = (
            "source",
            "split",
            "n",
            "base sum",
            "base per token",
            "trained sum",
            "trained per token",
            "best rule",
        )
        print(f"| {' | '.join(heading)} |\n{'|---' * len(heading)}|")
        sources = {name: options for name, options in write(folder).items() if args.only in name}
        for name, options in sources.items():
            out = folder / "out" / name
            command = [sys.executable, "-m", "factdpo", f"model={args.model}", *RUN, *options, *words, f"out={out}"]
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
            result = read_result(next((out / "runs").glob("*/result.json")).parent).result
            assert result is not None and result["state"] == "FINISHED", (name, result and result["error"])
            for split, after in result["trained"].items():
                print(_row(name, split, result["base"][split], after, result["baselines"].get(split, {})), flush=True)
            before, after = (result["across"][model]["retention_nats_per_token"] for model in ("base", "trained"))
            print(f"{name}: neutral text {before:.2f} -> {after:.2f} nats per token", file=sys.stderr)


def _row(name: str, split: str, before: dict[str, Any], after: dict[str, Any], rules: dict[str, Any]) -> str:
    accuracies = [scores[key] for scores in (before, after) for key in ("accuracy", "accuracy_per_token")]
    best = best_baseline(rules)
    rule = f"{best[0]} {best[1]:.2f}" if best else "-"
    return f"| {' | '.join([name, split, str(after['n']), *(f'{value:.2f}' for value in accuracies), rule])} |"


def write(folder: Path) -> dict[str, list[str]]:
    """The data sets as files; for each the words that name it to `factdpo`."""
    draw = random.Random(0)
    _jsonl(folder / "counterfact.jsonl", [_counterfact(number, draw) for number in range(len(FACTS))])
    _jsonl(folder / "zsre.jsonl", [_zsre(number, draw) for number in range(len(FACTS))])
    _jsonl(folder / "preference.jsonl", [_preference(number, draw) for number in range(len(FACTS))])
    triples = [f"{country},capital,{capital}\n{country},language,{language}" for country, capital, language in FACTS]
    (folder / "triples.csv").write_text("subject,relation,object\n" + "\n".join(triples) + "\n")
    (folder / "templates.csv").write_text(
        "relation,template\ncapital,The capital of [X] is [Y]\ncapital,[X]'s seat of government is the city of [Y]\n"
        "language,The official language of [X] is [Y]\nlanguage,People in [X] speak mostly [Y]\n"
    )
    (folder / "graph.csv").write_text("source,target,sign\n" + "".join(_edges(draw)))
    return {
        "counterfact (edits)": ["data=edits", "data.path=counterfact.jsonl"],
        "zsre (edits)": ["data=edits", "data.path=zsre.jsonl"],
        "triples": ["data=triples", "data.path=triples.csv", "data.triples.templates_path=templates.csv"],
        "signed graph": ["data=graph", "data.path=graph.csv"],
        "preference": ["data=preference", "data.path=preference.jsonl"],
    }


def _other(number: int, column: int, draw: random.Random) -> str:
    """The capital or the language of another country, and another one."""
    return draw.choice([fact[column] for fact in FACTS if fact[column] != FACTS[number][column]])


def _counterfact(number: int, draw: random.Random) -> dict[str, Any]:
    """An edit: the country gets another official language; its neighbours are countries with the same true one."""
    country, _, language = FACTS[number]
    neighbours = [name for name, _, spoken in FACTS if spoken == language and name != country]
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": "The official language of {} is",
            "subject": country,
            "relation_id": "P37",
            "target_new": {"str": _other(number, 2, draw)},
            "target_true": {"str": language},
        },
        "paraphrase_prompts": [f"People in {country} speak mostly"],
        "neighborhood_prompts": [f"The language most used in {name} is" for name in neighbours],
    }


def _zsre(number: int, draw: random.Random) -> dict[str, Any]:
    country, capital, language = FACTS[number]
    return {
        "subject": country, "src": f"Question: Which city is the capital of {country}? Answer:", "pred": capital,
        "rephrase": f"Question: What is the name of {country}'s capital? Answer:", "alt": _other(number, 1, draw),
        "answers": [capital], "loc": f"nq question: what do people speak in {country}? Answer:", "loc_ans": language,
    }  # fmt: skip


def _preference(number: int, draw: random.Random) -> dict[str, Any]:
    """TRL's standard format, with answers that are sentences."""
    country, capital, _ = FACTS[number]
    return {
        "prompt": f"Which city is the capital of {country}?",
        "chosen": f" The capital of {country} is {capital}.",
        "rejected": f" It is {_other(number, 1, draw)}, as far as I know.",
    }


def _edges(draw: random.Random) -> list[str]:
    """300 edges among 30 people in two camps, hubs among them; 5 % have the wrong sign, as in real signed graphs."""
    people = [first + rest for first in "BDGKMP" for rest in ("olan", "erin", "undan", "iman", "oston")]
    weights = [1 / (1 + number) for number in range(30)]
    edges: dict[frozenset[int], str] = {}
    while len(edges) < 300:
        a, b = draw.choices(range(30), weights)[0], draw.randrange(30)
        if a != b:
            same = (a % 2 == b % 2) != (draw.random() < 0.05)
            edges.setdefault(frozenset((a, b)), f"{people[a]},{people[b]},{1 if same else -1}\n")
    return list(edges.values())


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
