"""nano: a language model of about a million parameters that ships inside the package.

It is Pythia's architecture (GPT-NeoX) in miniature, pretrained in minutes by `python -m factdpo.nano.pretrain` on text
that `corpus.py` writes: who the 42 characters are, which camp each stands in, and plain everyday sentences. It was
never told which of the 42 are friends or enemies; it knows the two words, and the sentence form, from invented people
alone. So it starts at chance on the friend and enemy facts, and can learn them the way a real model does, in seconds
and offline.

It is not a language model to use for anything else: it knows some hundred words and says only what its corpus says.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder to hand to `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."""
