"""One file per task or family of tasks."""
