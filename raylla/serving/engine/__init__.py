"""The models behind the endpoint: the engine's process, the pCTR model, and the ways to them."""
