"""The procedural world of the laptop run: scenes, captions, tasks, examiner, and the training of tiny base models."""
