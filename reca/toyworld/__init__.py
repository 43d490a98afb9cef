"""The procedural world of the laptop experiments: scenes, captions, edits, examiner, and tiny base models."""
