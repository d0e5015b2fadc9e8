"""Evaluation of a model: scores per split, generations, baselines, belief graphs."""
