"""The commands of the command line: open files, call one package, record the stage. No logic of their own."""
