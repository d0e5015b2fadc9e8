"""Many runs: which they are, how they are launched, and what came of all of them."""
