"""The engine that trains many LoRA runs at once on one frozen base."""
