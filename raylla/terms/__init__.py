"""What a reward may hold beside money and format: terms that packages can add to."""
