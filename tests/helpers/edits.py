"""Invented rows in the shapes of the knowledge-editing sets, as those are published."""

from typing import Any

Rows = list[dict[str, Any]]


def counterfact(count: int) -> Rows:
    """Of ROME's counterfact.json: a template with {}, targets with their ids, paraphrases, neighbours."""
    return [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": "{} plays the sport of",
                "relation_id": "P641",
                "target_new": {"str": "tennis", "id": "Q847"},
                "target_true": {"str": "golf", "id": "Q5377"},
                "subject": f"Person {number}",
            },
            "paraphrase_prompts": [f"The sport of Person {number} is"],
            "neighborhood_prompts": [f"Neighbour {number} plays the sport of"],
        }
        for number in range(count)
    ]


def zsre(count: int) -> Rows:
    """Of MEND's zsre_mend_eval.json."""
    return [
        {
            "subject": f"Person {number}",
            "src": f"What city was Person {number} born in?",
            "pred": "Rome",
            "rephrase": f"Which was the birth city of Person {number}?",
            "alt": "Lyon",
            "answers": ["Bath", "City of Bath"],
            "loc": f"nq question: who wrote book {number}",
            "loc_ans": f"Author {number}",
            "cond": "Bath >> Lyon || What city was it?",
        }
        for number in range(count)
    ]


def mquake(count: int, shared: bool = True) -> Rows:
    """Of MQuAKE-CF: two rewrites in a row, of which the second is that of every row if `shared`."""

    def rewrite(prompt: str, subject: str, new: str, true: str, question: str) -> dict[str, Any]:
        targets = {"target_new": {"str": new, "id": "Q1"}, "target_true": {"str": true, "id": "Q2"}}
        return {"prompt": prompt, "relation_id": "P1", **targets, "subject": subject, "question": question}

    return [
        {
            "case_id": number,
            "requested_rewrite": [
                rewrite(
                    "{} is a citizen of", f"Person {number}", "Peru", "Chile",
                    f"Which country is Person {number} a citizen of?",
                ),
                rewrite(
                    "The capital of {} is", "Peru" if shared else f"Land {number}", "Cusco", "Lima",
                    f"Which city is the capital of {'Peru' if shared else f'Land {number}'}?",
                ),
            ],
            "questions": [f"In which capital does Person {number} vote?", f"Where does Person {number} sit?"],
            "answer": "Santiago",
            "answer_alias": [],
            "new_answer": "Cusco",
            "new_answer_alias": ["Qusqu"],
        }
        for number in range(count)
    ]  # fmt: skip


def ripple(count: int) -> Rows:
    """Of RippleEdits' popular.json: statements with their answers, and tests of six kinds."""

    def query(prompt: str, value: str) -> dict[str, Any]:
        queries = [{"prompt": prompt, "answers": [{"value": value, "aliases": []}], "query_type": "regular"}]
        return {"test_queries": queries, "test_condition": "OR", "condition_queries": []}

    return [
        {
            "example_type": "popular",
            "edit": {
                "prompt": f"The country of Person {number} is Peru.",
                "relation": "COUNTRY",
                "original_fact": {"prompt": f"The country of Person {number} is Chile.", "relation": "COUNTRY"},
            },
            "Relation_Specificity": [query(f"The mother of Person {number} is", f"Mother {number}")],
            "Logical_Generalization": [],
            "Subject_Aliasing": [query(f"The country of P{number} is", "Peru")],
            "Compositionality_I": [query(f"The capital of Person {number}'s country is", "Lima")],
            "Compositionality_II": [],
            "Forgetfulness": [],
        }
        for number in range(count)
    ]
