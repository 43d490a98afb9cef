"""The procedural world of the laptop experiments: scenes, captions, tasks, examiner, tiny base models."""
