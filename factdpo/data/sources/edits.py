"""Facts from knowledge-editing sets: CounterFact, zsRE, MQuAKE, RippleEdits, KnowEdit, and others by dotted paths.

The rewrite is the fact. Its paraphrases, what follows from it (portability) and what it must leave as it was (locality)
are prompts about it, each a split of its own.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from factdpo.config.schema import DataConfig, EditsConfig, EditTarget, to_dict
from factdpo.data import columns, splits
from factdpo.data.facts import BadRow, Fact, FactError, RowCheck, normalised
from factdpo.data.files import rows
from factdpo.data.paths import common_beginning, leaves, paired, value_at

NEEDED = ("prompt", "new", "old")
# Where the known sets have their parts. zsRE's edit is `alt`, an answer that was drawn for it, and its true answer the
# first of `answers`, as EasyEdit reads it; `pred`, what one old model said, is neither.
FORMATS = {
    "CounterFact or MQuAKE": EditsConfig(
        prompt="requested_rewrite.prompt", subject="requested_rewrite.subject",
        relation="requested_rewrite.relation_id", new="requested_rewrite.target_new.str",
        old="requested_rewrite.target_true.str", paraphrase=["paraphrase_prompts", "requested_rewrite.question"],
        locality=["neighborhood_prompts"], portability=["questions"], portability_answer=["new_answer"],
        portability_old=["answer"],
    ),
    "RippleEdits": EditsConfig(
        new="edit.prompt", old="edit.original_fact.prompt", relation="edit.relation",
        paraphrase=["Subject_Aliasing.test_queries.prompt"],
        locality=["Relation_Specificity.test_queries.prompt", "Forgetfulness.test_queries.prompt"],
        locality_answer=["Relation_Specificity.test_queries.answers.value", "Forgetfulness.test_queries.answers.value"],
        portability=[f"{kind}.test_queries.prompt" for kind in
                     ("Logical_Generalization", "Compositionality_I", "Compositionality_II")],
        portability_answer=[f"{kind}.test_queries.answers.value" for kind in
                            ("Logical_Generalization", "Compositionality_I", "Compositionality_II")],
    ),
    "zsRE": EditsConfig(
        prompt="src", subject="subject", new="alt", old="answers", paraphrase=["rephrase"], locality=["loc"],
        locality_answer=["loc_ans"], portability=["port"], portability_answer=["port_ans"],
    ),
    "a flat CounterFact": EditsConfig(
        prompt="prompt", subject="subject", relation="relation_id", new="target_new", old="target_true",
        paraphrase=["paraphrase_prompts"], locality=["neighborhood_prompts"],
    ),
    "counterfact-tracing": EditsConfig(
        prompt="prompt", subject="subject", relation="relation_id", new="target_false", old="target_true",
    ),
    "KnowEdit": EditsConfig(
        prompt="prompt", subject="subject", new="target_new", old="ground_truth",
        paraphrase=["rephrase", "rephrase_prompt"], locality=["locality.*.prompt", "locality_prompt"],
        locality_answer=["locality.*.ground_truth", "locality_ground_truth"], portability=["portability.*.prompt"],
        portability_answer=["portability.*.ground_truth"],
    ),
}  # fmt: skip


def read(cfg: DataConfig, check: RowCheck) -> Iterator[Fact]:
    """A fact per rewrite. Rewrites of one row, and rows that share a rewrite, are never on both sides of a split."""
    facts: list[Fact] = []
    paths = None
    own = {name: value for name, value in to_dict(cfg.edits).items() if name not in ("target", *NEEDED)}
    unseen = [(name, path) for name, value in own.items() for path in leaves(value)]
    for number, row in enumerate(rows(cfg)):
        paths = paths or _paths(row.values, cfg.edits, row.where)
        rewrites = _rewrites(row.values, paths)
        unseen = [(name, path) for name, path in unseen if all(value_at(each, path) is None for each in rewrites)]
        group = f"row {number}" if len(rewrites) > 1 else None
        try:
            of_row = [_fact(_Rewrite(cfg, paths, each, row.where, each is rewrites[0]), check) for each in rewrites]
        except BadRow as bad:
            check.refuse(bad.kind, str(bad))
        else:
            facts += [dataclasses.replace(fact, split=row.split, group=group) for fact in of_row]
    if unseen:
        name, path = unseen[0]
        raise FactError(f"data.edits.{name}: no row has a value at {path}; correct the path, or leave it out")
    if any(fact.group for fact in facts):
        facts = _merged(facts, check)
    for index, fact in enumerate(facts):
        probes = tuple((kind, dataclasses.replace(probe, index=index)) for kind, probe in fact.probes)
        yield dataclasses.replace(fact, index=index, probes=probes)


def _paths(row: dict[str, Any], given: EditsConfig, where: str) -> EditsConfig:
    """The paths of the config, the others as the row's format has them; raises FactError if it has none that is known.

    A prompt without a path is what the new and the old statement begin with in common.
    """
    own = {f.name: getattr(given, f.name) for f in dataclasses.fields(given) if getattr(given, f.name)}

    def missing(paths: EditsConfig) -> list[str]:
        return [path for name in NEEDED if (path := getattr(paths, name)) and value_at(row, path) is None]

    def likeness(name: str) -> tuple[int, int]:
        paths = (path for value in to_dict(FORMATS[name]).values() for path in leaves(value))
        return -len(missing(known[name])), sum(value_at(row, path) is not None for path in paths)

    known = {name: dataclasses.replace(paths, **own) for name, paths in FORMATS.items()}
    name = max(known, key=likeness)
    paths = known[name]
    if {"new", "old"} <= own.keys():  # no format is needed
        return paths if not missing(paths) else dataclasses.replace(given)
    if not missing(paths):
        return paths
    raise FactError(
        f"{where}: no knowledge edit that is known; nearest is {name}, without {', '.join(missing(paths))} (found: "
        f"{', '.join(map(str, row))}); name the paths: data.edits.prompt=..., data.edits.new=..., data.edits.old=..."
    )


def _rewrites(row: dict[str, Any], paths: EditsConfig) -> list[dict[str, Any]]:
    """The row once for each rewrite in it: MQuAKE has several in a list, in the place of CounterFact's one."""
    first = (paths.prompt or paths.new or "").split(".")[0]
    several = row.get(first)
    if not isinstance(several, list) or not all(isinstance(item, dict) for item in several):
        return [row]
    return [{**row, first: item} for item in several]


class _Rewrite(NamedTuple):
    """One rewrite of a row, and where its parts are."""

    cfg: DataConfig
    paths: EditsConfig
    values: dict[str, Any]
    where: str
    is_first: bool  # of its row: what is asked of all rewrites of a row together is asked once

    def text(self, name: str) -> str | None:
        path = getattr(self.paths, name)
        return None if path is None else columns.text(next(leaves(value_at(self.values, path)), None), path, self.where)

    def needed(self, name: str) -> str:
        found = self.text(name)
        if found is None:
            path = getattr(self.paths, name)
            raise BadRow(f"{path} is missing", f"{self.where}: {path} is missing or empty (data.edits.{name})")
        return found

    def pairs(self, kind: str, answer: str) -> Iterator[tuple[str, str | None]]:
        """(prompt, answer or None) of each prompt of a kind; `answer` names the key with the answers' paths."""
        answers = getattr(self.paths, answer) if answer else []
        for number, path in enumerate(getattr(self.paths, kind)):
            found = value_at(self.values, answers[number]) if number < len(answers) else None
            for prompt, its_answer in paired(value_at(self.values, path), found):
                if (said := columns.text(prompt, path, self.where)) and said.strip():
                    its_text = columns.text(its_answer, path, self.where)
                    yield said.strip(), its_text.strip() if its_text else None


def _fact(rewrite: _Rewrite, check: RowCheck) -> Fact:
    """The rewrite with the prompts about it; raises BadRow if a part is missing that each must have."""
    prompt, new, true = _statement(rewrite)
    subject = rewrite.text("subject")
    is_new = rewrite.cfg.edits.target is EditTarget.new
    chosen, rejected = (new, true) if is_new else (true, new)
    fact = Fact(0, prompt, chosen, rejected, subject, relation=rewrite.text("relation"), where=rewrite.where)

    def probe(said: str, chosen: str, rejected: str) -> Fact:
        return dataclasses.replace(fact, prompt=said, chosen=chosen, rejected=rejected)

    filled = ((said.replace("{}", subject or "{}")) for said, _ in rewrite.pairs("paraphrase", ""))
    probes = [("paraphrase", probe(said, chosen, rejected)) for said in filled]
    if rewrite.is_first:
        after, before = (rewrite.pairs("portability", f"portability_{when}") for when in ("answer", "old"))
        for (said, now), (_, then) in zip(after, before, strict=True):
            if is_new:
                probes.append(("portability", probe(said, now or new, then or true)))
            elif then:  # else nobody knows what held before the edit
                probes.append(("portability", probe(said, then, now or new)))
        for said, answer in rewrite.pairs("locality", "locality_answer"):
            probes.append(("locality", dataclasses.replace(probe(said, answer or true, new), subject=None)))
    return dataclasses.replace(fact, probes=tuple(_scorable(fact, probes, check)))


def _statement(rewrite: _Rewrite) -> tuple[str, str, str]:
    """(prompt, new answer, true answer) of a rewrite."""
    new, true = rewrite.needed("new"), rewrite.needed("old")
    if rewrite.paths.prompt is not None:
        prompt, subject = rewrite.needed("prompt"), rewrite.text("subject")
        if "{}" not in prompt:
            return prompt, new, true
        if subject is None:
            raise BadRow("no subject", f"{rewrite.where}: the prompt has a place for the subject, and there is none")
        return prompt.replace("{}", subject), new, true
    if new.endswith(".") and true.endswith("."):  # which no answer of a locality prompt does
        new, true = new[:-1], true[:-1]
    prompt = common_beginning(new, true, words=bool(rewrite.cfg.separator))
    answers = new[len(prompt) :], true[len(prompt) :]
    return (prompt.rstrip() if rewrite.cfg.separator else prompt), *answers


def _scorable(fact: Fact, probes: list[tuple[str, Fact]], check: RowCheck) -> Iterator[tuple[str, Fact]]:
    """The probes less those that nothing can be read from, each of which is counted."""
    seen = {normalised(fact.prompt)}
    if fact.chosen.strip() == fact.rejected.strip():
        return  # the row itself is refused
    for kind, probe in probes:
        prompt = normalised(probe.prompt)
        if probe.chosen.strip() == probe.rejected.strip():
            check.change(f"a {kind} prompt was left out, since both of its answers are the same")
        elif prompt in seen:
            check.change(f"a {kind} prompt was left out that its row has before")
        else:
            seen.add(prompt)
            yield kind, probe


def _merged(facts: list[Fact], check: RowCheck) -> list[Fact]:
    """Each rewrite once, with what all rows ask about it; rows that share a rewrite have one group."""
    group_of = {id(fact): str(number) for number, group in enumerate(splits.groups(facts)) for fact in group}
    merged: dict[tuple[str, ...], Fact] = {}
    for fact in facts:
        rewrite = tuple(map(normalised, (fact.split or "", fact.prompt, fact.chosen, fact.rejected)))
        first = merged.setdefault(rewrite, dataclasses.replace(fact, group=group_of[id(fact)], probes=()))
        if first.where != fact.where:
            check.change("its rewrite is one with that of an earlier row")
        known = {(kind, normalised(probe.prompt)) for kind, probe in first.probes}
        new = [(kind, probe) for kind, probe in fact.probes if (kind, normalised(probe.prompt)) not in known]
        merged[rewrite] = dataclasses.replace(first, probes=(*first.probes, *new))
    return list(merged.values())
