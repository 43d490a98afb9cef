"""The implementations of the commands: open files, call one package, record the stage. No logic of their own."""
