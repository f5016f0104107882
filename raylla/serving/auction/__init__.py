"""One auction of the endpoint: who competes, what is asked, how the answer is shown."""
