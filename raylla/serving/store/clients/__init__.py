"""What is kept for clients beside the books: responses to go on from, and notices on their way out."""
