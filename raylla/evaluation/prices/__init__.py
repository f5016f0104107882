"""`raylla prices`: learned from logs, and held on new questions."""
