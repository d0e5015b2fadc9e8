"""The floors of the house, which the code and docs/design.md must agree with."""

# From the bottom up. A folder imports itself and lower floors; siblings never import each other.
FLOORS = [
    ["config", "console", "hub", "output", "signals", "nano"],
    ["store", "data"],
    ["models", "tracking", "results"],
    ["training", "evaluation"],
    ["runs", "report"],
    ["sweep", "dashboard", "using"],
    ["hydra_plugins", "commands"],
    ["__main__", "api"],
]
FLOOR = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}
