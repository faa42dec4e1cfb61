"""The course around the library: lesson helpers, self-checking exercises, the notebook builder and the runner."""
