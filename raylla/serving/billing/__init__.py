"""What follows from the books: the audit, and the notices to who paid or lost."""
