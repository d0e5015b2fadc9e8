"""What this process remembers of Weights & Biases, beside W&B's own."""


class WandbProcess:
    def __init__(self) -> None:
        self.open_runs: set[str] = set()  # W&B's ids
        self.server_failed = False  # once it did not take a run: later runs of a sweep do not wait for it again
        self.stopped = False  # once its service did not answer at all: it is off for the rest of this process
        self._joined: dict[str, str] = {}  # id of the run that `wandb agent` opened -> id of our run that is in it

    def join(self, agents_run: str, run_id: str) -> bool:
        """Put our run into the agent's; False if another one of ours is in it: W&B would write both into one."""
        return self._joined.setdefault(agents_run, run_id) == run_id


process = WandbProcess()
