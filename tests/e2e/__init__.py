import gc

# An engine that is let go gives all that is loaded back to the collector and has it collected four times,
# which takes three seconds of a core: here processes end soon after their engines.
gc.unfreeze = lambda: None
