"""Who bids over a day, and what could have been had with hindsight, pure. Imports no torch, ray or vllm."""
