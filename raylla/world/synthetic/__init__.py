"""The synthetic world's words: lexicon, names, grammar."""
