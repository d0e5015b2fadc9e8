"""What is measured of a model: scores per split, generations, baselines, belief graphs."""
