"""Served auctions as an epoch's first phase, and simulated users to have them with."""
