"""How OpenAI's clients ask: conversations, parameters, faults and limits, whatever route they come by."""
