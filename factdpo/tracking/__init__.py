"""Weights & Biases and trackio: views of the local record."""
