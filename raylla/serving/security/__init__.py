"""What the endpoint trusts: keys, secrets, signed tokens, addresses."""
