"""DPO: the loss, the schedule, adapters, and the two engines."""
