"""The user's own data: rows out of files and tables, checked and made into a task."""
