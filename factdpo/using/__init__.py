"""What is done with a trained model: load it, ask it, export it, score it on other facts."""
