"""What the reader of an answer gets: likeness to the organic one, perplexity, detectability, fidelity."""
