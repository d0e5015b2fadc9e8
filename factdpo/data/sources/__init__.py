"""How rows become facts: one file per source. Each has `read(cfg, check)`, which yields facts in the data's order."""
