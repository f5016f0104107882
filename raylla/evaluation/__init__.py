"""Test auctions with every mechanism, and what else is measured of finished runs."""
