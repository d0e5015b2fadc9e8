"""Base models: which bytes, how they are loaded, and the log-probability of an answer."""
