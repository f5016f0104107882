"""Sampling without one driver: who owns a slice of the engines and of an epoch's auctions, and what the
driver hears of it."""
