"""`raylla evaluate --suite day`: bidders with budgets over days of 48 periods."""
