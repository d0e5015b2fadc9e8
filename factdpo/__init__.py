"""factdpo: can preference optimisation teach a language model facts, and which facts generalise?

Letters of tensor dimensions, the same in every module:
R runs, N pairs in a split, B pairs in a batch, T tokens, V vocabulary, D width, K LoRA rank.
"""

__version__ = "0.1.0"
