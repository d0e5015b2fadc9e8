"""nano: a language model of about a million parameters that ships with the package.

It is Pythia's architecture (GPT-NeoX) in miniature, pretrained in minutes by `python -m factdpo.nano.pretrain` on text
that `corpus.py` generates: descriptions of the 42 characters and their camps, and plain everyday sentences. The corpus
never states which of the 42 are friends or enemies; the two words, and the sentence form, occur with invented people
only. So nano starts at chance on the friend and enemy facts, and can learn them as a real model does, in seconds and
offline.

It is of no other use: it has a vocabulary of some hundred words, and repeats its corpus.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."""
