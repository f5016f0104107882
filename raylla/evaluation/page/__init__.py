"""What `raylla evaluate` found, as a page and on the console."""
