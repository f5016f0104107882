"""The pCTR model: rows, features, networks, intervals."""
