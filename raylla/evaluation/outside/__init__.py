"""A running endpoint measured from outside, by nothing but its API."""
