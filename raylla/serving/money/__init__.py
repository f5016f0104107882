"""Amounts, price rules, and the records that hold them."""
