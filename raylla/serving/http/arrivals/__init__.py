"""What a request's headers say of how it came: through which proxy, by a person or by a program."""
