"""Worlds from tables and from public collections."""
