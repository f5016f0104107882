"""TRL's trainers over packed rows: preference pairs, groups of rewards, published answers."""
