"""The course around the library: lesson helpers, self-checking exercises, the notebook builder, the
runner, the site, and a kit to teach from."""
