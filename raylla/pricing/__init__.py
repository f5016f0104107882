"""Reserves and prices learned from logged auctions: pure arithmetic, without Ray, models or a database."""
